/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of net/mutex_proxy/ and the module share: contexts, their configuration, their flows.
 *
 * Lifetime
 *   A context lives while a descriptor of it is open, a thread group is its member, or a flow belongs to it. Closing
 *   the descriptor makes it `closed`: it never proxies again, its configuration (and with it every password) goes as
 *   soon as no flow uses it, and what is left says only what its members' connects get.
 *
 * Locks, outermost first
 *   context->reading   (mutex)                 one reader of the descriptor at a time
 *   context->control   (mutex)                 one ENABLE, DISABLE or close at a time
 *   globals_lock       (global.c, spinlock)    the GLOBAL contexts of a network namespace
 *   the socket's lock                          of whoever connects, or answers a connect
 *   context->lock      (spinlock, BH disabled) state, error text
 *   flow->lock         (spinlock, BH disabled) one flow
 * context->config and signal_struct::mutex_proxy are read under RCU; the latter is replaced by xchg().
 */
#ifndef _MUTEX_PROXY_CONTEXT_H
#define _MUTEX_PROXY_CONTEXT_H

#include <linux/mutex.h>
#include <linux/mutex_proxy.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <uapi/linux/mutex_proxy.h>
#include "proto/config.h"

#undef pr_fmt
#define pr_fmt(fmt) "mutex_proxy: " fmt

/**
 * struct mutex_proxy_server - one server line and what became of it
 * @line: what was written, password included. Immutable. A host of kind MPROTO_HOST_NAME is accepted: whoever dials
 *	resolves it, or counts the server as failed.
 * @connected: flows this server has connected
 * @refused: flows it has refused
 * @failed: times it could not be used
 * @down_until: jiffies until which it is passed over, 0 when it is up; written without a lock (WRITE_ONCE)
 */
struct mutex_proxy_server {
	struct mproto_config_server line;
	atomic64_t connected;
	atomic64_t refused;
	atomic64_t failed;
	unsigned long down_until;
};

/**
 * struct mutex_proxy_config - one configuration; immutable once published but for what is said to be atomic
 * @users: references; the last one wipes it
 * @rcu: readers find it under RCU
 * @settings: strategy, on-close, udp, timeout (MPROTO_STRATEGY_* and so on in proto/config.h)
 * @turn: how often round-robin has chosen
 * @n_bypass: entries of @bypass
 * @bypass: what is not proxied; behind @servers, in the same allocation
 * @n_servers: entries of @servers
 * @servers: sorted as they were written
 */
struct mutex_proxy_config {
	refcount_t users;
	struct rcu_head rcu;
	struct mproto_config_settings settings;
	atomic_t turn;
	u32 n_bypass;
	struct mproto_prefix *bypass;
	u32 n_servers;
	struct mutex_proxy_server servers[];
};

/**
 * struct mutex_proxy_context - what one descriptor stands for
 * @refs: the descriptor, each member, each flow, and the list of GLOBAL contexts hold one each
 * @rcu: signal_struct::mutex_proxy and the GLOBAL list are read under RCU
 * @net: the namespace it was made in; referenced until @closed, not to be looked at afterwards
 * @user_ns: that namespace's owner: members must be in it or below; referenced
 * @user: who is charged for it; referenced
 * @owner_pid: who made it; referenced
 * @owner_uid: and as whom
 * @owner_gid: and as whom
 * @comm: and its name
 * @flags: MUTEX_PROXY_* it was made with
 * @control: guards @enabled, @closed and @refuse, which are read without a lock
 * @enabled: ENABLE was called since the last DISABLE
 * @closed: the last descriptor is gone; final
 * @refuse: valid when @closed: it was enabled, and on-close said refuse
 * @lock: BH disabled; guards what follows up to @config
 * @changes: what there has been to read, from 1
 * @seen: of these, what has been read; there is something to read when they differ
 * @next_read: jiffies before which there is nothing to read in spite of that
 * @generation: grows whenever the configuration, the state or the members change
 * @error: last error, for people; empty when there was none
 * @config: never NULL until @closed; replaced under @lock, read under RCU
 * @reading: one reader at a time
 * @wait: readers and pollers
 * @wake: wakes them when @next_read has come
 * @globals: entry in the namespace's list while it is an enabled GLOBAL one; globals_lock
 * @listed: whether it is in that list; globals_lock
 * @flows: by id; read under RCU
 * @last_flow: id of the flow made last
 * @members: thread groups now
 * @active: flows now
 * @connecting: flows in the handshake now
 * @connected: flows connected ever
 * @refused: connects a server has answered with an error
 * @failed: connects for which no server could be used
 * @bypassed: connects sent directly
 * @blocked: packets and connects not let out
 * @bytes_sent: of flows that have ended; those of living flows are read from their sockets
 * @bytes_received: the same
 */
