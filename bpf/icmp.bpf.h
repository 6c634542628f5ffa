/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP errors about packets that were translated on their way out: "too big", "unreachable", "time exceeded". The sender
 * knows them by what they quote, so that is what it was before, for the application's socket to find itself in it.
 */
#ifndef MPROX_ICMP_BPF_H
#define MPROX_ICMP_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bpf/options.bpf.h"
#include "bpf/packet.bpf.h"
#include "bpf/splices.bpf.h"

/* <linux/icmp.h> wants a C library. The header is the same in both versions. */
struct icmp_header {
	__u8 type, code;
	__sum16 check;
	__be32 data;
};

enum { ICMP_UNREACHABLE = 3, ICMP_TIME_EXCEEDED = 11, ICMP_PARAMETER = 12 };
#define ICMPV6_ERROR_MAX 4 /* unreachable, too big, time exceeded, parameter: from 1 */

#define QUOTED_LEAST 8 /* bytes of a TCP header: the ports and the sequence number */

/* As far as it is there; the rest is zero. */
struct quoted {
	union {
		struct iphdr ip4;
		struct ipv6hdr ip6;
	};
	struct tcphdr tcp;
};

struct error {
	struct mprox_splice_key key; /* of the packets that come the other way */
	__u32 network, icmp, quoted_ip, quoted_tcp; /* offsets */
	bool ip6;
	bool whole; /* the TCP header is quoted in full */
};

