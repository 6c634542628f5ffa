// SPDX-License-Identifier: GPL-2.0-only
/*
 * A proxied connection as its socket sees it.
 *
 * connect() of a member comes here in place of TCP's own (__inet_stream_connect() calls mutex_proxy_connect(), so that
 * connect(2), io_uring and MSG_FASTOPEN all do, under the socket's lock). The module points the socket at a proxy and
 * talks to it; until it is through the socket is held: connect(), poll(), send(), recv() and shutdown() see SYN_SENT
 * (mutex_proxy_state()), so that all that Linux does about a pending connect() - waiting, signals, SO_SNDTIMEO,
 * EALREADY - is Linux's own. A refusal leaves what a reset leaves. Afterwards a pointer to the flow is all that
 * remains in the socket, for getpeername() and for the account when it ends.
 *
 * The callbacks below stay correct when a ULP or a BPF map took them over and puts them back after the handshake: they
 * are part of the kernel, never go away, and do what TCP's own do when the socket is not held.
 */
#include <linux/export.h>
#include <linux/icmp.h>
#include <linux/in6.h>
#include <linux/sched/signal.h>
#include <net/inet_common.h>
#include <net/ipv6.h>
#include <net/ipv6_stubs.h>
#include <net/mutex_proxy.h>
#include <net/route.h>
#include <net/tcp.h>
#include "context.h"

/* ---- what happens to a held socket: in BH or under the socket's lock ---- */

static void wake_all(struct sock *sk)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_all(&wq->wait);
	rcu_read_unlock();
}

/* True when it was the module's to know. */
static bool tell(struct sock *sk)
{
	struct mutex_proxy_flow *flow;
	struct mutex_proxy_hold *hold;
	bool held = false;

	rcu_read_lock();
	if (mutex_proxy_held(sk)) {
		flow = READ_ONCE(sk->sk_mutex_proxy);
		hold = flow ? READ_ONCE(flow->hold) : NULL;
		held = hold;
		if (hold && hold->attended)
			wake_all(sk);
		else if (hold)
			hold->ops->event(hold);
	}
	rcu_read_unlock();
	return held;
}

static void mutex_proxy_state_change(struct sock *sk)
{
	struct mutex_proxy_flow *flow = sk->sk_mutex_proxy;

	/* The error is the dial's, not the application's: SO_ERROR is not to show it. */
	if (mutex_proxy_held(sk) && flow && sk->sk_err) {
		flow->hold->error = sk->sk_err;
		WRITE_ONCE(sk->sk_err, 0);
	}
	if (!tell(sk))
		wake_all(sk);
}

static void mutex_proxy_data_ready(struct sock *sk)
{
	if (!tell(sk))
		sock_def_readable(sk);
}

static void mutex_proxy_write_space(struct sock *sk)
{
	if (!tell(sk))
		sk_stream_write_space(sk);
}

/* ---- holding ---- */

/* The address from which a socket would reach its destination. Unspecified when there is no route. */
static struct in6_addr local_of(struct sock *sk, const struct in6_addr *destination, u16 port)
{
	struct net *net = sock_net(sk);
	struct in6_addr local = {};

	if (ipv6_addr_v4mapped(destination)) {
		struct flowi4 fl4 = {
			.flowi4_oif = sk->sk_bound_dev_if, .flowi4_mark = READ_ONCE(sk->sk_mark), .flowi4_uid = sk->sk_uid,
			.flowi4_proto = IPPROTO_TCP, .daddr = destination->s6_addr32[3], .fl4_dport = htons(port),
		};
		struct rtable *rt;

		if (inet_sk(sk)->inet_rcv_saddr) {
			ipv6_addr_set_v4mapped(inet_sk(sk)->inet_rcv_saddr, &local);
			return local;
		}
		rt = ip_route_output_key(net, &fl4);
		if (!IS_ERR(rt)) {
			ipv6_addr_set_v4mapped(fl4.saddr, &local);
			ip_rt_put(rt);
		}
#if IS_ENABLED(CONFIG_IPV6)
	} else {
		struct flowi6 fl6 = {
			.flowi6_oif = sk->sk_bound_dev_if, .flowi6_mark = READ_ONCE(sk->sk_mark), .flowi6_uid = sk->sk_uid,
			.flowi6_proto = IPPROTO_TCP, .daddr = *destination, .fl6_dport = htons(port),
		};
		struct dst_entry *dst;

		if (!ipv6_addr_any(&sk->sk_v6_rcv_saddr))
			return sk->sk_v6_rcv_saddr;
		dst = ipv6_stub->ipv6_dst_lookup_flow(net, sk, &fl6, NULL);
		if (!IS_ERR(dst)) {
			local = fl6.saddr;
			dst_release(dst);
		}
#endif
	}
	return local;
}