struct mutex_proxy_context {
	refcount_t refs;
	struct rcu_head rcu;
	struct net *net;
	struct user_namespace *user_ns;
	struct user_struct *user;
	struct pid *owner_pid;
	kuid_t owner_uid;
	kgid_t owner_gid;
	char comm[TASK_COMM_LEN];
	unsigned int flags;

	struct mutex control;
	bool enabled;
	bool closed;
	bool refuse;

	spinlock_t lock;
	u64 changes;
	u64 seen;
	unsigned long next_read;
	u64 generation;
	char error[256];
	struct mutex_proxy_config __rcu *config;

	struct mutex reading;
	wait_queue_head_t wait;
	struct delayed_work wake;
	struct list_head globals;
	bool listed;

	struct xarray flows;
	atomic64_t last_flow;
	atomic64_t members;
	atomic64_t active;
	atomic64_t connecting;
	atomic64_t connected;
	atomic64_t refused;
	atomic64_t failed;
	atomic64_t bypassed;
	atomic64_t blocked;
	atomic64_t bytes_sent;
	atomic64_t bytes_received;
};

/* ---- context.c ---- */

struct mutex_proxy_context *mutex_proxy_context_create(unsigned int flags);
void mutex_proxy_context_close(struct mutex_proxy_context *context);
/* Callable with BH disabled. */
void mutex_proxy_context_put(struct mutex_proxy_context *context);
static inline struct mutex_proxy_context *mutex_proxy_context_get(struct mutex_proxy_context *context)
{
	refcount_inc(&context->refs);
	return context;
}

static inline bool mutex_proxy_context_closed(const struct mutex_proxy_context *context)
{
	/* Pairs with mutex_proxy_context_close(): who sees it closed sees what @refuse says. */
	return smp_load_acquire(&context->closed);
}

/* The generation grows and readers wake. Callable with BH disabled. */
void mutex_proxy_context_changed(struct mutex_proxy_context *context);

/* Sets the text behind `error:` and wakes readers; the generation stays. One line, no password, no final newline. */
__printf(2, 3) void mutex_proxy_context_error(struct mutex_proxy_context *context, const char *format, ...);

int mutex_proxy_context_enable(struct mutex_proxy_context *context);
void mutex_proxy_context_disable(struct mutex_proxy_context *context);

/* Whether there is something to read. @lock is held. */
bool mutex_proxy_context_readable(const struct mutex_proxy_context *context);
/* A reader has what had happened when @changes was what it says. */
void mutex_proxy_context_seen(struct mutex_proxy_context *context, u64 changes);

/* ---- global.c ---- */

void mutex_proxy_global_add(struct mutex_proxy_context *context);
void mutex_proxy_global_remove(struct mutex_proxy_context *context);
/* The context that governs those in @net who are in no other, referenced; or NULL. Under RCU. */
struct mutex_proxy_context *mutex_proxy_global_of(struct net *net);

/* ---- member.c ---- */

enum mutex_proxy_verdict {
	MUTEX_PROXY_DIRECT, /* no context, a disabled one, or one that closed with on-close direct */
	MUTEX_PROXY_PROXY,
	MUTEX_PROXY_REFUSE, /* closed with on-close refuse: ENETUNREACH */
};

