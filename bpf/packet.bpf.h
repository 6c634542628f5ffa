/* SPDX-License-Identifier: GPL-2.0-only */
/* A TCP packet as it lies in a buffer: read, and written again with its checksums. */
#ifndef MPROX_PACKET_BPF_H
#define MPROX_PACKET_BPF_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bpf/mprox.h"
#include "bpf/options.bpf.h"

#define OPTION_JUMBO 0xc2 /* of IPv6 */

/* As on the wire. What is not there is zero, so that it adds nothing to a checksum. */
struct header {
	struct tcphdr tcp;
	__u32 option[OPTION_WORDS];
};

struct jumbo_header {
	__u8 next, size; /* size: 8 bytes, and so many times 8 */
	__u8 option, option_size;
	__u32 length;
};

struct packet {
	struct mprox_splice_key key;
	struct header old, new;
	__u32 network, transport; /* offsets of the headers */
	__u32 payload; /* bytes */
	__u32 words; /* of options */
	bool ip6;
	bool back; /* it is to return where it came from, as an answer */
	bool again; /* it has come before */
	bool direct; /* it has its socket already, and keeps addresses and ports */
};

/* False: not a whole TCP packet. `packet` is zero but for the namespace in its key. */
static __always_inline bool read_packet(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
	__u32 size;

	packet->network = network;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, network, &ip, sizeof(ip)))
			return false;
		if (ip.ihl < 5 || ip.protocol != IPPROTO_TCP || (ip.frag_off & bpf_htons(0x3fff)))
			return false;
		packet->key.source.word[2] = packet->key.destination.word[2] = bpf_htonl(0xffff);
		packet->key.source.word[3] = ip.saddr;
		packet->key.destination.word[3] = ip.daddr;
		packet->transport = network + ip.ihl * 4;
		size = bpf_ntohs(ip.tot_len) ? network + bpf_ntohs(ip.tot_len) : skb->len;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, network, &ip, sizeof(ip)))
			return false;
		packet->transport = network + sizeof(ip);
		if (ip.nexthdr == IPPROTO_HOPOPTS) {
			struct jumbo_header jumbo;

			/* The kernel's own, until it cuts up a segment that is larger than 65535 bytes. */
			if (bpf_skb_load_bytes(skb, packet->transport, &jumbo, sizeof(jumbo)))
				return false;
			if (jumbo.size || jumbo.option != OPTION_JUMBO)
				return false;
			ip.nexthdr = jumbo.next;
			packet->transport += sizeof(jumbo);
		}
		if (ip.nexthdr != IPPROTO_TCP)
			return false;
		__builtin_memcpy(&packet->key.source, &ip.saddr, 16);
		__builtin_memcpy(&packet->key.destination, &ip.daddr, 16);
		size = ip.payload_len ? network + sizeof(ip) + bpf_ntohs(ip.payload_len) : skb->len;
		packet->ip6 = true;
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, packet->transport, &packet->old.tcp, sizeof(packet->old.tcp)))
		return false;
	packet->key.source_port = packet->old.tcp.source;
	packet->key.destination_port = packet->old.tcp.dest;
	packet->words = packet->old.tcp.doff - 5;
	packet->payload = size - packet->transport - packet->old.tcp.doff * 4;
	return packet->old.tcp.doff >= 5 && packet->payload <= skb->len;
}

static __always_inline bool read_options(struct __sk_buff *skb, struct packet *packet)
{
	__u32 at = packet->transport + sizeof(packet->old.tcp);

	/* What nearly every packet has: NOP, NOP, timestamps. */
	if (packet->words == 3)
		return !bpf_skb_load_bytes(skb, at, packet->old.option, 12);
	for (__u32 i = 0; i < OPTION_WORDS; i++)
		if (i < packet->words && bpf_skb_load_bytes(skb, at + i * 4, &packet->old.option[i], 4))
			return false;
	return true;
}

/* `difference` is what they make in a checksum. */
static __always_inline bool write_addresses(struct __sk_buff *skb, const struct mprox_splice *splice, const struct packet *packet,
					    __s64 *difference)
{
	if (packet->ip6) {
		union mprox_ip pair[2] = { splice->source, splice->destination };

		*difference = bpf_csum_diff((__be32 *)&packet->key.source, 32, (__be32 *)pair, 32, 0);
		return !bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct ipv6hdr, saddr), pair, 32, 0);
	} else {
		__be32 old[2] = { packet->key.source.word[3], packet->key.destination.word[3] };
		__be32 pair[2] = { splice->source.word[3], splice->destination.word[3] };

		*difference = bpf_csum_diff(old, 8, pair, 8, 0);
		return !bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct iphdr, saddr), pair, 8, 0) &&
		       !bpf_l3_csum_replace(skb, packet->network + __builtin_offsetof(struct iphdr, check), 0, *difference, 0);
	}
}

static __always_inline bool write_packet(struct __sk_buff *skb, const struct mprox_splice *splice, struct packet *packet,
					 bool received)
{
	__u32 check = packet->transport + __builtin_offsetof(struct tcphdr, check);
	__u32 at = packet->transport + sizeof(struct tcphdr);
	__s64 addresses = 0, rest;

	if (!packet->direct && !write_addresses(skb, splice, packet, &addresses))
		return false;
	if (bpf_skb_store_bytes(skb, packet->transport, &packet->new.tcp, sizeof(struct tcphdr), 0))
		return false;
	if (packet->words == 3) {
		rest = bpf_csum_diff((__be32 *)&packet->old, 32, (__be32 *)&packet->new, 32, 0);
		if (bpf_skb_store_bytes(skb, at, packet->new.option, 12, 0))
			return false;
	} else {
		rest = bpf_csum_diff((__be32 *)&packet->old, sizeof(struct header), (__be32 *)&packet->new,
				     sizeof(struct header), 0);
		for (__u32 i = 0; i < OPTION_WORDS; i++)
			if (packet->new.option[i] != packet->old.option[i] &&
			    bpf_skb_store_bytes(skb, at + i * 4, &packet->new.option[i], 4, 0))
				return false;
	}
	if (bpf_l4_csum_replace(skb, check, 0, rest, 0) ||
	    (addresses && bpf_l4_csum_replace(skb, check, 0, addresses, BPF_F_PSEUDO_HDR)))
		return false;
	/*
	 * A device that has summed up the whole packet: the kernel takes the addresses' difference out of that sum, but an
	 * IPv6 header has no checksum of its own that would have put it in.
	 */
	if (received && packet->ip6)
		bpf_csum_update(skb, addresses);
	return true;
}

#endif
