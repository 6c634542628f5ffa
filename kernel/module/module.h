/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The module's files, each named after what a flow passes: intercept, policy, dial; account and netfilter see packets.
 * Every *_init() has its *_exit(); main.c calls them, in reverse.
 */
#ifndef _MUTEX_PROXY_MODULE_H
#define _MUTEX_PROXY_MODULE_H

#include "context.h"

/* How many handshakes may be in flight on this machine: about 4 KiB each, besides the sockets. */
#define MUTEX_PROXY_DIALS_MAX 65536
#define MUTEX_PROXY_DIALS_PER_USER 32768

/* ---- intercept.c ---- */

int intercept_init(void);
void intercept_exit(void); /* no connect() is taken any more, and none is inside */

/* ---- policy.c ---- */

/* What there is to choose from at a moment, and what has been tried. */
struct policy {
	struct mutex_proxy_config *config;
	u64 tried; /* a bit for each server */
};

/* The next server to try, -1 when there is none. It counts as tried. */
int policy_next(struct policy *policy);
/* How many there would still be. */
unsigned int policy_left(const struct policy *policy);
/* `why` is for people, here and below. */
void policy_tell(struct mutex_proxy_context *context, const struct policy *policy, int server, const char *why);
/* The server is at fault: others are tried before it for a while. */
void policy_failed(struct mutex_proxy_context *context, struct policy *policy, int server, const char *why);
/* It has answered: with yes, or with the destination's refusal. */
void policy_connected(struct policy *policy, int server);
void policy_refused(struct mutex_proxy_context *context, struct policy *policy, int server, const char *why);

/* ---- dial.c ---- */

int dial_init(void);
void dial_exit(void); /* handshakes in flight end with ENETUNREACH */

/*
 * Begins to reach the flow's destination; under the socket's lock. 0: the socket is held, and takes the flow over. An
 * error: no server could be tried; the flow is gone and the socket as it was.
 */
int dial_begin(struct mutex_proxy_flow *flow, const struct mutex_proxy_ops *ops);
void dial_event(struct mutex_proxy_hold *hold);
void dial_proceed(struct mutex_proxy_hold *hold);
void dial_abandoned(struct mutex_proxy_hold *hold);

/* ---- account.c: packets of each network namespace ---- */

enum account_point { ACCOUNT_OUT, ACCOUNT_IN, ACCOUNT_LEAVING, ACCOUNT_POINTS };

int account_init(void);
void account_exit(void);
void account_packet(struct net *net, enum account_point point, unsigned int bytes);
void account_blocked(struct net *net);

/* ---- netfilter.c ---- */

#define NETFILTER_POINTS 3

int netfilter_init(void);
void netfilter_exit(void);

/*
 * Where a packet goes (v4-mapped for IPv4). The port is 0 unless it is one of UDP, or when that cannot be told. One with
 * an IPv6 routing header goes wherever its sender likes: unspecified.
 */
void netfilter_destination(const struct sk_buff *skb, u8 family, struct in6_addr *destination, u16 *port);

#endif