/*
 * The context that governs what current does in @net, referenced; NULL exactly when the verdict is DIRECT. A member's
 * context follows it into every network namespace; a GLOBAL one governs its own.
 */
struct mutex_proxy_context *mutex_proxy_context_of_current(struct net *net, enum mutex_proxy_verdict *verdict);

int mutex_proxy_member_join(struct mutex_proxy_context *context, struct task_struct *task);
int mutex_proxy_member_leave(struct mutex_proxy_context *context, struct task_struct *task);

/* ---- config.c ---- */

/* NULL and *@error set: -ENOMEM, or -EINVAL with reader->line and ->error filled. */
struct mutex_proxy_config *mutex_proxy_config_parse(const char *text, size_t length,
						    struct mproto_config_reader *reader, int *error);
/* Parses and publishes; EINVAL with the error text set when a line is bad, and then nothing has changed. */
int mutex_proxy_config_set(struct mutex_proxy_context *context, const char *text, size_t length);
/* The configuration in force, referenced; NULL when the context is closed. */
struct mutex_proxy_config *mutex_proxy_config_get(struct mutex_proxy_context *context);
/* Callable with BH disabled. */
void mutex_proxy_config_put(struct mutex_proxy_config *config);

/* ---- choose.c: which server next ---- */

/*
 * The server to try, as an index; -1 when every usable one is in @tried. Servers that are down are passed over while
 * another is up. The best (lowest) priority goes first; among equals the strategy decides.
 */
int mutex_proxy_choose(struct mutex_proxy_config *config, u64 tried);
void mutex_proxy_server_failed(struct mutex_proxy_server *server); /* passed over for MUTEX_PROXY_DOWN_MS */
void mutex_proxy_server_works(struct mutex_proxy_server *server);
bool mutex_proxy_server_is_up(const struct mutex_proxy_server *server);
/* True when @ip (v4-mapped for IPv4), @port is not to be proxied. */
bool mutex_proxy_bypassed(const struct mutex_proxy_config *config, const struct in6_addr *ip, u16 port);

/* ---- flow.c ---- */

/**
 * struct mutex_proxy_flow - one proxied connection, from connect() until its socket is released
 * @users: the context's table and whoever works on it
 * @rcu: the table is read under RCU
 * @context: referenced
 * @config: what it was dialled with; referenced until the handshake has ended, then NULL; @lock
 * @id: unique within the context
 * @started: ktime_get_boottime_ns() at connect()
 * @pid: of the connecting process; referenced
 * @lock: BH disabled; inside the socket's lock, guards what follows
 * @sk: the application's socket while it lives
 * @hold: what the module works with while the socket is held; written under the socket's lock, read under RCU
 * @local: what getsockname() shows, as if the connection were direct; unspecified: what the socket has. Set before @sk is
 *	held, then constant
 * @af_ops: with the next two: what made the socket one of its own address family before it dialled; the socket's lock
 * @backlog_rcv: see @af_ops
 * @af_specific: see @af_ops
 * @unbound: the socket was bound to an address from which its proxies cannot be reached: they are dialled from another,
 *	and @bound is given back when the socket has done with them; the socket's lock
 * @bound: the addresses, as struct sock and its like have them
 * @bound_port: the socket was bound to this port, from which another one is connected to the same proxy: it was dialled
 *	from another port; 0: no; the socket's lock
 * @state: MUTEX_PROXY_FLOW_*
 * @server: index of the server in the configuration
 * @destination: where the application wanted to go (v4-mapped for IPv4)
 * @port: host order
 * @greeting_sent: bytes of ours in the stream, not to be counted as the application's
 * @greeting_received: bytes of the server's in the stream
 */
struct mutex_proxy_flow {
	refcount_t users;
	struct rcu_head rcu;
	struct mutex_proxy_context *context;
	struct mutex_proxy_config *config;
	u64 id;
	u64 started;
	struct pid *pid;

