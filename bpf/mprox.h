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

#define MPROX_SPARES 32 /* held addresses at which one thread of the engine keeps sockets, as is told to the programs */

#define MPROX_OPTIONS_MAX 40 /* bytes of TCP options in a segment */
#define MPROX_POOL_MOST 64 /* connections that wait in one pool; a power of 2 */
#define MPROX_REQUEST_MOST 24 /* bytes of a SOCKS5 request for an address, and to spare: a multiple of 4 */
#define MPROX_REPLY_MOST 32
#define MPROX_SPLICES_MAX 262144 /* directions of spliced connections, of all contexts together */

/*
 * The application's socket never sees the server's clock, nor the server the application's: two clocks that are read at
 * different moments differ by this at most, in milliseconds. The server must not see time go back.
 */
#define MPROX_CLOCK_SLACK 2

#define SOCKS5 5
#define SOCKS5_CONNECT 1
#define SOCKS5_IP4 1
#define SOCKS5_IP6 4
#define GREETING 3 /* bytes of a SOCKS5 greeting without a password, and of its answer (RFC 1928 section 3) */
#define GREETED 2
#define REQUEST_IP4 10 /* bytes of a SOCKS5 request or reply with an address (RFC 1928 sections 4 and 6) */
#define REQUEST_IP6 22

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
	__u64 missed[MPROX_SHARDS]; /* ends of spliced connections that each thread was not told of: its ring was full */
	__u64 opened[MPROX_SHARDS]; /* cookie of the last of each thread's sockets that took the answer of a spliced one */
	__u64 quiet[MPROX_SHARDS]; /* events that each thread was not woken for, */
	__u64 heard[MPROX_SHARDS]; /* and how many of these it has read; by the engine, as the next */
	__u32 looks[MPROX_SHARDS]; /* it will read its ring in no time, also when nobody wakes it */
	__u32 awake[MPROX_SHARDS]; /* it will read its ring before it sleeps; by the engine */
	__u32 spares[MPROX_SHARDS][MPROX_SPARES]; /* IPv4 addresses at which each thread has a bound socket already, or 0 */
	__u64 unwatched; /* the engine's own connects whose packets are not watched; `error` of the socket says why */
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
	MPROX_EVENT_CLOSED, /* the application's socket of a spliced connection is closed; `state` is what it was before */
	MPROX_EVENT_POOL, /* the thread's pool wants a look: it runs low, or a server's reply is not for us to judge */
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
	__u8 state; /* of a CLOSED event: the socket's last one, as in enum tcp_state */
	__u64 time; /* when the SYN was sent, by CLOCK_MONOTONIC */
	__u16 window; /* the SYN's */
	__u8 tcp_flags; /* the SYN's: CWR and ECE ask for ECN */
	__u8 ip_options; /* the SYN bears IP options or extension headers */
	__u8 options_size;
	__u8 quiet; /* the engine was not woken for it */
	__u8 pad[2];
	__u8 options[MPROX_OPTIONS_MAX]; /* the SYN's TCP options, as on the wire */
};

/* Of a SYN that becomes a request on lo, or goes nowhere. The application's socket has none then. */
#define MPROX_MARK 0x4d584153

/* A direction of a spliced connection, as its packets look before they are translated. Ports in network order. */
struct mprox_splice_key {
	__u64 netns; /* cookie */
	union mprox_ip source;
	union mprox_ip destination;
	__u16 source_port;
	__u16 destination_port;
	__u32 pad;
};

enum mprox_splice_way {
	MPROX_WAY_WATCH, /* nothing is changed: what passes is noted */
	MPROX_WAY_STAY, /* translated on lo, where it goes on: the other end is on this host */
	MPROX_WAY_OUT, /* translated on lo, leaves through `ifindex` */
	MPROX_WAY_IN, /* translated where it came in, goes on to the application's socket: straight, or through lo */
};

#define MPROX_SEEN_FIN 0x1
#define MPROX_SEEN_RST 0x2
#define MPROX_OPENED 0x4 /* the application's socket is established; in both directions */
#define MPROX_CLOSED 0x8 /* it is closed */
#define MPROX_KEPT 0x10 /* the engine has a socket of that name: what is not the application's ends there, without a word */
#define MPROX_UNDELIVERED 0x20 /* packets do not reach the application's socket but through lo */
#define MPROX_STATE_SHIFT 8 /* above them, of one that is closed: its last state, as in enum tcp_state */