void mutex_proxy_hold(struct mutex_proxy_flow *flow, struct mutex_proxy_hold *hold, const struct mutex_proxy_ops *ops)
{
	struct sock *sk = flow->sk;

	hold->ops = ops;
	flow->local = local_of(sk, &flow->destination, flow->port);
	hold->window_clamp = tcp_sk(sk)->window_clamp;
	hold->user_mss = tcp_sk(sk)->rx_opt.user_mss;
	hold->peek_off = READ_ONCE(sk->sk_peek_off);
	flow->af_ops = inet_csk(sk)->icsk_af_ops;
	flow->backlog_rcv = sk->sk_backlog_rcv;
#if defined(CONFIG_TCP_MD5SIG) || defined(CONFIG_TCP_AO)
	flow->af_specific = tcp_sk(sk)->af_specific;
#endif
	/* With the application's own mark TCP would not tell of a short answer. */
	hold->rcvlowat = READ_ONCE(sk->sk_rcvlowat);
	WRITE_ONCE(sk->sk_rcvlowat, 1);
	write_lock_bh(&sk->sk_callback_lock);
	hold->state_change = sk->sk_state_change;
	hold->data_ready = sk->sk_data_ready;
	hold->write_space = sk->sk_write_space;
	sk->sk_state_change = mutex_proxy_state_change;
	sk->sk_data_ready = mutex_proxy_data_ready;
	sk->sk_write_space = mutex_proxy_write_space;
	write_unlock_bh(&sk->sk_callback_lock);
	WRITE_ONCE(flow->hold, hold);
	WRITE_ONCE(sk->sk_mutex_proxy, flow);
	/* Pairs with mutex_proxy_held(): tell() finds the flow. */
	smp_store_release(&sk->sk_mutex_proxy_held, true);
}
EXPORT_SYMBOL_GPL(mutex_proxy_hold);

/* The flow stays with the socket. */
static void unhold(struct sock *sk)
{
	struct mutex_proxy_flow *flow = sk->sk_mutex_proxy;
	struct mutex_proxy_hold *hold = flow->hold;

	write_lock_bh(&sk->sk_callback_lock);
	if (sk->sk_state_change == mutex_proxy_state_change)
		sk->sk_state_change = hold->state_change;
	if (sk->sk_data_ready == mutex_proxy_data_ready)
		sk->sk_data_ready = hold->data_ready;
	if (sk->sk_write_space == mutex_proxy_write_space)
		sk->sk_write_space = hold->write_space;
	write_unlock_bh(&sk->sk_callback_lock);
	if (READ_ONCE(sk->sk_rcvlowat) == 1) /* unless the application has set another meanwhile */
		WRITE_ONCE(sk->sk_rcvlowat, hold->rcvlowat);
	/* Pairs with mutex_proxy_held(): state, error and shutdown first. */
	smp_store_release(&sk->sk_mutex_proxy_held, false);
	WRITE_ONCE(flow->hold, NULL);
}

static void forget(struct sock *sk)
{
	struct mutex_proxy_flow *flow = sk->sk_mutex_proxy;

	WRITE_ONCE(sk->sk_mutex_proxy, NULL);
	mutex_proxy_flow_end(flow);
	mutex_proxy_flow_put(flow);
}

/*
 * An IPv6 socket that had dialled an IPv4 proxy becomes one of IPv6 again, which tcp_disconnect() does not see to. It is
 * in TCP_CLOSE, and has sent its last reset.
 */
static void restore_family(struct sock *sk, const struct mutex_proxy_flow *flow)
{
	if (sk->sk_family != AF_INET6) /* the application has made it one of IPv4 for good (IPV6_ADDRFORM) */
		return;
	WRITE_ONCE(inet_csk(sk)->icsk_af_ops, flow->af_ops);
	sk->sk_backlog_rcv = flow->backlog_rcv;
#if defined(CONFIG_TCP_MD5SIG) || defined(CONFIG_TCP_AO)
	tcp_sk(sk)->af_specific = flow->af_specific;
#endif
}

