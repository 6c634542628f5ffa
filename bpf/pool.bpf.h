/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pools of connections that the engines keep ready, and of ports to make one from. A connect() that finds one waiting is
 * answered without its engine, and both connections are one from the beginning: bpf/ask.bpf.h.
 */
#ifndef MPROX_POOL_BPF_H
#define MPROX_POOL_BPF_H

#include "bpf/common.bpf.h"

/* Slot × MPROX_SHARDS + shard, as the rings. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MPROX_SLOTS * MPROX_SHARDS);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(map_flags, BPF_F_MMAPABLE);
		__uint(max_entries, 1);
		__uint(key_size, sizeof(__u32));
		__uint(value_size, sizeof(struct mprox_pool));
	});
} pools SEC(".maps");

static __always_inline struct mprox_pool *pool_of(const struct mprox_member *owner, __u32 shard)
{
	__u32 index = owner->slot * MPROX_SHARDS + shard % MPROX_SHARDS, zero = 0;
	void *pool = bpf_map_lookup_elem(&pools, &index);

	return pool ? bpf_map_lookup_elem(pool, &zero) : NULL;
}

/* True for who made the change. */
static __always_inline bool move_on(struct mprox_pool *pool, __u32 number, __u32 from, __u32 to)
{
	return __sync_val_compare_and_swap(&pool->state[number % MPROX_POOL_MOST], from, to) == from;
}

/* The engine looks at the states; one that misses this looks anyway, later. */
static __always_inline void tell_of_pool(const struct mprox_member *owner, __u32 shard)
{
	struct mprox_event *event = reserve_event(owner, shard);

	if (!event)
		return;
	event->kind = MPROX_EVENT_POOL;
	submit_event(event, owner, shard, false);
}

/* The timestamp of the SYN, which has Linux's options. */
static __always_inline __u32 stamp_of(const struct mprox_event *held)
{
	__be32 stamp;

	__builtin_memcpy(&stamp, held->options + 8, sizeof(stamp));
	return bpf_ntohl(stamp);
}

/* What the connect() of an entry was asked with, as long as it is that connect()'s. */
static __always_inline struct mprox_ready *ready_of(const struct mprox_splice *splice, struct mprox_pool *pool)
{
	struct mprox_ready *ready = &pool->ready[(splice->ready - 1) % MPROX_POOL_MOST];

	return ready->held.cookie == splice->cookie && ready->held.attempt == splice->attempt ? ready : NULL;
}

#endif
