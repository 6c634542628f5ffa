/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The proxy descriptor: what a program and a provider of mprox_create() say to each other.
 *
 * Conventions
 *  1. Every structure begins with its size as the caller knows it. A shorter one than the provider's is read as if
 *     its missing tail were zero, and only that much is written back; a longer one is accepted when what the provider
 *     does not know is zero, otherwise E2BIG, as is a size over 4096. A size that ends before the first version did
 *     is EINVAL. New fields go to the end.
 *  2. Reserved fields and padding are zero, otherwise EINVAL.
 *  3. Addresses are in network order, ports in host order. An IPv4 address is held v4-mapped (::ffff:a.b.c.d).
 *  4. Text is UTF-8, and is not NUL-terminated unless its field says so.
 *
 * The configuration's text, one directive a line, words parted by blanks; '#' at the start of a word begins a comment:
 *	server URI [weight=1..1000] [priority=0..1000]	any number of them up to the limit; from 1, from 0
 *	bypass CIDR | bypass CIDR:port			the same
 *	strategy failover|round-robin|random		each of these at most once; the first word is the default
 *	on-close direct|refuse
 *	udp direct|block
 *	timeout 1..3600					seconds
 * An empty text is a configuration without servers: whom it governs cannot connect (ENETUNREACH). A line that cannot be
 * read, one with a NUL byte among them, is EINVAL. What cannot be read from the caller's memory is EFAULT and nothing
 * changes. A writev() is one write, a readv() one read. fdinfo has all lines of a snapshot but `server` and
 * `error`. Counters that move do not make the generation grow. Duplicates of a
 * descriptor and threads that read it share its news: each goes to one of them. A read() that fails has read nothing.
 */
#ifndef _UAPI_LINUX_MUTEX_PROXY_H
#define _UAPI_LINUX_MUTEX_PROXY_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define MUTEX_PROXY_ABI_VERSION 1

/* flags of mprox_create() */
#define MUTEX_PROXY_CLOEXEC 0x1 /* close on exec */
#define MUTEX_PROXY_NONBLOCK 0x2 /* read() gives EAGAIN rather than wait */
#define MUTEX_PROXY_GLOBAL 0x4 /* every process of the network namespace that is in no other context */
#define MUTEX_PROXY_FLAGS (MUTEX_PROXY_CLOEXEC | MUTEX_PROXY_NONBLOCK | MUTEX_PROXY_GLOBAL)

/* limits of one configuration; writing past one is EINVAL, past the text's E2BIG */
#define MUTEX_PROXY_CONFIG_MAX 65536 /* bytes of text */
#define MUTEX_PROXY_SERVERS_MAX 64
#define MUTEX_PROXY_BYPASS_MAX 1024
#define MUTEX_PROXY_WEIGHT_MAX 1000
#define MUTEX_PROXY_PRIORITY_MAX 1000
#define MUTEX_PROXY_TIMEOUT_MAX 3600 /* seconds */
#define MUTEX_PROXY_TIMEOUT_DEFAULT 60 /* seconds */
#define MUTEX_PROXY_SNAPSHOT_MAX 32768 /* bytes: no snapshot is longer; a read() with so much room never gives EINVAL */

/*
 * What a context applies to
 *   ENABLE makes the caller's thread group a member and turns the context on; with MUTEX_PROXY_GLOBAL it only turns it
 *   on. DISABLE turns it off: members stay members, and connect directly until the next ENABLE. A process is a member
 *   of one context at most: the last ENABLE or ATTACH wins. A member must be in the user namespace that owns the
 *   context's network namespace, or below it: EPERM otherwise. Among GLOBAL contexts of one network namespace the one
 *   enabled last wins. ENABLE is EOPNOTSUPP when nothing is there that could proxy (the module is not loaded).
 *   ATTACH asks for what ptrace(2) asks for (EPERM), and for a living process (ESRCH; a zombie is none); it does not
 *   turn the context on. DETACH is ENOENT for a process that is not a member of this context, ESRCH for one
 *   that has ended; it asks for no more than the descriptor. What is no pidfd: EBADF.
 *   Whoever holds the descriptor may do all this; a capability is needed only to create it. Closing a context that is
 *   off frees its members whatever on-close says. A context follows its members into every network namespace; a GLOBAL
 *   one governs its own, and when it has closed with on-close refuse it refuses until another one is enabled there.
 *
 * Snapshots, as read() gives them: lines of `key: value`, in this order. All keys are always there, but `server`,
 * which is there once for each server line.
 *	state: enabled|disabled
 *	generation: N
 *	scope: members|global
 *	owner: pid=N uid=N gid=N comm=NAME		numbers as the reader's namespaces have them; comm comes last
 *	members: N
 *	strategy: failover|round-robin|random
 *	on-close: direct|refuse
 *	timeout: SECONDS
 *	udp: direct|block
 *	bypass: N					lines
 *	servers: N					lines
 *	server: INDEX URI weight=N priority=N state=up|down connected=N refused=N failed=N
 *	flows: active=N connecting=N
 *	connects: connected=N refused=N failed=N bypassed=N blocked=N
 *	bytes: sent=N received=N
 *	error: none|TEXT				for a refused configuration "line L, column C: REASON", from 1 in bytes
 * A refused configuration makes the descriptor readable though the generation stays; an accepted one clears the error.
 */