/* Frees a socket from the address it is bound to, not from its port: a proxy of the other address family is to be dialled. */
static void unbind(struct sock *sk, struct mutex_proxy_flow *flow)
{
#if IS_ENABLED(CONFIG_IPV6)
	flow->bound.rcv4 = inet_sk(sk)->inet_rcv_saddr;
	flow->bound.source4 = inet_sk(sk)->inet_saddr;
	flow->bound.rcv6 = sk->sk_v6_rcv_saddr;
	flow->bound.source6 = inet6_sk(sk)->saddr;
	flow->unbound = true;
	sk->sk_userlocks &= ~SOCK_BINDADDR_LOCK;
	inet_bhash2_reset_saddr(sk);
#endif
}

/*
 * Two sockets may share a port and go to different destinations; to one proxy they cannot. True: the socket has given up
 * its port, and the next dial chooses another.
 */
static bool leave_port(struct sock *sk, struct mutex_proxy_flow *flow)
{
	if (!(sk->sk_userlocks & SOCK_BINDPORT_LOCK) || !inet_csk(sk)->icsk_bind_hash)
		return false;
	flow->bound_port = inet_sk(sk)->inet_num;
	sk->sk_userlocks &= ~SOCK_BINDPORT_LOCK;
	sk->sk_prot->put_port(sk);
	inet_sk(sk)->inet_sport = 0;
	return true;
}

static void return_to_port(struct sock *sk, struct mutex_proxy_flow *flow)
{
	if (!flow->bound_port)
		return;
	if (!(sk->sk_userlocks & SOCK_BINDADDR_LOCK)) /* the port is to be at any address, not at the last connection's */
		inet_bhash2_reset_saddr(sk);
	if (!inet_sk(sk)->inet_num && !sk->sk_prot->get_port(sk, flow->bound_port)) {
		inet_sk(sk)->inet_sport = htons(flow->bound_port);
		sk->sk_userlocks |= SOCK_BINDPORT_LOCK;
	} else {
		mutex_proxy_context_error(flow->context, "a bound port was taken while its socket was away from it");
	}
	flow->bound_port = 0;
}

static void return_to_address(struct sock *sk, struct mutex_proxy_flow *flow)
{
#if IS_ENABLED(CONFIG_IPV6)
	if (!flow->unbound || sk->sk_family != AF_INET6)
		return;
	flow->unbound = false;
	if (inet_bhash2_update_saddr(sk, &flow->bound.rcv6, AF_INET6))
		return; /* no memory: it keeps the port at any address */
	inet_sk(sk)->inet_rcv_saddr = flow->bound.rcv4;
	inet_sk(sk)->inet_saddr = flow->bound.source4;
	inet6_sk(sk)->saddr = flow->bound.source6;
	sk->sk_userlocks |= SOCK_BINDADDR_LOCK;
#endif
}

/* Gives the socket, which is in TCP_CLOSE, the name back that it was bound to. */
static void rebind(struct sock *sk, struct mutex_proxy_flow *flow)
{
	return_to_address(sk, flow); /* first: a port is free or not at an address */
	return_to_port(sk, flow);
}

/*
 * A socket that has dialled once, made fit to dial again. What was bound stays bound, and so do the settings that
 * tcp_disconnect() forgets.
 */
static void reset(struct sock *sk, const struct mutex_proxy_hold *hold)
{
	struct mutex_proxy_flow *flow = sk->sk_mutex_proxy;

	WRITE_ONCE(sk->sk_mutex_proxy, NULL); /* tcp_disconnect() would end the flow */
	tcp_disconnect(sk, 0);
	WRITE_ONCE(sk->sk_err, 0);
	WRITE_ONCE(sk->sk_err_soft, 0);
	skb_queue_purge(&sk->sk_error_queue); /* what ICMP said of the way to the proxy */
	WRITE_ONCE(sk->sk_mutex_proxy, flow);
	tcp_sk(sk)->window_clamp = hold->window_clamp;
	tcp_sk(sk)->rx_opt.user_mss = hold->user_mss;
	WRITE_ONCE(sk->sk_peek_off, hold->peek_off);
	restore_family(sk, flow);
}

