/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What the BPF programs and the engine share: the maps' keys and values and the events.
 *
 * One set of programs serves every context of the machine. A context has a slot; a slot's generation changes
 * each time it is taken, so what still names an earlier owner (a socket that outlived its engine) is told apart.
 * Addresses are 16 bytes, IPv4 as v4-mapped; ports are in host order.
 */
#ifndef MPROX_BPF_H
#define MPROX_BPF_H

#include <linux/types.h>

#define MPROX_SLOTS 1024 /* contexts at once on one machine */
#define MPROX_SHARDS 4 /* rings, and engine threads, of one context */
#define MPROX_RING_BYTES (512 * 1024)
#define MPROX_BYPASS_MAX 65536 /* entries of all contexts together */

/*
 * A held connect() is pointed at an address nobody listens on. IPv4 has 4 million of them, so one port is
 * enough; IPv6 has only ::1, so the ports vary. Both lie where no service is registered and where the kernel
 * does not look for ephemeral ports.
 */
#define MPROX_HELD_NET4 0x7f400000 /* 127.64.0.0/10 */
#define MPROX_HELD_MASK4 0x003fffff
#define MPROX_HELD_PORT4 957
#define MPROX_HELD_PORT6 958 /* the first of */
#define MPROX_HELD_PORTS6 31

#define MPROX_BLOCK_UDP 0x1 /* context flag: UDP, ICMP and raw sockets of members fail */

union mprox_ip {
	__u8 byte[16];
	__u32 word[4]; /* network order */
	__u64 half[2];
};

struct mprox_member {
	__u32 slot;
	__u32 generation;
};

/* An element of an array that the engines map into memory. */
struct mprox_context {
	__u32 generation; /* 0: the slot is free */
	__u32 alive; /* the engine lives: set by `serve`, cleared when its process ends, however it ends */
	__u32 engine; /* its thread group id */
	__u32 flags;
	__u32 timeout; /* milliseconds a connect() may stay unanswered */
	__u32 shards; /* threads of the engine */
	__u32 spread; /* those of them that new connects go to, until they have no room */
	__u32 room; /* connections that one of them has room for */
	__u64 members; /* thread groups */
	__u64 held; /* connects caught */
	__u64 denied; /* connects refused without asking the engine: it is gone, or no memory */
	__u64 netns; /* cookie of the network namespace that local4 and local6 belong to */
	__u64 reported[MPROX_SHARDS]; /* connects that each thread was told of */
	__u64 done[MPROX_SHARDS]; /* and how many of their connections are over; by the engine */
	union mprox_ip local4; /* the source address that the routing table gives, or zero */
	union mprox_ip local6;
};

/* Longest prefix match, port first: an entry for one port must not be hidden by a longer one for another. */
struct mprox_bypass_key {
	__u32 bits; /* that count, of the rest */
	__u32 slot;
	__u32 port; /* 0: every port; and MPROX_BYPASS_IP4, so that ::/0 says nothing of IPv4 */
	__u32 ip[4]; /* as union mprox_ip, without its alignment */
};
#define MPROX_BYPASS_FIXED_BITS (32 + 32)
#define MPROX_BYPASS_IP4 0x10000

enum mprox_event_kind {
	MPROX_EVENT_HELD = 1, /* a connect() waits for an answer; once for each */
	MPROX_EVENT_ENDED, /* it waits no more: closed, timed out, or refused by us */
	MPROX_EVENT_EMPTY, /* the last member is gone */
};

struct mprox_event {
	__u32 kind;
	__u32 attempt; /* of this socket: a socket may be connected again after a failure */
	__u64 cookie; /* of the socket */
	__u64 netns; /* cookie of its network namespace */
	__u32 tgid; /* of the caller of connect() */
	__u32 sequence; /* the SYN's, host order */
	__u32 device; /* SO_BINDTODEVICE index, or 0 */
	__u32 mark; /* SO_MARK */
	union mprox_ip destination; /* where the application wants to go */
	union mprox_ip held; /* where it was pointed at */
	union mprox_ip source; /* where its SYN came from */
	union mprox_ip bound; /* the address it was bound to before, or zero */
	__u16 destination_port;
	__u16 held_port;
	__u16 source_port;
	__u8 ipv6; /* the packets are IPv6 */
	__u8 pad;
};

/* Argument of `join` and `serve`, which act on the process that runs them (BPF_PROG_RUN). */
struct mprox_call {
	__u32 slot;
	__u32 generation;
};

#endif
