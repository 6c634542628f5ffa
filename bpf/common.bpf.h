/* SPDX-License-Identifier: GPL-2.0-only */
/* Headers, the few kernel fields we read, and the contexts: what every BPF file here needs. */
#ifndef MPROX_COMMON_BPF_H
#define MPROX_COMMON_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "bpf/mprox.h"

#ifndef NULL
#define NULL ((void *)0)
#endif

#define AF_INET 2

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MPROX_SLOTS);
	__type(key, __u32);
	__type(value, struct mprox_context);
} contexts SEC(".maps");

/* Slot × MPROX_SHARDS + shard. Several rings, so that an engine's threads share nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MPROX_SLOTS * MPROX_SHARDS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_RINGBUF);
		__uint(max_entries, MPROX_RING_BYTES);
	});
} rings SEC(".maps");

/* NULL when the slot has another owner by now. */
static __always_inline struct mprox_context *context_of(const struct mprox_member *member)
{
	__u32 slot = member->slot;
	struct mprox_context *context = bpf_map_lookup_elem(&contexts, &slot);

	return context && context->generation == member->generation ? context : NULL;
}

/* Room in the ring of one of the engine's threads, or NULL. */
static __always_inline void *reserve(const struct mprox_member *owner, __u32 shard, __u64 size)
{
	struct mprox_context *context = context_of(owner);
	__u32 index;
	void *ring;

	if (!context || !context->alive)
		return NULL;
	index = owner->slot * MPROX_SHARDS + shard % MPROX_SHARDS;
	ring = bpf_map_lookup_elem(&rings, &index);
	return ring ? bpf_ringbuf_reserve(ring, size, 0) : NULL;
}

static __always_inline struct mprox_event *reserve_event(const struct mprox_member *owner, __u32 shard)
{
	return reserve(owner, shard, sizeof(struct mprox_event));
}

/* Has the thread read what was put into its ring without waking it. */
static __always_inline void wake(const struct mprox_member *owner, __u32 shard)
{
	void *nothing = reserve(owner, shard, sizeof(__u64));

	if (nothing)
		bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
}

/*
 * What can wait is read when the engine looks by itself, if it is about to; to be asked before room is reserved. As long as
 * such an event lies there unread the kernel would not wake the engine for another one without being told. Not so many that
 * there is no room for others.
 */
#define QUIET_MOST 1024

static __always_inline bool can_wait(struct mprox_context *context, __u32 shard)
{
	shard %= MPROX_SHARDS;
	if (!context->looks[shard] || context->quiet[shard] - context->heard[shard] >= QUIET_MOST)
		return false;
	__sync_fetch_and_add(&context->quiet[shard], 1);
	return true;
}

static __always_inline bool is_awake(const struct mprox_context *context, __u32 shard)
{
	return context && *(volatile const __u32 *)&context->awake[shard];
}

/*
 * An engine that is awake need not be woken, which costs more than all the rest: it looks into its ring before it sleeps. It says
 * first that it will sleep, and looks then; we submit first, and ask then whether it sleeps.
 */
static __always_inline void submit_event(struct mprox_event *event, const struct mprox_member *owner, __u32 shard, bool quiet)
{
	struct mprox_context *context = context_of(owner);
	__u64 flags = 0;
	bool awake;

	shard %= MPROX_SHARDS;
	awake = is_awake(context, shard);
	event->quiet = quiet;
	if (quiet || awake)
		flags = BPF_RB_NO_WAKEUP;
	else if (context && context->quiet[shard] != context->heard[shard])
		flags = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(event, flags);
	if (awake && !quiet && !is_awake(context, shard))
		wake(owner, shard);
}

#endif
