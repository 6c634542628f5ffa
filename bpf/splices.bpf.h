/* SPDX-License-Identifier: GPL-2.0-only */
/* The spliced connections: the sockops program and the tc programs share this map. */
#ifndef MPROX_SPLICES_BPF_H
#define MPROX_SPLICES_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "bpf/mprox.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MPROX_SPLICES_MAX);
	__type(key, struct mprox_splice_key);
	__type(value, struct mprox_splice);
} splices SEC(".maps");

#endif