/* Can it reach an address of this family? */
static bool can_reach(const struct sock *sk, const struct mproto_endpoint *server)
{
	return server->kind == MPROTO_HOST_IPV4 || (server->kind == MPROTO_HOST_IPV6 && sk->sk_family == AF_INET6);
}

/* Not with the address it is bound to? */
static bool is_bound_elsewhere(const struct sock *sk, const struct mproto_endpoint *server)
{
#if IS_ENABLED(CONFIG_IPV6)
	return sk->sk_family == AF_INET6 && !ipv6_addr_any(&sk->sk_v6_rcv_saddr) &&
	       ipv6_addr_v4mapped(&sk->sk_v6_rcv_saddr) != (server->kind == MPROTO_HOST_IPV4);
#else
	return false;
#endif
}

int mutex_proxy_dial(struct mutex_proxy_flow *flow, const struct mproto_endpoint *server)
{
	struct sock *sk = flow->sk;
	struct tcp_sock *tp = tcp_sk(sk);
	struct sockaddr_storage storage = { .ss_family = sk->sk_family };
	unsigned int defer = tp->fastopen_connect, only6 = sk->sk_ipv6only;
	int err;

	if (inet_sk(sk)->inet_dport || sk->sk_state != TCP_CLOSE || sk->sk_shutdown)
		reset(sk, flow->hold);
	rebind(sk, flow);
	flow->hold->error = 0;
	if (!can_reach(sk, server))
		return -EAFNOSUPPORT;
	if (is_bound_elsewhere(sk, server))
		unbind(sk, flow);
	if (sk->sk_family == AF_INET) {
		struct sockaddr_in *sin = (struct sockaddr_in *)&storage;

		sin->sin_port = htons(server->port);
		memcpy(&sin->sin_addr, server->ip, sizeof(sin->sin_addr));
	} else {
		struct sockaddr_in6 *sin6 = (struct sockaddr_in6 *)&storage;
		__be32 ip4;

		sin6->sin6_port = htons(server->port);
		memcpy(&ip4, server->ip, sizeof(ip4));
		if (server->kind == MPROTO_HOST_IPV4)
			ipv6_addr_set_v4mapped(ip4, &sin6->sin6_addr);
		else
			memcpy(&sin6->sin6_addr, server->ip, sizeof(sin6->sin6_addr));
	}
	/* Data that would go into the SYN is for the destination, not for the proxy: it is sent after the handshake. */
	tcp_free_fastopen_req(tp);
	tp->fastopen_connect = 0;
	/* What an IPV6_V6ONLY socket may not do is to have an IPv4 destination. It has none: this is only the way there. */
	sk->sk_ipv6only = 0;
	do {
		err = sk->sk_prot->connect(sk, (struct sockaddr *)&storage, sk->sk_family == AF_INET ?
					   sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
	} while (err == -EADDRNOTAVAIL && leave_port(sk, flow));
	sk->sk_ipv6only = only6;
	tp->fastopen_connect = defer;
	return err;
}
EXPORT_SYMBOL_GPL(mutex_proxy_dial);

/* The option itself is not touched: the application may read it at any time, without the socket's lock. */
void mutex_proxy_push(struct sock *sk)
{
	if (tcp_send_head(sk))
		__tcp_push_pending_frames(sk, tcp_current_mss(sk), TCP_NAGLE_PUSH);
}
EXPORT_SYMBOL_GPL(mutex_proxy_push);

void mutex_proxy_open(struct mutex_proxy_flow *flow, u16 server, u32 greeting_sent, u32 greeting_received)
{
	struct sock *sk = flow->sk;

	mutex_proxy_flow_connected(flow, server, greeting_sent, greeting_received);
	/* What ICMP said of the way to the proxy is no matter of the application's. */
	WRITE_ONCE(sk->sk_err, 0);
	WRITE_ONCE(sk->sk_err_soft, 0);
	skb_queue_purge(&sk->sk_error_queue);
	unhold(sk);
	sk->sk_state_change(sk);
	if (!skb_queue_empty(&sk->sk_receive_queue))
		sk->sk_data_ready(sk);
	sk_wake_async(sk, SOCK_WAKE_IO, POLL_OUT);
}
EXPORT_SYMBOL_GPL(mutex_proxy_open);

/* What the ICMP message that says so would leave in an IPv4 connection's error queue: poll() shows it. */
static void leave_icmp(struct sock *sk, const struct mutex_proxy_flow *flow, int error)
{
	struct {
		struct iphdr outer;
		struct icmphdr icmp;
		struct iphdr inner;
		__be16 from, to;
		__be32 sequence;
	} *packet;
	struct sk_buff *skb = alloc_skb(sizeof(*packet), GFP_KERNEL);

	if (!skb)
		return;
	packet = skb_put_zero(skb, sizeof(*packet));
	skb_reset_network_header(skb);
	skb_set_transport_header(skb, sizeof(packet->outer));
	packet->outer.version = packet->inner.version = 4;
	packet->outer.ihl = packet->inner.ihl = sizeof(packet->outer) / 4;
	packet->outer.protocol = IPPROTO_ICMP;
	packet->outer.saddr = packet->inner.daddr = flow->destination.s6_addr32[3];
	packet->outer.daddr = packet->inner.saddr = flow->local.s6_addr32[3];
	packet->inner.protocol = IPPROTO_TCP;
	packet->icmp.type = ICMP_DEST_UNREACH;
	packet->icmp.code = error == EHOSTUNREACH ? ICMP_HOST_UNREACH : ICMP_NET_UNREACH;
	packet->to = htons(flow->port);
	ip_icmp_error(sk, skb, error, packet->to, 0, (u8 *)&packet->from);
	kfree_skb(skb);
}

void mutex_proxy_refuse(struct mutex_proxy_flow *flow, int error)
{
	struct sock *sk = flow->sk;
	struct inet_sock *inet = inet_sk(sk);

	reset(sk, flow->hold);
	rebind(sk, flow);
	if ((error == EHOSTUNREACH || error == ENETUNREACH) && ipv6_addr_v4mapped(&flow->destination))
		leave_icmp(sk, flow, error);
	/* After a reset getsockname() still tells the address; a port that was not bound is free again. */
	if (!inet->inet_num && !ipv6_addr_any(&flow->local)) {
		if (ipv6_addr_v4mapped(&flow->local))
			inet->inet_saddr = inet->inet_rcv_saddr = flow->local.s6_addr32[3];
#if IS_ENABLED(CONFIG_IPV6)
		if (sk->sk_family == AF_INET6)
			inet6_sk(sk)->saddr = sk->sk_v6_rcv_saddr = flow->local;
#endif
	}
	WRITE_ONCE(sk->sk_shutdown, SHUTDOWN_MASK);
	WRITE_ONCE(sk->sk_err, error);
	unhold(sk);
	forget(sk);
	sk->sk_state_change(sk);
	sk_error_report(sk);
}
EXPORT_SYMBOL_GPL(mutex_proxy_refuse);

void mutex_proxy_drop(struct mutex_proxy_flow *flow)
{
	struct sock *sk = flow->sk;

	reset(sk, flow->hold);
	rebind(sk, flow);
	unhold(sk);
	forget(sk);
}
EXPORT_SYMBOL_GPL(mutex_proxy_drop);

void __mutex_proxy_release(struct sock *sk)
{
	struct mutex_proxy_flow *flow = sk->sk_mutex_proxy;
	struct mutex_proxy_hold *hold = flow->hold;

	restore_family(sk, flow);
	if (!sock_flag(sk, SOCK_DEAD))
		rebind(sk, flow);
	rcu_read_lock();
	if (hold) {
		unhold(sk);
		hold->ops->abandoned(hold);
	}
	rcu_read_unlock();
	forget(sk);
}

/* ---- what the application asks ---- */

/* As the protocols read it. False: they will refuse it, or it is not for us. */
static bool destination_of(const struct sock *sk, const struct sockaddr *uaddr, int addr_len,
			   struct in6_addr *destination, u16 *port)
{
	const struct sockaddr_in6 *sin6 = (const struct sockaddr_in6 *)uaddr;
	const struct sockaddr_in *sin = (const struct sockaddr_in *)uaddr;

	/* An IPv6 socket for datagrams takes IPv4 addresses as well. */
	if (addr_len >= sizeof(*sin) && uaddr->sa_family == AF_INET &&
	    (sk->sk_family == AF_INET || sk->sk_type == SOCK_DGRAM)) {
		if (ipv4_is_multicast(sin->sin_addr.s_addr))
			return false;
		ipv6_addr_set_v4mapped(sin->sin_addr.s_addr ?: htonl(INADDR_LOOPBACK), destination);
		*port = ntohs(sin->sin_port);
		return true;
	}
	if (addr_len < SIN6_LEN_RFC2133 || uaddr->sa_family != AF_INET6 || sk->sk_family != AF_INET6 ||
	    ipv6_addr_is_multicast(&sin6->sin6_addr))
		return false;
	*destination = sin6->sin6_addr;
	*port = ntohs(sin6->sin6_port);
	if (ipv6_addr_any(destination))
		*destination = in6addr_loopback;
	else if (ipv6_addr_v4mapped(destination) && !destination->s6_addr32[3])
		destination->s6_addr32[3] = htonl(INADDR_LOOPBACK);
	return true;
}

/*
 * A routing header would take the packets of a connection past the proxy to hosts of the application's choice, and needs
 * no privilege. (The same of IPv4 needs CAP_NET_RAW.)
 */
static bool is_routed(const struct sock *sk)
{
#if IS_ENABLED(CONFIG_IPV6)
	const struct ipv6_txoptions *options;

	if (sk->sk_family != AF_INET6)
		return false;
	options = rcu_dereference_protected(inet6_sk(sk)->opt, lockdep_sock_is_held(sk));
	return options && options->srcrt;
#else
	return false;
#endif
}

bool __mutex_proxy_may_route(struct sock *sk)
{
	struct mutex_proxy_context *context;
	enum mutex_proxy_verdict verdict;

	if (sk->sk_kern_sock || sk->sk_type != SOCK_STREAM) /* packets of others are looked at one by one */
		return true;
	context = mutex_proxy_context_of_current(sock_net(sk), &verdict);
	if (!context)
		return true;
	mutex_proxy_context_put(context);
	return false;
}

int __mutex_proxy_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
{
	struct mutex_proxy_context *context = NULL;
	const struct mutex_proxy_ops *ops;
	enum mutex_proxy_verdict verdict;
	struct in6_addr destination;
	int index, err = 1;
	u16 port;

	if (!sk->sk_kern_sock && destination_of(sk, uaddr, addr_len, &destination, &port))
		context = mutex_proxy_context_of_current(sock_net(sk), &verdict);
	if (!context)
		return sk->sk_prot->connect(sk, uaddr, addr_len);

	if (verdict == MUTEX_PROXY_REFUSE || is_routed(sk)) {
		atomic64_inc(&context->blocked);
		err = -ENETUNREACH;
	} else {
		ops = mutex_proxy_ops_enter(&index);
		if (ops) {
			err = ops->connect(context, sk, &destination, port);
			mutex_proxy_ops_leave(index);
		} else {
			atomic64_inc(&context->failed);
			mutex_proxy_context_error(context, "the module mutex_proxy is not loaded");
			err = -ENETUNREACH;
		}
	}
	mutex_proxy_context_put(context);
	return err > 0 ? sk->sk_prot->connect(sk, uaddr, addr_len) : err;
}

void __mutex_proxy_attend(struct sock *sk)
{
	sk->sk_mutex_proxy->hold->attended = true;
}

void __mutex_proxy_proceed(struct sock *sk)
{
	const struct mutex_proxy_ops *ops;
	int index;

	ops = mutex_proxy_ops_enter(&index);
	if (!ops) { /* the module is being unloaded, and ends the handshake */
		__mutex_proxy_leave(sk);
		return;
	}
	ops->proceed(sk->sk_mutex_proxy->hold);
	mutex_proxy_ops_leave(index);
}

/* What happens from now on, and what has just happened, is for the module's own work. */
void __mutex_proxy_leave(struct sock *sk)
{
	struct mutex_proxy_hold *hold = sk->sk_mutex_proxy->hold;

	hold->attended = false;
	rcu_read_lock();
	hold->ops->event(hold);
	rcu_read_unlock();
}

int __mutex_proxy_wait(struct sock *sk, long timeo)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	int err = 0;

	add_wait_queue(sk_sleep(sk), &wait);
	while (mutex_proxy_held(sk)) {
		err = -EAGAIN;
		if (!timeo)
			break;
		err = sock_intr_errno(timeo);
		if (signal_pending(current))
			break;
		err = 0;
		release_sock(sk);
		timeo = wait_woken(&wait, TASK_INTERRUPTIBLE, timeo);
		lock_sock(sk);
	}
	remove_wait_queue(sk_sleep(sk), &wait);
	return err;
}

