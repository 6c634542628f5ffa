/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the socket layer asks net/mutex_proxy/socket.c.
 *
 * A socket is held while the module shakes hands with a proxy on it. Whatever TCP's own state is meanwhile, the
 * application is to see a socket in SYN_SENT. Both fields in struct sock change only under the socket's lock.
 */
#ifndef _NET_MUTEX_PROXY_H
#define _NET_MUTEX_PROXY_H

#include <linux/mutex_proxy.h>
#include <net/sock.h>
#include <net/tcp_states.h>

#ifdef CONFIG_MUTEX_PROXY

int __mutex_proxy_create(struct net *net, int family, int type, int protocol);
int __mutex_proxy_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len);
int __mutex_proxy_dgram_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len);
void __mutex_proxy_attend(struct sock *sk);
void __mutex_proxy_proceed(struct sock *sk);
void __mutex_proxy_leave(struct sock *sk);
int __mutex_proxy_wait(struct sock *sk, long timeo);
bool __mutex_proxy_may_route(struct sock *sk);
int __mutex_proxy_name(struct sock *sk, struct sockaddr_storage *address, int length, int peer);
void __mutex_proxy_release(struct sock *sk);

static inline bool mutex_proxy_held(const struct sock *sk)
{
	if (!mutex_proxy_any())
		return false;
	/* Pairs with unhold(): who sees that it is no longer held sees what became of it. */
	return smp_load_acquire(&sk->sk_mutex_proxy_held);
}

/* The state to show to the application. */
static inline int mutex_proxy_state(const struct sock *sk)
{
	return mutex_proxy_held(sk) ? TCP_SYN_SENT : READ_ONCE(sk->sk_state);
}

/* May current have such a socket? */
static inline int mutex_proxy_create(struct net *net, int family, int type, int protocol, int kern)
{
	return mutex_proxy_any() && !kern ? __mutex_proxy_create(net, family, type, protocol) : 0;
}

/* Takes the place of sk_prot->connect(), under the socket's lock. */
static inline int mutex_proxy_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
{
	if (mutex_proxy_any())
		return __mutex_proxy_connect(sk, uaddr, addr_len);
	return sk->sk_prot->connect(sk, uaddr, addr_len);
}

/*
 * A connect() that blocks does the handshake itself, all under the socket's lock: it attends before it waits, proceeds
 * when it has the lock again, and leaves when it waits no more.
 */
static inline void mutex_proxy_attend(struct sock *sk)
{
	if (mutex_proxy_held(sk))
		__mutex_proxy_attend(sk);
}

static inline void mutex_proxy_proceed(struct sock *sk)
{
	if (mutex_proxy_held(sk))
		__mutex_proxy_proceed(sk);
}

static inline void mutex_proxy_leave(struct sock *sk)
{
	if (mutex_proxy_held(sk))
		__mutex_proxy_leave(sk);
}

/* A datagram socket is pointed somewhere; without the socket's lock. */
static inline int mutex_proxy_dgram_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
{
	return mutex_proxy_any() ? __mutex_proxy_dgram_connect(sk, uaddr, addr_len) : 0;
}

/* May current say by way of which hosts the packets of this socket go (source routing)? Under the socket's lock. */
static inline bool mutex_proxy_may_route(struct sock *sk)
{
	return !mutex_proxy_any() || __mutex_proxy_may_route(sk);
}

/* Waits, under the socket's lock, while it is held: 0, EAGAIN, or the error of a signal. */
static inline int mutex_proxy_wait(struct sock *sk, long timeo)
{
	return mutex_proxy_held(sk) ? __mutex_proxy_wait(sk, timeo) : 0;
}

/*
 * Puts the names of a direct connection into *@address. @length is what getname() returned: a length, or an error. @peer is
 * as for getname(): 0, 1, or 2 where a socket that is not connected yet has a peer, too.
 */
static inline int mutex_proxy_name(struct sock *sk, struct sockaddr_storage *address, int length, int peer)
{
	if (mutex_proxy_any() && length > 0 && READ_ONCE(sk->sk_mutex_proxy))
		return __mutex_proxy_name(sk, address, length, peer);
	return length;
}

/* The connection is no more, or is not to be; its counters can still be read. Under the socket's lock. */
static inline void mutex_proxy_release(struct sock *sk)
{
	if (mutex_proxy_any() && sk->sk_mutex_proxy)
		__mutex_proxy_release(sk);
}

#else

static inline bool mutex_proxy_held(const struct sock *sk)
{
	return false;
}

static inline int mutex_proxy_state(const struct sock *sk)
{
	return sk->sk_state;
}

static inline int mutex_proxy_create(struct net *net, int family, int type, int protocol, int kern)
{
	return 0;
}

static inline int mutex_proxy_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
{
	return sk->sk_prot->connect(sk, uaddr, addr_len);
}

static inline void mutex_proxy_attend(struct sock *sk)
{
}

static inline void mutex_proxy_proceed(struct sock *sk)
{
}

static inline void mutex_proxy_leave(struct sock *sk)
{
}

static inline int mutex_proxy_dgram_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
{
	return 0;
}

static inline bool mutex_proxy_may_route(struct sock *sk)
{
	return true;
}

static inline int mutex_proxy_wait(struct sock *sk, long timeo)
{
	return 0;
}

static inline int mutex_proxy_name(struct sock *sk, struct sockaddr_storage *address, int length, int peer)
{
	return length;
}

static inline void mutex_proxy_release(struct sock *sk)
{
}

#endif
#endif
