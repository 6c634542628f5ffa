// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reaching a destination through a server, on the application's own socket.
 *
 * A dial lives from connect() until the server has answered or the application has given up. Each has one work item: an
 * event on the socket queues it at once, and otherwise it runs when the time is over. All it does, it does under the
 * socket's lock, and only while the socket is held (dial->held): who ends the holding has ended the dial.
 *
 * References (dial->users): one while the socket is held, one while the work is queued or running. The last one gives
 * back the socket.
 */
#include <linux/sched/user.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <net/tcp.h>
#include "module.h"

/**
 * struct dial - a handshake
 * @hold: what the built-in part keeps
 * @users: see above
 * @rcu: events look at it under RCU
 * @all: in `dials`, while the socket is held; dials_lock
 * @flow: referenced
 * @sk: referenced
 * @user: who is charged
 * @work: see above
 * @held: the socket is held; the socket's lock, as for all below
 * @policy: which servers there are
 * @server: the one being tried
 * @deadline: jiffies at which the connect() is over
 * @hurried: by the application, for whom that is sooner than for the configuration
 * @begun: jiffies at which this server was first spoken to
 * @share: jiffies at which this server has had its time; others are waiting for theirs
 * @destination: as the protocols want it
 * @client: the protocol
 * @progress: its verdict
 * @sent: bytes of the handshake with this server
 * @received: the same
 * @out_at: sent of @out
 * @out_len: to be sent of @out
 * @out: what the protocol wants to say; may hold a password
 */
struct dial {
	struct mutex_proxy_hold hold;
	refcount_t users;
	struct rcu_head rcu;
	struct list_head all;
	struct mutex_proxy_flow *flow;
	struct sock *sk;
	struct user_struct *user;
	struct delayed_work work;

	bool held;
	struct policy policy;
	int server;
	unsigned long deadline;
	bool hurried;
	unsigned long begun;
	unsigned long share;
	struct mproto_endpoint destination;
	struct mproto_client client;
	enum mproto_progress progress;
	u32 sent;
	u32 received;
	size_t out_at;
	size_t out_len;
	u8 out[MPROTO_OUT_MAX];
};

static struct workqueue_struct *queue;
static LIST_HEAD(dials);
static DEFINE_SPINLOCK(dials_lock); /* BH disabled */
static atomic_t in_flight; /* dials whose memory is not yet given back */
static DECLARE_WAIT_QUEUE_HEAD(all_gone);

/* ---- life ---- */

/* False: there are too many. Either way it is to be given back. */
static bool charge(struct user_struct *user)
{
	bool room = atomic_inc_return(&in_flight) <= MUTEX_PROXY_DIALS_MAX;

	get_uid(user);
	return atomic_inc_return(&user->mutex_proxy_dials) <= MUTEX_PROXY_DIALS_PER_USER && room;
}

static void uncharge(struct user_struct *user)
{
	atomic_dec(&user->mutex_proxy_dials);
	free_uid(user);
	if (atomic_dec_and_test(&in_flight))
		wake_up(&all_gone);
}

static void put(struct dial *dial)
{
	struct user_struct *user;

	if (!refcount_dec_and_test(&dial->users))
		return;
	sock_put(dial->sk);
	mutex_proxy_flow_put(dial->flow);
	user = dial->user;
	kfree_rcu(dial, rcu);
	uncharge(user);
}

/* The work is to run after `delay` at the latest. */
static void run_in(struct dial *dial, unsigned long delay)
{
	/* An event that looked just before the end finds no user any more. */
	if (!refcount_inc_not_zero(&dial->users))
		return;
	if (mod_delayed_work(queue, &dial->work, delay))
		put(dial); /* it was queued already, and has its reference */
}

/* When this server has had its time, unless there is an event before. */
static void run_in_time(struct dial *dial)
{
	unsigned long now = jiffies;

	run_in(dial, time_before(now, dial->share) ? dial->share - now : 0);
}

/* The socket is no longer held, or about not to be. The caller goes on without the reference of the holding. */
static void end(struct dial *dial)
{
	dial->held = false;
	spin_lock_bh(&dials_lock);
	list_del_init(&dial->all);
	spin_unlock_bh(&dials_lock);
	memzero_explicit(&dial->out, sizeof(dial->out));
	if (cancel_delayed_work(&dial->work))
		put(dial);
	put(dial);
}

/* ---- ends ---- */

static void connected(struct dial *dial)
{
	policy_connected(&dial->policy, dial->server);
	mutex_proxy_open(dial->flow, dial->server, dial->sent, dial->received);
	end(dial);
}

static void refused(struct dial *dial, int error)
{
	mutex_proxy_refuse(dial->flow, error);
	end(dial);
}

