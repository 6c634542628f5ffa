/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Adds to the numbers in a segment's TCP options. Plain C but for the loop: user space compiles it as well, for fuzzing.
 *
 * What a receiver would not read is left alone, as a receiver judges: an option of a wrong size, and whatever comes behind
 * one that does not fit.
 */
#ifndef MPROX_OPTIONS_BPF_H
#define MPROX_OPTIONS_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bpf/mprox.h"

#define OPTION_WORDS (MPROX_OPTIONS_MAX / 4)
#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_SACK 5
#define OPTION_SACK_BLOCK 8
#define OPTION_SACK_BLOCKS 4 /* no more fit */
#define OPTION_TIMESTAMP 8
#define OPTION_TIMESTAMP_SIZE 10

/* What to add; and the timestamp that was found. */
struct edit {
	__u32 acknowledgement, timestamp, echo;
	__u32 found;
};

static __always_inline __u32 plus(__u32 network_order, __u32 delta)
{
	return bpf_htonl(bpf_ntohl(network_order) + delta);
}

/* Options laid out in words, as every kernel in use does: true when these were. */
static __always_inline bool edit_words(__u32 *option, __u32 words, struct edit *edit)
{
	bool stamped = words >= 3 && option[0] == bpf_htonl(0x01010000 | OPTION_TIMESTAMP << 8 | OPTION_TIMESTAMP_SIZE);
	__u32 sack = stamped ? 3 : 0;

	if (!stamped || words != 3) {
		__u32 size = bpf_ntohl(stamped ? option[3] : option[0]) ^ (0x01010000 | OPTION_SACK << 8);

		if (size != (words - sack) * 4 - 2 || (size - 2) % OPTION_SACK_BLOCK)
			return false;
	}
	if (stamped) {
		edit->found = bpf_ntohl(option[1]);
		option[1] = plus(option[1], edit->timestamp);
		option[2] = plus(option[2], edit->echo);
	}
	/* The blocks. Without branches: the verifier follows each. */
	for (__u32 i = 1; i < OPTION_WORDS; i++) {
		__s64 in_block = ((__s64)i - (__s64)words) & ((__s64)sack - (__s64)i);

		option[i] = plus(option[i], edit->acknowledgement & (__u32)(in_block >> 63));
	}
	return true;
}

/* The long way: options in any order and at any offset. */
struct option_bytes {
	__u32 length;
	__u32 at;
	struct edit edit;
	__u8 byte[64]; /* a power of 2, for the verifier's sake */
};

static __always_inline __u32 add_at(struct option_bytes *o, __u32 at, __u32 delta)
{
	__u32 value = (__u32)o->byte[at & 63] << 24 | o->byte[(at + 1) & 63] << 16 | o->byte[(at + 2) & 63] << 8 |
		      o->byte[(at + 3) & 63];
	__u32 sum = value + delta;

	o->byte[at & 63] = sum >> 24;
	o->byte[(at + 1) & 63] = sum >> 16;
	o->byte[(at + 2) & 63] = sum >> 8;
	o->byte[(at + 3) & 63] = sum;
	return value;
}

/* One option. False: there is none. */
static __always_inline bool edit_option(struct option_bytes *o)
{
	__u32 at = o->at, kind, size;

	if (at >= o->length)
		return false;
	kind = o->byte[at & 63];
	if (kind == OPTION_END)
		return false;
	if (kind == OPTION_NOP) {
		o->at = at + 1;
		return true;
	}
	size = at + 1 < o->length ? o->byte[(at + 1) & 63] : 0;
	if (size < 2 || at + size > o->length)
		return false;
	if (kind == OPTION_TIMESTAMP && size == OPTION_TIMESTAMP_SIZE) {
		o->edit.found = add_at(o, at + 2, o->edit.timestamp);
		add_at(o, at + 6, o->edit.echo);
	} else if (kind == OPTION_SACK && (size - 2) % OPTION_SACK_BLOCK == 0) {
		for (__u32 number = 0; number < 2 * OPTION_SACK_BLOCKS; number++)
			if (2 + number * 4 < size)
				add_at(o, at + 2 + number * 4, o->edit.acknowledgement);
	}
	o->at = at + size;
	return true;
}

#ifdef __bpf__
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct option_bytes);
} scratch SEC(".maps");

static __always_inline struct option_bytes *find_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static long edit_next(__u32 index, void *context)
{
	struct option_bytes *o = find_scratch();

	return !o || !edit_option(o);
}

static __always_inline void edit_each(struct option_bytes *o)
{
	bpf_loop(MPROX_OPTIONS_MAX, edit_next, (void *)0, 0);
}
#else
static inline struct option_bytes *find_scratch(void)
{
	static struct option_bytes scratch;

	return &scratch;
}

static inline void edit_each(struct option_bytes *o)
{
	while (edit_option(o))
		;
}
#endif

static __always_inline void edit_bytes(__u32 *option, __u32 words, struct edit *edit)
{
	struct option_bytes *o = find_scratch();

	if (!o)
		return;
	o->length = words * 4;
	o->at = 0;
	o->edit = *edit;
	__builtin_memcpy(o->byte, option, MPROX_OPTIONS_MAX);
	edit_each(o);
	edit->found = o->edit.found;
	__builtin_memcpy(option, o->byte, MPROX_OPTIONS_MAX);
}

/* `option` has room for OPTION_WORDS, whatever `words` says. */
static __always_inline void edit_options(__u32 *option, __u32 words, struct edit *edit)
{
	if (words && !edit_words(option, words, edit))
		edit_bytes(option, words, edit);
}

#endif