/* What becomes of a packet, and what has passed. The engine writes the first part once, the programs the second. */
struct mprox_splice {
	__u64 cookie; /* of the application's socket */
	__u32 attempt; /* of that socket: its next connection may have the same addresses and ports */
	__u32 ifindex; /* to leave through; of a WATCH: where the packets came in; of an IN: where an answer to them goes */
	union mprox_ip source; /* the packet's new ones */
	union mprox_ip destination;
	__u16 source_port; /* network order, as the next */
	__u16 destination_port;
	__u8 way; /* enum mprox_splice_way */
	__u8 window_left, window_right; /* shifts, in this order */
	__u8 outward; /* from the application */
	struct mprox_member owner;
	__u32 sequence; /* these are added */
	__u32 acknowledgement; /* and to SACK blocks */
	__u32 timestamp;
	__u32 echo;
	__u32 ready; /* until the application's socket is open: number in the pool, plus 1, of what it was asked with; or 0 */
	__u32 shard; /* whose pool */

	__u32 seen; /* MPROX_SEEN_... */
	__u32 received; /* segments by the application's socket when one was given to it directly last */
	__u32 silent; /* since when that has not grown: milliseconds of CLOCK_MONOTONIC, or 0 */
	__u32 wanted, wanted_since; /* the same of bytes that come again while the socket waits for them: the first's number */
	__u32 last_timestamp; /* as sent */
	__u32 next; /* end of the bytes sent so far, before translation */
	__u32 acked; /* before translation */
	__u64 bytes; /* payload, each byte once */
	__u64 packets;
	__u64 closed; /* CLOCK_MONOTONIC */
};

/* A socket of an engine's on its way to a server. */
struct mprox_dial {
	struct mprox_member owner; /* the engine writes this, */
	__u32 window; /* this (TCP_WINDOW_CLAMP, or 0) */
	__u32 error; /* why nothing is watched, as errno: EEXIST when another connection has these addresses and ports */
	struct mprox_splice_key inward; /* of the server's packets; and the namespace in this */
	__u32 send_next, receive_next; /* the first bytes' sequence numbers */
	__u32 clock; /* the timestamp that the SYN bore, or 0; */
	__u16 warm; /* the engine: it is made ahead, and others may send in its place */
	__u16 revived; /* the engine: its connection was there before it, and all of this is known */
	__u64 time; /* and when, or a little before; CLOCK_MONOTONIC */
};

/*
 * One that waits in a pool, connected and greeted, or a port from which the server can be connected to; or the connect() that
 * has taken it.
 */
enum mprox_ready_state {
	MPROX_READY_FREE, /* nothing here; the engine's */
	MPROX_READY_WAITS, /* from here on states change by compare and swap only */
	MPROX_READY_TAKEN, /* by a program, or the engine, for a moment */
	MPROX_READY_DIALLED, /* the SYN has gone to the server, from a port; */
	MPROX_READY_GREETED, /* its SYN-ACK has become the greeting; and the answer to that becomes the request */
	MPROX_READY_ASKED, /* the SYN has become a request */
	MPROX_READY_ANSWERED, /* the reply has become a SYN-ACK */
	MPROX_READY_OPEN, /* the application's socket is open; the rest is for the engine to see to: */
	MPROX_READY_GONE, /* the connect() has ended */
	MPROX_READY_STUCK, /* the server says something else, or nothing */
	MPROX_READY_BROKEN, /* it could not be taken */
};