	spinlock_t lock;
	struct sock *sk;
	struct mutex_proxy_hold *hold;
	struct in6_addr local;
	const struct inet_connection_sock_af_ops *af_ops;
	int (*backlog_rcv)(struct sock *sk, struct sk_buff *skb);
	const struct tcp_sock_af_ops *af_specific;
	bool unbound;
	struct {
		struct in6_addr rcv6, source6;
		__be32 rcv4, source4;
	} bound;
	u16 bound_port;
	u8 state;
	u16 server;
	u16 port;
	struct in6_addr destination;
	u32 greeting_sent;
	u32 greeting_received;
};

/* A new flow in state CONNECTING, in the context's table; takes its own references. ERR_PTR: ENOMEM, EAGAIN (limit). */
struct mutex_proxy_flow *mutex_proxy_flow_create(struct mutex_proxy_context *context, struct mutex_proxy_config *config,
						 struct sock *sk, const struct in6_addr *destination, u16 port);
/* CONNECTING to CONNECTED; drops the configuration. */
void mutex_proxy_flow_connected(struct mutex_proxy_flow *flow, u16 server, u32 greeting_sent, u32 greeting_received);
/* Ends it, in whichever state: out of the table, bytes added to the context. The socket still exists. Once only. */
void mutex_proxy_flow_end(struct mutex_proxy_flow *flow);
void mutex_proxy_flow_put(struct mutex_proxy_flow *flow);
/* Bytes of the application's, by now. */
void mutex_proxy_flow_bytes(struct mutex_proxy_flow *flow, u64 *sent, u64 *received);
/* The flow with the least id greater than @after, referenced; or NULL. */
struct mutex_proxy_flow *mutex_proxy_flow_after(struct mutex_proxy_context *context, u64 after);
/* Of all flows, living and ended. May sleep. */
void mutex_proxy_context_bytes(struct mutex_proxy_context *context, u64 *sent, u64 *received);

/* ---- snapshot.c ---- */

#define MUTEX_PROXY_SUMMARY_MAX 2048
/*
 * Fills a whole snapshot when there is room for MUTEX_PROXY_SNAPSHOT_MAX bytes, otherwise (MUTEX_PROXY_SUMMARY_MAX) one
 * without the lines of the servers and the error. @lock is not held. May sleep.
 */
size_t mutex_proxy_snapshot(struct mutex_proxy_context *context, char *text, size_t room);
#define MUTEX_PROXY_CANONICAL_MAX (MUTEX_PROXY_SERVERS_MAX * 320 + MUTEX_PROXY_BYPASS_MAX * 72 + 256)
/* Fills at most MUTEX_PROXY_CANONICAL_MAX bytes with the configuration, without users and passwords. */
size_t mutex_proxy_canonical(const struct mutex_proxy_config *config, char *text);

/* ---- descriptor.c, ioctl.c ---- */

struct file *mutex_proxy_descriptor(struct mutex_proxy_context *context);
long mutex_proxy_ioctl(struct file *file, unsigned int command, unsigned long argument);

/* ---- sysfs.c: limits and totals of the whole machine ---- */

/**
 * struct mutex_proxy_limits - what may be set under /sys/kernel/mutex_proxy/limits/
 * @contexts: alive at a time
 * @contexts_per_user: of these, charged to one user
 * @flows_per_context: alive at a time
 */
struct mutex_proxy_limits {
	unsigned int contexts;
	unsigned int contexts_per_user;
	unsigned int flows_per_context;
};

/**
 * struct mutex_proxy_now - what there is on the whole machine
 * @contexts: not yet freed
 * @members: thread groups that are a member of one
 * @flows: in the table of one
 */
struct mutex_proxy_now {
	atomic_t contexts;
	atomic_t members;
	atomic_t flows;
};

/**
 * struct mutex_proxy_totals - what there has been since the start of the machine
 * @contexts: made
 * @denied: calls refused for want of CAP_NET_ADMIN
 * @flows: made
 */