static __always_inline bool is_error4(__u8 type)
{
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

static __always_inline bool read_error4(struct __sk_buff *skb, struct error *error)
{
	struct iphdr ip;
	__u8 type;

	if (bpf_skb_load_bytes(skb, error->network, &ip, sizeof(ip)))
		return false;
	if (ip.ihl < 5 || ip.protocol != IPPROTO_ICMP || (ip.frag_off & bpf_htons(0x3fff)))
		return false;
	error->icmp = error->network + ip.ihl * 4;
	error->quoted_ip = error->icmp + sizeof(struct icmp_header);
	error->key.destination.word[3] = ip.daddr;
	if (bpf_skb_load_bytes(skb, error->icmp, &type, 1) || !is_error4(type) ||
	    bpf_skb_load_bytes(skb, error->quoted_ip, &ip, sizeof(ip)))
		return false;
	if (ip.ihl < 5 || ip.protocol != IPPROTO_TCP || (ip.frag_off & bpf_htons(0x1fff)) ||
	    ip.saddr != error->key.destination.word[3])
		return false;
	error->quoted_tcp = error->quoted_ip + ip.ihl * 4;
	error->key.source.word[2] = error->key.destination.word[2] = bpf_htonl(0xffff);
	error->key.source.word[3] = ip.daddr;
	return true;
}

static __always_inline bool read_error6(struct __sk_buff *skb, struct error *error)
{
	struct ipv6hdr ip;
	__u8 type;

	if (bpf_skb_load_bytes(skb, error->network, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_ICMPV6)
		return false;
	error->icmp = error->network + sizeof(ip);
	error->quoted_ip = error->icmp + sizeof(struct icmp_header);
	error->quoted_tcp = error->quoted_ip + sizeof(ip);
	__builtin_memcpy(&error->key.destination, &ip.daddr, 16);
	if (bpf_skb_load_bytes(skb, error->icmp, &type, 1) || !type || type > ICMPV6_ERROR_MAX ||
	    bpf_skb_load_bytes(skb, error->quoted_ip, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP)
		return false;
	__builtin_memcpy(&error->key.source, &ip.saddr, 16);
	if (error->key.source.half[0] != error->key.destination.half[0] ||
	    error->key.source.half[1] != error->key.destination.half[1])
		return false;
	__builtin_memcpy(&error->key.source, &ip.daddr, 16);
	return true;
}

static __always_inline bool read_quoted(struct __sk_buff *skb, const struct error *error, struct quoted *quoted)
{
	if (error->ip6 ? bpf_skb_load_bytes(skb, error->quoted_ip, &quoted->ip6, sizeof(quoted->ip6))
		       : bpf_skb_load_bytes(skb, error->quoted_ip, &quoted->ip4, sizeof(quoted->ip4)))
		return false;
	if (error->whole)
		return !bpf_skb_load_bytes(skb, error->quoted_tcp, &quoted->tcp, sizeof(quoted->tcp));
	return !bpf_skb_load_bytes(skb, error->quoted_tcp, &quoted->tcp, QUOTED_LEAST);
}

/*
 * Every checksum by difference, the outermost last. Together the changes add nothing to the sum of the packet, so one
 * that a device has made stays right.
 */
static __always_inline bool write_error(struct __sk_buff *skb, const struct error *error, const struct mprox_splice *splice)
{
	const __u32 check = error->icmp + __builtin_offsetof(struct icmp_header, check);
	struct quoted old = {}, new = {};
	__s64 addresses, rest, difference = 0;

	if (!read_quoted(skb, error, &old))
		return false;
	new.tcp.source = splice->destination_port;
	new.tcp.dest = splice->source_port;
	new.tcp.seq = plus(old.tcp.seq, splice->acknowledgement);
	rest = bpf_csum_diff((__be32 *)&old.tcp, QUOTED_LEAST, (__be32 *)&new.tcp, QUOTED_LEAST, 0);
	if (error->ip6) {
		union mprox_ip pair[2] = { splice->destination, splice->source };

		addresses = bpf_csum_diff((__be32 *)&old.ip6.saddr, 32, (__be32 *)pair, 32, rest);
		difference = bpf_csum_diff((__be32 *)&error->key.destination, 16, (__be32 *)pair, 16, 0);
		if (bpf_skb_store_bytes(skb, error->network + __builtin_offsetof(struct ipv6hdr, daddr), pair, 16, 0) ||
		    bpf_skb_store_bytes(skb, error->quoted_ip + __builtin_offsetof(struct ipv6hdr, saddr), pair, 32, 0))
			return false;
	} else {
		__be32 pair[2] = { splice->destination.word[3], splice->source.word[3] };
		__s64 outer = bpf_csum_diff(&old.ip4.saddr, 4, pair, 4, 0);

		addresses = bpf_csum_diff(&old.ip4.saddr, 8, pair, 8, 0);
		if (bpf_skb_store_bytes(skb, error->network + __builtin_offsetof(struct iphdr, daddr), pair, 4, 0) ||
		    bpf_l3_csum_replace(skb, error->network + __builtin_offsetof(struct iphdr, check), 0, outer, 0) ||
		    bpf_skb_store_bytes(skb, error->quoted_ip + __builtin_offsetof(struct iphdr, saddr), pair, 8, 0) ||
		    bpf_l3_csum_replace(skb, error->quoted_ip + __builtin_offsetof(struct iphdr, check), 0, addresses, 0))
			return false;
		addresses = bpf_csum_diff(&old.ip4.saddr, 8, pair, 8, rest);
	}
	if (bpf_skb_store_bytes(skb, error->quoted_tcp, &new.tcp, QUOTED_LEAST, 0))
		return false;
	if (error->whole &&
	    bpf_l3_csum_replace(skb, error->quoted_tcp + __builtin_offsetof(struct tcphdr, check), 0, addresses, 0))
		return false;
	if (!read_quoted(skb, error, &new))
		return false;
	difference = bpf_csum_diff((__be32 *)&old, sizeof(old), (__be32 *)&new, sizeof(new), difference);
	return !bpf_l3_csum_replace(skb, check, 0, difference, 0);
}

enum error_verdict {
	ERROR_OTHER, /* nothing of ours, and as it was */
	ERROR_TRANSLATED,
	ERROR_BROKEN, /* no longer as it was */
};

static __always_inline enum error_verdict translate_error(struct __sk_buff *skb, struct error *error)
{
	struct tcphdr tcp;
	struct mprox_splice *splice;

	error->ip6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	if (error->ip6 ? !read_error6(skb, error) : skb->protocol != bpf_htons(ETH_P_IP) || !read_error4(skb, error))
		return ERROR_OTHER;
	error->whole = !bpf_skb_load_bytes(skb, error->quoted_tcp, &tcp, sizeof(tcp));
	if (!error->whole && bpf_skb_load_bytes(skb, error->quoted_tcp, &tcp, QUOTED_LEAST))
		return ERROR_OTHER;
	error->key.source_port = tcp.dest;
	error->key.destination_port = tcp.source;
	splice = bpf_map_lookup_elem(&splices, &error->key);
	if (!splice || splice->outward || splice->way == MPROX_WAY_WATCH)
		return ERROR_OTHER;
	return write_error(skb, error, splice) ? ERROR_TRANSLATED : ERROR_BROKEN;
}

#endif