/* No server could be used. */
static void failed(struct dial *dial, int error)
{
	atomic64_inc(&dial->flow->context->failed);
	refused(dial, error);
}

/* ---- servers ---- */

/* Of an errno (positive) with which a connection to a server ends. */
static const char *words_of(int error)
{
	switch (error) {
	case ECONNREFUSED:
		return "cannot be reached: connection refused";
	case EHOSTUNREACH:
		return "cannot be reached: host unreachable";
	case ENETUNREACH:
		return "cannot be reached: network unreachable";
	case ETIMEDOUT:
		return "cannot be reached: timed out";
	default:
		return "cannot be reached";
	}
}

/* Begins with the next server. False: there is none. */
static bool next_server(struct dial *dial)
{
	for (;;) {
		const struct mutex_proxy_server *server;
		char why[MPROTO_REFUSAL_TEXT_MAX];
		unsigned long now = jiffies;
		int err;

		dial->begun = now;
		dial->share = dial->deadline;
		if (time_before(now, dial->deadline) && policy_left(&dial->policy))
			dial->share = now + (dial->deadline - now) / policy_left(&dial->policy);
		dial->server = policy_next(&dial->policy);
		if (dial->server < 0)
			return false;
		server = &dial->policy.config->servers[dial->server];
		dial->sent = 0;
		dial->received = 0;
		dial->out_at = 0;
		dial->progress = mproto_client_start(&dial->client, &server->line.server, &dial->destination, dial->out,
						     &dial->out_len);
		if (dial->progress != MPROTO_MORE) { /* nothing is wrong with the server: others may find it useful */
			mproto_refusal_format(&dial->client.refusal, why);
			policy_tell(dial->flow->context, &dial->policy, dial->server, why);
			continue;
		}
		err = mutex_proxy_dial(dial->flow, &server->line.server.at);
		if (!err)
			return true;
		if (server->line.server.at.kind == MPROTO_HOST_NAME) {
			policy_failed(dial->flow->context, &dial->policy, dial->server,
				      "the kernel does not resolve names; give the server's address");
		} else if (err == -EAFNOSUPPORT) {
			policy_tell(dial->flow->context, &dial->policy, dial->server,
				    "cannot be reached from a socket of this address family");
		} else if (err == -EADDRNOTAVAIL || err == -ENOMEM || err == -ENOBUFS) { /* our trouble */
			policy_tell(dial->flow->context, &dial->policy, dial->server, "cannot be reached: no port or memory");
		} else {
			policy_failed(dial->flow->context, &dial->policy, dial->server, words_of(-err));
		}
	}
}

static void try_next(struct dial *dial)
{
	if (!next_server(dial))
		failed(dial, ENETUNREACH);
}

/* The server is at fault. */
static void server_failed(struct dial *dial, const char *why)
{
	policy_failed(dial->flow->context, &dial->policy, dial->server, why);
	try_next(dial);
}

/*
 * Has the server shown that it lives? It has greeted us, or, where the protocol has no greeting, taken the connection:
 * then it is the destination that it waits for.
 */
static bool is_heard(const struct dial *dial)
{
	bool greets = dial->client.server->protocol == MPROTO_SOCKS5 || dial->client.server->protocol == MPROTO_SOCKS5H;

	return dial->received || (dial->sent && !greets);
}

/* It has had its time. When it had begun to answer, or had less than it should have, it need not be at fault. */
static void too_slow(struct dial *dial)
{
	static const char why[] = "no answer in time";

	if (is_heard(dial) || dial->hurried)
		policy_tell(dial->flow->context, &dial->policy, dial->server, why);
	else
		policy_failed(dial->flow->context, &dial->policy, dial->server, why);
}

static void answered_no(struct dial *dial)
{
	enum mproto_reason reason = dial->client.refusal.reason;
	char why[MPROTO_REFUSAL_TEXT_MAX];

	mproto_refusal_format(&dial->client.refusal, why);
	if (mproto_reason_is_servers(reason)) {
		server_failed(dial, why);
		return;
	}
	policy_refused(dial->flow->context, &dial->policy, dial->server, why);
	atomic64_inc(&dial->flow->context->refused);
	refused(dial, mproto_reason_errno(reason));
}

static void not_reached(struct dial *dial)
{
	if (dial->hold.error == ECONNRESET)
		server_failed(dial, "lost during the handshake: connection reset");
	else
		server_failed(dial, dial->sent || !dial->hold.error ? "hung up" : words_of(dial->hold.error));
}

/* The destination was connected, and has reset the connection before connect() could say so. */
static void broken_at_once(struct dial *dial)
{
	policy_connected(&dial->policy, dial->server);
	atomic64_inc(&dial->flow->context->refused);
	refused(dial, dial->hold.error ?: ECONNRESET);
}