static void put_name(struct sockaddr_storage *address, const struct in6_addr *ip, const struct sock *sk)
{
	if (address->ss_family == AF_INET) {
		((struct sockaddr_in *)address)->sin_addr.s_addr = ip->s6_addr32[3];
	} else if (address->ss_family == AF_INET6) {
		struct sockaddr_in6 *sin6 = (struct sockaddr_in6 *)address;

		sin6->sin6_addr = *ip;
		sin6->sin6_scope_id = ipv6_iface_scope_id(ip, sk->sk_bound_dev_if);
	}
}

int __mutex_proxy_name(struct sock *sk, struct sockaddr_storage *address, int length, int peer)
{
	struct mutex_proxy_flow *flow;

	lock_sock(sk);
	flow = sk->sk_mutex_proxy;
	if (flow && peer == 1 && flow->hold) {
		length = -ENOTCONN;
	} else if (flow && peer) {
		put_name(address, &flow->destination, sk);
		((struct sockaddr_in *)address)->sin_port = htons(flow->port); /* stands there for IPv6, too */
	} else if (flow && !ipv6_addr_any(&flow->local)) {
		put_name(address, &flow->local, sk);
	}
	if (flow && !peer && flow->bound_port)
		((struct sockaddr_in *)address)->sin_port = htons(flow->bound_port);
	release_sock(sk);
	return length;
}