/*
 * MUTEX_PROXY_IOC_SET_CONFIG: the same as write(). in: text, length.
 * MUTEX_PROXY_IOC_GET_CONFIG: the configuration in force, in canonical form and without passwords, so that it can
 * be read but not simply written back. in: text, length (the room there is). out: length (what the text takes), and
 * the text when there was room for all of it, otherwise ENOSPC. Without passwords in it, it can be: the canonical form
 * of the canonical form is itself.
 */
struct mutex_proxy_config_text {
	__u32 size; /* bytes of this structure */
	__u32 length; /* bytes */
	__aligned_u64 text; /* a pointer */
};

/* MUTEX_PROXY_IOC_GET_STATS: out: counters since the context was made. */
struct mutex_proxy_stats {
	__u32 size; /* bytes of this structure */
	__u32 enabled; /* 0 or 1 */
	__u64 generation; /* grows whenever the configuration, the state, the members change */
	__u64 members; /* thread groups now */
	__u64 active; /* flows now */
	__u64 connecting; /* of these, in the handshake with the server */
	__u64 connected; /* flows that the server has connected */
	__u64 refused; /* connects answered with an error by a server */
	__u64 failed; /* connects for which no server could be used */
	__u64 bypassed; /* connects sent directly because of a bypass line */
	__u64 blocked; /* packets and connects not let out */
	__u64 bytes_sent; /* by applications to destinations */
	__u64 bytes_received;
};

/* MUTEX_PROXY_IOC_ATTACH, _DETACH: in: pidfd of a process (its whole thread group). */
struct mutex_proxy_target {
	__u32 size; /* bytes of this structure */
	__s32 pidfd;
};

/* what a flow is doing */
#define MUTEX_PROXY_FLOW_CONNECTING 1
#define MUTEX_PROXY_FLOW_CONNECTED 2
#define MUTEX_PROXY_FLOW_CLOSING 3

struct mutex_proxy_connection {
	__u64 id; /* unique within the context, grows */
	__u64 age_ms; /* milliseconds since connect() */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u32 pid; /* of the connecting process, in the reader's pid namespace; 0 when it is not seen there */
	__u16 state; /* MUTEX_PROXY_FLOW_* */
	__u16 server; /* index of the server line in the configuration, from 0 */
	__u16 local_port;
	__u16 port;
	__u8 local[16];
	__u8 destination[16];
	__u32 reserved;
};

/*
 * MUTEX_PROXY_IOC_GET_CONNECTIONS: flows in the order of their ids. in: after (only flows with a greater id; 0 for
 * all), capacity, connections. out: count, and `more` when there were others beyond the capacity.
 */
struct mutex_proxy_connections {
	__u32 size; /* bytes of this structure */
	__u32 connection_size; /* bytes of one entry as the caller knows it */
	__u64 after;
	__u32 capacity; /* entries there is room for */
	__u32 count;
	__u32 more; /* 0 or 1 */
	__u32 reserved;
	__aligned_u64 connections; /* a pointer */
};

#define MUTEX_PROXY_IOC_MAGIC 0xB7
#define MUTEX_PROXY_IOC_ENABLE _IO(MUTEX_PROXY_IOC_MAGIC, 1)
#define MUTEX_PROXY_IOC_DISABLE _IO(MUTEX_PROXY_IOC_MAGIC, 2)
/*
 * Structures grow, so the size in the number is not the one that counts: providers compare type and number only
 * and take the size from the structure's first field.
 */
#define MUTEX_PROXY_IOC_SET_CONFIG _IOW(MUTEX_PROXY_IOC_MAGIC, 3, struct mutex_proxy_config_text)
#define MUTEX_PROXY_IOC_GET_CONFIG _IOWR(MUTEX_PROXY_IOC_MAGIC, 4, struct mutex_proxy_config_text)
#define MUTEX_PROXY_IOC_GET_STATS _IOWR(MUTEX_PROXY_IOC_MAGIC, 5, struct mutex_proxy_stats)
#define MUTEX_PROXY_IOC_ATTACH _IOW(MUTEX_PROXY_IOC_MAGIC, 6, struct mutex_proxy_target)
#define MUTEX_PROXY_IOC_DETACH _IOW(MUTEX_PROXY_IOC_MAGIC, 7, struct mutex_proxy_target)
#define MUTEX_PROXY_IOC_GET_CONNECTIONS _IOWR(MUTEX_PROXY_IOC_MAGIC, 8, struct mutex_proxy_connections)

#endif