/* ---- talking ---- */

/* Says what there is to say: 0, or EAGAIN when there is no room, or the error of a connection that has ended. */
static int speak(struct dial *dial)
{
	while (dial->out_at < dial->out_len) {
		struct kvec text = { dial->out + dial->out_at, dial->out_len - dial->out_at };
		struct msghdr msg = { .msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL };
		int n;

		iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, &text, 1, text.iov_len);
		n = tcp_sendmsg_locked(dial->sk, &msg, text.iov_len);
		if (n < 0)
			return n;
		mutex_proxy_push(dial->sk);
		dial->out_at += n;
		dial->sent += n;
	}
	return 0;
}

/* Takes as many bytes as the protocol wants: what follows its last byte stays in the socket. */
static int take(read_descriptor_t *descriptor, struct sk_buff *skb, unsigned int offset, size_t length)
{
	struct dial *dial = descriptor->arg.data;
	size_t taken = 0;

	while (taken < length && dial->progress == MPROTO_MORE && dial->out_at == dial->out_len) {
		size_t consumed;
		u8 bytes[256];
		size_t n = min(sizeof(bytes), length - taken);

		if (skb_copy_bits(skb, offset + taken, bytes, n))
			break;
		dial->out_at = 0;
		dial->progress = mproto_client_feed(&dial->client, bytes, n, &consumed, dial->out, &dial->out_len);
		taken += consumed;
	}
	return taken;
}

/* Bytes taken from the socket. */
static int hear(struct dial *dial)
{
	read_descriptor_t descriptor = { .arg.data = dial, .count = 1 };
	int n = tcp_read_sock(dial->sk, &descriptor, take);

	if (n > 0)
		dial->received += n;
	return n;
}

/* Also when the socket has ended: what the server said before is still there. */
static void talk(struct dial *dial)
{
	struct sock *sk = dial->sk;
	bool speaks;
	int err = 0, n;

	do {
		n = hear(dial);
		if (dial->progress == MPROTO_REFUSED) {
			answered_no(dial);
			return;
		}
		if (sk->sk_state == TCP_CLOSE && dial->progress == MPROTO_DONE) {
			broken_at_once(dial);
			return;
		}
		if (sk->sk_state == TCP_CLOSE) {
			not_reached(dial);
			return;
		}
		if (dial->progress == MPROTO_DONE) {
			connected(dial);
			return;
		}
		speaks = dial->out_at < dial->out_len; /* nothing is heard while there is something to say */
		err = speak(dial);
	} while (!err && (n > 0 || speaks));
	if (err == -EAGAIN)
		return; /* there will be room */
	if (err || sk->sk_shutdown & RCV_SHUTDOWN)
		server_failed(dial, "hung up");
	else if (!skb_queue_empty(&sk->sk_receive_queue)) /* an urgent byte: no proxy has reason to send one */
		server_failed(dial, "does not speak the proxy protocol");
}

/* ---- the work ---- */

static void step(struct dial *dial)
{
	if (time_after_eq(jiffies, dial->deadline)) {
		too_slow(dial);
		failed(dial, ETIMEDOUT);
	} else if (time_after_eq(jiffies, dial->share)) {
		too_slow(dial);
		try_next(dial);
	} else {
		switch (dial->sk->sk_state) {
		case TCP_SYN_SENT:
		case TCP_SYN_RECV:
			break;
		default:
			talk(dial);
			break;
		}
	}
}

/* As lock_sock(), but false when the lock is not free. */
static bool try_lock_sock(struct sock *sk)
{
	bool is_free;

	spin_lock_bh(&sk->sk_lock.slock);
	is_free = !sock_owned_by_user_nocheck(sk);
	if (is_free)
		sk->sk_lock.owned = 1;
	spin_unlock_bh(&sk->sk_lock.slock);
	if (is_free)
		mutex_acquire(&sk->sk_lock.dep_map, 0, 1, _RET_IP_);
	return is_free;
}

static void dial_work(struct work_struct *work)
{
	struct dial *dial = container_of(to_delayed_work(work), struct dial, work);

	/*
	 * Whoever has the lock may keep it for long, if he sleeps over his own memory. To wait for him here would be to
	 * keep a worker from everybody else.
	 */
	if (!try_lock_sock(dial->sk)) {
		run_in(dial, 1);
		put(dial);
		return;
	}
	if (dial->held)
		step(dial);
	if (dial->held)
		run_in_time(dial);
	release_sock(dial->sk);
	put(dial);
}

void dial_event(struct mutex_proxy_hold *hold)
{
	run_in(container_of(hold, struct dial, hold), 0);
}