/* ---- what does not go through a proxy ---- */

enum leave {
	OPEN, /* not ours, or datagrams go directly */
	BLOCKED, /* `udp block`, or closed with `on-close refuse` */
};

/* The context of current in @net and its configuration, each NULL or referenced. */
static enum leave leave_of(struct net *net, struct mutex_proxy_context **context, struct mutex_proxy_config **config)
{
	enum mutex_proxy_verdict verdict;

	for (;;) {
		*config = NULL;
		*context = mutex_proxy_context_of_current(net, &verdict);
		if (!*context)
			return OPEN;
		if (verdict == MUTEX_PROXY_REFUSE)
			return BLOCKED;
		*config = mutex_proxy_config_get(*context);
		if (*config)
			return (*config)->settings.udp == MPROTO_UDP_BLOCK ? BLOCKED : OPEN;
		mutex_proxy_context_put(*context); /* closed this very moment: what that means is known now */
	}
}

static void leave_put(struct mutex_proxy_context *context, struct mutex_proxy_config *config)
{
	if (config)
		mutex_proxy_config_put(config);
	if (context)
		mutex_proxy_context_put(context);
}

bool mutex_proxy_blocks(struct net *net, const struct in6_addr *destination, u16 port)
{
	struct mutex_proxy_context *context;
	struct mutex_proxy_config *config;
	bool blocked;

	blocked = leave_of(net, &context, &config) == BLOCKED && !(config && mutex_proxy_bypassed(config, destination, port));
	if (blocked)
		atomic64_inc(&context->blocked);
	leave_put(context, config);
	return blocked;
}
EXPORT_SYMBOL_GPL(mutex_proxy_blocks);