struct mutex_proxy_totals {
	atomic64_t contexts;
	atomic64_t denied;
	atomic64_t flows;
};

extern struct mutex_proxy_limits mutex_proxy_limits;
extern struct mutex_proxy_now mutex_proxy_now;
extern struct mutex_proxy_totals mutex_proxy_totals;

/* ---- ops.c: the module ---- */

/**
 * struct mutex_proxy_ops - what the module does
 * @owner: THIS_MODULE
 * @connect: current wants @sk connected; under its lock, between mutex_proxy_ops_enter() and _leave(). 0: it is held, and
 *	a dial has begun. 1: it goes directly. Otherwise the error of connect(), and the socket is as it was.
 * @event: something has happened to a held socket. In BH or under the socket's lock; under RCU
 * @proceed: the same, under the socket's lock by somebody who may sleep; between mutex_proxy_ops_enter() and _leave()
 * @abandoned: a socket is no longer held, because the application closed it or gave up. The same
 */
struct mutex_proxy_ops {
	struct module *owner;
	int (*connect)(struct mutex_proxy_context *context, struct sock *sk, const struct in6_addr *destination, u16 port);
	void (*event)(struct mutex_proxy_hold *hold);
	void (*proceed)(struct mutex_proxy_hold *hold);
	void (*abandoned)(struct mutex_proxy_hold *hold);
};

/* EBUSY when another is registered. */
int mutex_proxy_register(const struct mutex_proxy_ops *ops);
/* Returns when no call is inside any more. */
void mutex_proxy_unregister(const struct mutex_proxy_ops *ops);
/* NULL: no module, and nothing to leave. May sleep until _leave(). */
const struct mutex_proxy_ops *mutex_proxy_ops_enter(int *index);
void mutex_proxy_ops_leave(int index);
bool mutex_proxy_ops_present(void);

/* ---- socket.c: a held socket; for the module, and under the socket's lock ---- */

/**
 * struct mutex_proxy_hold - what a held socket had before, and what befell it; part of the module's own structure,
 *	which stays readable for an RCU grace period
 * @ops: whom to tell
 * @error: the errno (positive) with which the dial has ended, or 0; read it when the socket is in TCP_CLOSE
 * @attended: a blocked connect() hears of events and proceeds with them
 * @state_change: and the rest: given back or restored for the next dial
 */
struct mutex_proxy_hold {
	const struct mutex_proxy_ops *ops;
	int error;
	bool attended;
	void (*state_change)(struct sock *sk);
	void (*data_ready)(struct sock *sk);
	void (*write_space)(struct sock *sk);
	u32 window_clamp;
	u16 user_mss;
	int peek_off;
	int rcvlowat;
};

/* The socket is held from now on. Takes over the caller's reference to the flow. */
void mutex_proxy_hold(struct mutex_proxy_flow *flow, struct mutex_proxy_hold *hold, const struct mutex_proxy_ops *ops);
/* Begins to connect a held socket to a server, after whatever it did before. An error (negative): try another. */
int mutex_proxy_dial(struct mutex_proxy_flow *flow, const struct mproto_endpoint *server);
/* What was sent on it leaves now, also when the application has corked it. */
void mutex_proxy_push(struct sock *sk);
/* It is through: the application has it, and what is still unread is the destination's. */
void mutex_proxy_open(struct mutex_proxy_flow *flow, u16 server, u32 greeting_sent, u32 greeting_received);
/* Its connect() fails with this error (positive), as if the destination had refused it. The flow is gone afterwards. */
void mutex_proxy_refuse(struct mutex_proxy_flow *flow, int error);
/* As it was before mutex_proxy_hold(), within connect() itself. The flow is gone afterwards. */
void mutex_proxy_drop(struct mutex_proxy_flow *flow);

/* Is a datagram of current's to this destination blocked? Counts it when it is. BH may be disabled. */
bool mutex_proxy_blocks(struct net *net, const struct in6_addr *destination, u16 port);

#endif