/* In place of the work, which stays queued for when the time is over. */
void dial_proceed(struct mutex_proxy_hold *hold)
{
	struct dial *dial = container_of(hold, struct dial, hold);
	unsigned long share = dial->share;

	refcount_inc(&dial->users);
	step(dial);
	if (dial->held && dial->share != share)
		run_in_time(dial);
	put(dial);
}

void dial_abandoned(struct mutex_proxy_hold *hold)
{
	struct dial *dial = container_of(hold, struct dial, hold);

	/* An application that waits for less long than we do must not meet the same silent server each time. */
	if (!is_heard(dial) && time_after(jiffies, dial->begun + HZ) && dial->policy.config->n_servers > 1)
		policy_failed(dial->flow->context, &dial->policy, dial->server, "given up while it was silent");
	end(dial);
}

/* The application may have asked for less time than the configuration. */
static void set_deadline(struct dial *dial)
{
	const struct inet_connection_sock *icsk = inet_csk(dial->sk);
	unsigned long most = dial->policy.config->settings.timeout * HZ, limit = most;
	u32 user_timeout = READ_ONCE(icsk->icsk_user_timeout);
	u8 syn_retries = READ_ONCE(icsk->icsk_syn_retries);

	if (user_timeout)
		limit = min(limit, msecs_to_jiffies(user_timeout));
	if (syn_retries && syn_retries < 12) /* after 1 s, 2 s, 4 s..., and the wait that follows the last one */
		limit = min(limit, (2UL << syn_retries) * HZ - HZ);
	dial->deadline = jiffies + limit;
	dial->hurried = limit < most;
}

static void endpoint_of(const struct mutex_proxy_flow *flow, struct mproto_endpoint *endpoint)
{
	endpoint->port = flow->port;
	if (ipv6_addr_v4mapped(&flow->destination)) {
		endpoint->kind = MPROTO_HOST_IPV4;
		memcpy(endpoint->ip, &flow->destination.s6_addr[12], 4);
	} else {
		endpoint->kind = MPROTO_HOST_IPV6;
		memcpy(endpoint->ip, &flow->destination, 16);
	}
}

int dial_begin(struct mutex_proxy_flow *flow, const struct mutex_proxy_ops *ops)
{
	struct dial *dial = NULL;

	if (charge(flow->context->user))
		dial = kzalloc(sizeof(*dial), GFP_KERNEL_ACCOUNT);
	if (!dial) {
		uncharge(flow->context->user);
		atomic64_inc(&flow->context->failed);
		mutex_proxy_context_error(flow->context, "too many handshakes in flight, or no memory for one more");
		mutex_proxy_flow_end(flow);
		mutex_proxy_flow_put(flow);
		return -ENETUNREACH;
	}
	refcount_set(&dial->users, 1);
	INIT_DELAYED_WORK(&dial->work, dial_work);
	refcount_inc(&flow->users);
	dial->flow = flow;
	dial->user = flow->context->user;
	sock_hold(flow->sk);
	dial->sk = flow->sk;
	dial->held = true;
	dial->policy.config = flow->config;
	set_deadline(dial);
	endpoint_of(flow, &dial->destination);
	spin_lock_bh(&dials_lock);
	list_add_tail(&dial->all, &dials);
	spin_unlock_bh(&dials_lock);

	mutex_proxy_hold(flow, &dial->hold, ops);
	if (!next_server(dial)) {
		atomic64_inc(&flow->context->failed);
		mutex_proxy_drop(flow);
		end(dial);
		return -ENETUNREACH;
	}
	run_in_time(dial);
	return 0;
}

/* ---- unloading ---- */

static struct dial *first(void)
{
	struct dial *dial;

	spin_lock_bh(&dials_lock);
	dial = list_first_entry_or_null(&dials, struct dial, all);
	if (dial)
		refcount_inc(&dial->users); /* what is in the list is held */
	spin_unlock_bh(&dials_lock);
	return dial;
}

int dial_init(void)
{
	/* On any processor: a handshake is a few small packets, and many may be in flight. */
	queue = alloc_workqueue("mutex_proxy", WQ_UNBOUND, 0);
	return queue ? 0 : -ENOMEM;
}

void dial_exit(void)
{
	struct dial *dial;

	/* No new ones come: intercept_exit() has seen to that. */
	while ((dial = first())) {
		lock_sock(dial->sk);
		if (dial->held)
			failed(dial, ENETUNREACH);
		release_sock(dial->sk);
		put(dial);
	}
	wait_event(all_gone, !atomic_read(&in_flight));
	/* Events that looked at a dial at its end, and whoever gave up the last reference, are still in our code. */
	synchronize_rcu();
	destroy_workqueue(queue);
}