int __mutex_proxy_dgram_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
{
	struct in6_addr destination;
	u16 port;

	if (sk->sk_kern_sock || !destination_of(sk, uaddr, addr_len, &destination, &port))
		return 0;
	return mutex_proxy_blocks(sock_net(sk), &destination, port) ? -ENETUNREACH : 0;
}

/*
 * Transports that no proxy carries are ways around it: to members, the kernel seems to lack them. Programs that ask for
 * MPTCP take TCP where it is missing.
 */
int __mutex_proxy_create(struct net *net, int family, int type, int protocol)
{
	struct mutex_proxy_context *context;
	struct mutex_proxy_config *config;
	enum leave verdict;
	bool member;

	bool inet = family == PF_INET || family == PF_INET6;

	if (!inet && family != PF_SMC && family != PF_RXRPC && family != PF_RDS && family != PF_TIPC)
		return 0;
	if (inet && type == SOCK_STREAM && (!protocol || protocol == IPPROTO_TCP))
		return 0;
	if (inet && type == SOCK_DGRAM && (!protocol || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE))
		return 0;
	verdict = leave_of(net, &context, &config);
	member = context;
	leave_put(context, config);
	if (!member)
		return 0;
	if (!inet || (type != SOCK_DGRAM && type != SOCK_RAW))
		return -EPROTONOSUPPORT;
	return verdict == BLOCKED ? -EPERM : 0;
}
