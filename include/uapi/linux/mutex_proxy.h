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
 * read, a NUL byte among them, is EINVAL: the configuration stays, the generation grows and the snapshot's error line
 * tells. A writev() is one write. What cannot be read from the caller's memory is EFAULT and nothing changes.
 *
 * A snapshot's lines are "key: value"; first state, generation, owner, members; then the counters under the names of
 * struct mutex_proxy_stats; then one line for each server in the order of the configuration; last the error:
 *	state: enabled | disabled
 *	generation: 3
 *	owner: pid 812 uid 0 gid 0 comm curl
 *	members: 1
 *	active: 0	(connecting, connected, refused, failed, bypassed, blocked, bytes_sent, bytes_received alike)
 *	server: socks5://10.0.0.1:1080 weight=1 priority=0 state=up connected=0 refused=0 failed=0	(state=up | down)
 *	error: none | line 2, column 8: REASON		both from 1, the column in bytes; a good write clears it
 * fdinfo has the lines from state to bytes_received. Counters that move do not make the generation grow. A generation
 * is read once from a descriptor, however many threads read it and however often it is duplicated. A readv() is one read.
 *
 * MUTEX_PROXY_IOC_ENABLE: the context is enabled, and the caller's thread group is its member and no other's.
 * EOPNOTSUPP while nothing is there that catches connections (the module is not loaded). The configuration is not
 * looked at. A GLOBAL context takes the namespace from the one that had it, as an enable takes a process.
 * MUTEX_PROXY_IOC_DISABLE: the context governs nobody until it is enabled again; its members stay its members and
 * connect directly. Disabling twice is no error; closing a disabled context frees its members whatever on-close says.
 * Both ignore their argument. Whoever holds the descriptor may do both; a capability is needed to create only. But a
 * process outside the user namespace that owns the context's network namespace is never made a member (EPERM), so that
 * a container's root rules nobody else's connections. A context follows its members into every network namespace; a
 * GLOBAL one governs its own.
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
 *   ATTACH asks for what ptrace(2) asks for (EPERM), and for a living process (ESRCH); it does not turn the context on.
 *   DETACH is ENOENT for a process that is not a member of this context. What is no pidfd: EBADF.
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
	__u64 generation; /* grows whenever the configuration, the state, the members or the last error change */
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

/*
 * MUTEX_PROXY_IOC_ATTACH: does for the process of the pidfd (its whole thread group) what ENABLE does for the caller.
 * MUTEX_PROXY_IOC_DETACH: that process is a member no more; its new connections go directly. In: pidfd.
 * EBADF when it is not a pidfd, ESRCH when the process has ended (reaped or not), EPERM unless the caller may inspect
 * the process (PTRACE_MODE_READ_REALCREDS in ptrace(2): its own user's) or has CAP_NET_ADMIN over the context's network
 * namespace. ATTACH: EOPNOTSUPP as for ENABLE, and before all these. DETACH: ENOENT when it is in no or another context.
 */
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
