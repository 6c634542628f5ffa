// SPDX-License-Identifier: GPL-2.0-only
/*
 * What does not go by TCP: counted, and stopped where members leave it (LOCAL_OUT) when the context says so. TCP is left
 * alone: intercept decides about it once, at connect(), and its sockets count for themselves.
 */
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6.h>
#include <linux/udp.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/net_namespace.h>
#include "module.h"

void netfilter_destination(const struct sk_buff *skb, u8 family, struct in6_addr *destination, u16 *port)
{
	struct udphdr buffer;
	const struct udphdr *udp;
	int offset, protocol;
	__be16 fragment;
	u8 next;

	*port = 0;
	if (family == NFPROTO_IPV4) {
		ipv6_addr_set_v4mapped(ip_hdr(skb)->daddr, destination);
		protocol = ip_hdr(skb)->protocol;
		offset = skb_network_offset(skb) + ip_hdrlen(skb);
	} else {
		offset = 0;
		*destination = ipv6_hdr(skb)->daddr;
		if (ipv6_find_hdr(skb, &offset, NEXTHDR_ROUTING, NULL, NULL) == NEXTHDR_ROUTING)
			*destination = in6addr_any;
		next = ipv6_hdr(skb)->nexthdr;
		offset = ipv6_skip_exthdr(skb, skb_network_offset(skb) + sizeof(struct ipv6hdr), &next, &fragment);
		if (offset < 0)
			return;
		protocol = next;
	}
	if (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE) {
		udp = skb_header_pointer(skb, offset, sizeof(buffer), &buffer);
		if (udp)
			*port = ntohs(udp->dest);
	}
}

static bool is_tcp(const struct sk_buff *skb, u8 family)
{
	return (family == NFPROTO_IPV4 ? ip_hdr(skb)->protocol : ipv6_hdr(skb)->nexthdr) == IPPROTO_TCP;
}

static bool counts_for_itself(const struct sock *sk)
{
	return sk && (!sk_fullsock(sk) || (sk->sk_type == SOCK_STREAM && sk->sk_protocol == IPPROTO_TCP));
}

static unsigned int local_out(void *unused, struct sk_buff *skb, const struct nf_hook_state *state)
{
	const struct sock *sk = state->sk;
	struct in6_addr destination;
	u16 port;

	if (counts_for_itself(sk))
		return NF_ACCEPT;
	/* Only what a process sends right now has a sender to ask about. A raw socket may send TCP, too. */
	if (sk && !sk->sk_kern_sock && in_task() && mutex_proxy_any()) {
		netfilter_destination(skb, state->pf, &destination, &port);
		if (mutex_proxy_blocks(state->net, &destination, port)) {
			account_blocked(state->net);
			return NF_DROP_ERR(-ENETUNREACH);
		}
	}
	account_packet(state->net, ACCOUNT_OUT, skb->len);
	return NF_ACCEPT;
}

static unsigned int pre_routing(void *unused, struct sk_buff *skb, const struct nf_hook_state *state)
{
	if (!is_tcp(skb, state->pf))
		account_packet(state->net, ACCOUNT_IN, skb->len);
	return NF_ACCEPT;
}

static unsigned int post_routing(void *unused, struct sk_buff *skb, const struct nf_hook_state *state)
{
	if (!is_tcp(skb, state->pf))
		account_packet(state->net, ACCOUNT_LEAVING, skb->len);
	return NF_ACCEPT;
}

#define HOOKS(family, first, last) \
	{ .hook = local_out, .pf = family, .hooknum = NF_INET_LOCAL_OUT, .priority = first }, \
	{ .hook = pre_routing, .pf = family, .hooknum = NF_INET_PRE_ROUTING, .priority = first }, \
	{ .hook = post_routing, .pf = family, .hooknum = NF_INET_POST_ROUTING, .priority = last }

/* Before any rule can rewrite what a member sends, and after all have seen what leaves. */
static const struct nf_hook_ops hooks[] = {
	HOOKS(NFPROTO_IPV4, NF_IP_PRI_FIRST, NF_IP_PRI_LAST),
	HOOKS(NFPROTO_IPV6, NF_IP6_PRI_FIRST, NF_IP6_PRI_LAST),
};

static int __net_init netfilter_net_init(struct net *net)
{
	return nf_register_net_hooks(net, hooks, ARRAY_SIZE(hooks));
}

static void __net_exit netfilter_net_exit(struct net *net)
{
	nf_unregister_net_hooks(net, hooks, ARRAY_SIZE(hooks));
}

static struct pernet_operations netfilter_net_ops = {
	.init = netfilter_net_init,
	.pre_exit = netfilter_net_exit,
};

int netfilter_init(void)
{
	BUILD_BUG_ON(ARRAY_SIZE(hooks) != 2 * NETFILTER_POINTS);
	return register_pernet_subsys(&netfilter_net_ops);
}

void netfilter_exit(void)
{
	unregister_pernet_subsys(&netfilter_net_ops);
}
