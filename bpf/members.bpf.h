/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who is a member: thread groups, from fork to exit, whatever they do in between (exec, setsid, a new
 * namespace, a new parent). Kept by the scheduler's own trace points, so no process can step out.
 */
#ifndef MPROX_MEMBERS_BPF_H
#define MPROX_MEMBERS_BPF_H

#include "bpf/common.bpf.h"

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
} __attribute__((preserve_access_index));

struct task_struct {
	int tgid;
	struct signal_struct *signal;
	struct task_struct *real_parent;
} __attribute__((preserve_access_index));

/*
 * max_entries is set before load, to as many processes as the machine can have. All of them are allocated then: a child
 * that there was no memory for would be outside.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32); /* thread group */
	__type(value, struct mprox_member);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MPROX_SLOTS);
	__type(key, __u32); /* thread group of an engine */
	__type(value, struct mprox_member);
} engines SEC(".maps");

/* Children that found no place (the machine's limit was raised since). While there are any, ancestry is asked as well. */
static __u32 lost;

static __noinline struct mprox_member *member_by_ancestry(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	for (int i = 0; i < 16; i++) {
		struct mprox_member *member;
		__u32 tgid;

		task = BPF_CORE_READ(task, real_parent);
		if (!task)
			return NULL;
		tgid = BPF_CORE_READ(task, tgid);
		member = bpf_map_lookup_elem(&members, &tgid);
		if (member)
			return member;
		if (tgid <= 1)
			return NULL;
	}
	return NULL;
}

static __always_inline const struct mprox_member *current_member(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct mprox_member *member = bpf_map_lookup_elem(&members, &tgid);

	if (!member && lost)
		member = member_by_ancestry();
	return member;
}

static __always_inline void leave(__u32 tgid)
{
	struct mprox_member *entry = bpf_map_lookup_elem(&members, &tgid);
	struct mprox_context *context;
	struct mprox_event *event;
	struct mprox_member member;

	if (!entry)
		return;
	member = *entry;
	/* Two last threads may come here together; one deletes. */
	if (bpf_map_delete_elem(&members, &tgid))
		return;
	context = context_of(&member);
	if (!context || __sync_fetch_and_sub(&context->members, 1) != 1)
		return;
	event = reserve_event(&member, 0);
	/* No room means the engine has events to read, and looks at the count after reading. */
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = MPROX_EVENT_EMPTY;
	submit_event(event, &member, 0, false);
}

static __always_inline int enter(__u32 tgid, const struct mprox_member *member)
{
	struct mprox_context *context = context_of(member);

	if (!context)
		return -1;
	__sync_fetch_and_add(&context->members, 1);
	if (!bpf_map_update_elem(&members, &tgid, member, BPF_NOEXIST))
		return 0;
	__sync_fetch_and_sub(&context->members, 1);
	return -1;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(mprox_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 from = parent->tgid, to = child->tgid;
	struct mprox_member *entry;
	struct mprox_member member;

	if (from == to)
		return 0;
	entry = bpf_map_lookup_elem(&members, &from);
	if (!entry)
		return 0;
	member = *entry;
	if (enter(to, &member) && context_of(&member))
		__sync_fetch_and_add(&lost, 1);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(mprox_exit, struct task_struct *task)
{
	__u32 tgid = task->tgid;
	struct mprox_member *engine;

	if (task->signal->live.counter > 0)
		return 0;
	leave(tgid);
	engine = bpf_map_lookup_elem(&engines, &tgid);
	if (engine) {
		struct mprox_context *context = context_of(engine);

		if (context)
			context->alive = 0;
		bpf_map_delete_elem(&engines, &tgid);
	}
	return 0;
}

/* The process that runs this becomes a member; the last one joined wins. */
SEC("syscall")
int mprox_join(struct mprox_call *call)
{
	struct mprox_member member = { .slot = call->slot, .generation = call->generation };
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	leave(tgid);
	return enter(tgid, &member);
}

/*
 * The process that runs this is the context's engine from now on. It is nobody's member: when it was started in
 * another context's tree, its dials would go through that one's engine, and its answers with them.
 */
SEC("syscall")
int mprox_serve(struct mprox_call *call)
{
	struct mprox_member member = { .slot = call->slot, .generation = call->generation };
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct mprox_context *context = context_of(&member);

	if (!context || bpf_map_update_elem(&engines, &tgid, &member, BPF_ANY))
		return -1;
	leave(tgid);
	context->engine = tgid;
	context->alive = 1;
	return 0;
}

#endif