struct mprox_ready {
	/* By the engine. */
	__u64 netns;
	struct mprox_splice_key inward_key;
	union mprox_ip local; /* what getsockname() shall show; zero: what it would anyway */
	__u32 device; /* where the server's packets come in */
	__u32 send_next, receive_next; /* of the connection */
	__u32 clock; /* its timestamps: this, plus the milliseconds of CLOCK_MONOTONIC */
	__u16 mss; /* for the SYN-ACK, as the next */
	__u16 window;
	__u8 ipv6;
	__u8 scale; /* what the application must offer */
	__u8 receive_scale, send_scale; /* of the connection */
	__u8 sack;
	__u8 port; /* only that: the programs connect it, which tells them all but the clock and this: */
	__u16 own_mss; /* for the SYN */
	__u32 rtt; /* to the server, microseconds; the engine alone asks this */
	/* By whoever has taken it. */
	__u32 number; /* of this one */
	__u32 sent; /* the end of what has been sent from a port, as sequence number */
	struct mprox_event held; /* the connect() */
	/* By the programs. */
	struct mprox_splice_key outward_key;
	struct mprox_splice outward, inward; /* as they were entered */
	__u32 request_size;
	__u32 reply_size; /* of a whole reply that says no, or 0 */
	__u8 request[MPROX_REQUEST_MOST];
	__u8 reply[MPROX_REPLY_MOST];
};

/* The connections that the programs answer a connect() with by themselves. One thread of an engine fills it. */
struct mprox_pool {
	__u32 waiting; /* how many do */
	__u32 low; /* when so many are left the engine is told */
	__u32 fewest; /* there were at any time; the engine raises it again */
	__u32 ports, ports_low; /* the same, of ports */
	__u32 pad;
	__u32 state[MPROX_POOL_MOST]; /* enum mprox_ready_state */
	struct mprox_ready ready[MPROX_POOL_MOST];
};

/* Argument of `ask`: that one, which the engine has taken, and whose connect() it has filled in. */
struct mprox_ask {
	struct mprox_member owner;
	__u32 shard;
	__u32 number;
};

/* Argument of `take_back`: the connection is its socket's again. */
struct mprox_take_back {
	struct mprox_splice_key outward_key, inward_key;
	__u64 cookie; /* of the application's socket */
	__u32 attempt;
	__u32 device; /* as in struct mprox_ready, and the next */
	__u32 send_next, receive_next;
};

/* Argument of `hand_over`. `inward` says what the socket has received and sent so far (next, acked). */
struct mprox_hand_over {
	struct mprox_splice_key outward_key, inward_key;
	struct mprox_splice outward, inward;
	__u32 ifindex; /* where the server's packets must have come in */
	__u32 seen; /* the end of what it has sent: as received, or more, of which the socket has taken nothing; as it is */
};

/* What comes of that; nothing is changed but by the first. */
enum mprox_handed {
	MPROX_HANDED,
	MPROX_HANDED_UNSEEN, /* the server's packets do not come as they should, or nowhere */
	MPROX_HANDED_ELSEWHERE, /* they come in by another device */
	MPROX_HANDED_BUSY, /* more has been seen, which the socket may get yet */
	MPROX_HANDED_FULL,
};

struct mprox_measured {
	__u64 bytes;
	__u32 seen, next, acked; /* as in the entry */
	__u32 ours; /* the entry is there, and of that attempt; otherwise the rest is as it was before */
};

/* Argument of `measure`. */
struct mprox_measure {
	struct mprox_splice_key outward_key, inward_key;
	__u64 cookie; /* of the application's socket */
	__u32 attempt;
	__u32 remove; /* take the entries away as well */
	struct mprox_measured outward, inward;
};

/* Argument of `reroute`: the packets of that direction leave through another device from now on. */
struct mprox_reroute {
	struct mprox_splice_key key;
	__u32 ifindex;
	__u32 pad;
};

/* Where a tc program of ours is attached, in a namespace. */
struct mprox_hook {
	__u64 netns;
	__u32 ifindex;
	__u32 pad;
};

/* How. What is to be undone when nobody needs it any more. */
enum mprox_hook_kind {
	MPROX_HOOK_FILTER, /* a filter of a clsact qdisc that was there */
	MPROX_HOOK_QDISC, /* the qdisc is ours as well */
	MPROX_HOOK_LINK, /* tcx (Linux 6.6): a link, pinned */
};

/* A context whose engine needs the programs of a namespace. */
struct mprox_hook_user {
	__u64 netns;
	struct mprox_member context;
};

/* Argument of `join` and `serve`, which act on the process that runs them (BPF_PROG_RUN). */
struct mprox_call {
	__u32 slot;
	__u32 generation;
};

#endif
