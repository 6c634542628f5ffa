// SPDX-License-Identifier: GPL-2.0-only
/* Flows: a context's table of connections. Bytes are not counted here: the socket knows them. */
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <net/tcp.h>
#include "context.h"

struct mutex_proxy_flow *mutex_proxy_flow_create(struct mutex_proxy_context *context, struct mutex_proxy_config *config,
						 struct sock *sk, const struct in6_addr *destination, u16 port)
{
	struct mutex_proxy_flow *flow;
	int error = -EAGAIN;

	if (atomic64_inc_return(&context->active) > READ_ONCE(mutex_proxy_limits.flows_per_context))
		goto err_active;
	error = -ENOMEM;
	flow = kzalloc(sizeof(*flow), GFP_KERNEL_ACCOUNT);
	if (!flow)
		goto err_active;
	refcount_set(&flow->users, 2); /* the table's and the caller's */
	flow->context = mutex_proxy_context_get(context);
	flow->config = config;
	refcount_inc(&config->users);
	flow->id = atomic64_inc_return(&context->last_flow);
	flow->started = ktime_get_boottime_ns();
	flow->pid = get_pid(task_tgid(current));
	spin_lock_init(&flow->lock);
	flow->sk = sk;
	flow->state = MUTEX_PROXY_FLOW_CONNECTING;
	flow->destination = *destination;
	flow->port = port;
	error = xa_insert_bh(&context->flows, flow->id, flow, GFP_KERNEL_ACCOUNT);
	if (error)
		goto err_free;
	atomic64_inc(&context->connecting);
	atomic_inc(&mutex_proxy_now.flows);
	atomic64_inc(&mutex_proxy_totals.flows);
	return flow;

err_free:
	put_pid(flow->pid);
	mutex_proxy_config_put(config);
	mutex_proxy_context_put(context);
	kfree(flow);
err_active:
	atomic64_dec(&context->active);
	return ERR_PTR(error);
}
EXPORT_SYMBOL_GPL(mutex_proxy_flow_create);

void mutex_proxy_flow_connected(struct mutex_proxy_flow *flow, u16 server, u32 greeting_sent, u32 greeting_received)
{
	struct mutex_proxy_config *config;

	spin_lock_bh(&flow->lock);
	config = flow->config;
	flow->config = NULL;
	flow->server = server;
	flow->greeting_sent = greeting_sent;
	flow->greeting_received = greeting_received;
	flow->state = MUTEX_PROXY_FLOW_CONNECTED;
	spin_unlock_bh(&flow->lock);
	atomic64_dec(&flow->context->connecting);
	atomic64_inc(&flow->context->connected);
	mutex_proxy_config_put(config);
}
EXPORT_SYMBOL_GPL(mutex_proxy_flow_connected);

/*
 * Sent: what has left once, so that neither a SYN or FIN nor a retransmission counts. Received: TCP counts sequence
 * numbers, and the FIN is one. Read without the socket's lock, as tcp_get_info() does for some of it: a reader may see
 * a number that is a moment old.
 */
static void socket_bytes(const struct mutex_proxy_flow *flow, u64 *sent, u64 *received)
{
	const struct tcp_sock *tp = tcp_sk(flow->sk);
	u64 out = READ_ONCE(tp->bytes_sent) - READ_ONCE(tp->bytes_retrans);
	u64 in = READ_ONCE(tp->bytes_received) - sock_flag(flow->sk, SOCK_DONE);

	*sent = out > flow->greeting_sent ? out - flow->greeting_sent : 0;
	*received = in > flow->greeting_received ? in - flow->greeting_received : 0;
}

void mutex_proxy_flow_bytes(struct mutex_proxy_flow *flow, u64 *sent, u64 *received)
{
	*sent = *received = 0;
	spin_lock_bh(&flow->lock);
	if (flow->sk && flow->state == MUTEX_PROXY_FLOW_CONNECTED)
		socket_bytes(flow, sent, received);
	spin_unlock_bh(&flow->lock);
}

void mutex_proxy_flow_end(struct mutex_proxy_flow *flow)
{
	struct mutex_proxy_context *context = flow->context;
	struct mutex_proxy_config *config;
	u64 sent = 0, received = 0;
	bool connecting;

	spin_lock_bh(&flow->lock);
	connecting = flow->state == MUTEX_PROXY_FLOW_CONNECTING;
	if (!connecting)
		socket_bytes(flow, &sent, &received);
	config = flow->config;
	flow->config = NULL;
	flow->state = MUTEX_PROXY_FLOW_CLOSING;
	flow->sk = NULL;
	/* Added while the lock is held, so that a sum over flows and context counts it once or, for a moment, not. */
	atomic64_add(sent, &context->bytes_sent);
	atomic64_add(received, &context->bytes_received);
	spin_unlock_bh(&flow->lock);

	xa_erase_bh(&context->flows, flow->id);
	if (connecting)
		atomic64_dec(&context->connecting);
	atomic64_dec(&context->active);
	atomic_dec(&mutex_proxy_now.flows);
	mutex_proxy_config_put(config);
	mutex_proxy_flow_put(flow);
}
EXPORT_SYMBOL_GPL(mutex_proxy_flow_end);

void mutex_proxy_flow_put(struct mutex_proxy_flow *flow)
{
	if (!refcount_dec_and_test(&flow->users))
		return;
	put_pid(flow->pid);
	mutex_proxy_context_put(flow->context);
	kfree_rcu(flow, rcu);
}
EXPORT_SYMBOL_GPL(mutex_proxy_flow_put);

struct mutex_proxy_flow *mutex_proxy_flow_after(struct mutex_proxy_context *context, u64 after)
{
	unsigned long index = after;
	struct mutex_proxy_flow *flow;

	rcu_read_lock();
	do
		flow = index == ULONG_MAX ? NULL : xa_find_after(&context->flows, &index, ULONG_MAX, XA_PRESENT);
	while (flow && !refcount_inc_not_zero(&flow->users));
	rcu_read_unlock();
	return flow;
}

void mutex_proxy_context_bytes(struct mutex_proxy_context *context, u64 *sent, u64 *received)
{
	struct mutex_proxy_flow *flow;
	u64 after = 0;

	*sent = *received = 0;
	while ((flow = mutex_proxy_flow_after(context, after))) {
		u64 s, r;

		mutex_proxy_flow_bytes(flow, &s, &r);
		*sent += s;
		*received += r;
		after = flow->id;
		mutex_proxy_flow_put(flow);
		cond_resched();
	}
	*sent += atomic64_read(&context->bytes_sent);
	*received += atomic64_read(&context->bytes_received);
}
