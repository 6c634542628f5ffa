// SPDX-License-Identifier: GPL-2.0-only
/*
 * Translates the packets of spliced connections: the application's socket speaks to the server's, and neither knows.
 *
 *   lo egress          from the application: becomes the server's connection, and leaves through the server's device.
 *                      To and from a server on this host: becomes the other's connection, and stays on lo
 *   device ingress     from the server: becomes the application's connection, and goes on through lo
 *
 * A packet of no connection of ours costs one failed look-up and goes its way. Loaded once for each network namespace:
 * tc programs of Linux 6.1 cannot ask which one they are in. docs/splicing.md has the drawing.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bpf/splices.bpf.h"

#ifndef NULL
#define NULL ((void *)0)
#endif

#define LOOPBACK 1 /* the index of lo, in every network namespace */
#define PACKET_HOST 0
#define OPTION_WORDS (MPROX_OPTIONS_MAX / 4)
#define OPTION_JUMBO 0xc2 /* of IPv6 */
#define OPTION_SACK 5 /* of TCP, as the next */
#define OPTION_TIMESTAMP 8

const volatile __u64 netns; /* cookie of the namespace these are loaded for */

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
};

static __always_inline bool read_packet(struct __sk_buff *skb, __u32 network, struct packet *packet)
{
	__u32 size;

	packet->network = network;
	packet->key.netns = netns;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, network, &ip, sizeof(ip)))
			return false;
		if (ip.protocol != IPPROTO_TCP || (ip.frag_off & bpf_htons(0x3fff)))
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

static __always_inline __u32 plus(__u32 network_order, __u32 delta)
{
	return bpf_htonl(bpf_ntohl(network_order) + delta);
}

/* What to add to the numbers in the options; and the timestamp that was found. */
struct edit {
	__u32 acknowledgement, timestamp, echo;
	__u32 found;
};

/* Options laid out in words, as every kernel in use does: true when these were. */
static __always_inline bool edit_words(struct packet *packet, struct edit *edit)
{
	__u32 *option = packet->new.option, words = packet->words;
	__u32 sack = 0, size;

	if (option[0] == bpf_htonl(0x0101080a)) {
		edit->found = bpf_ntohl(option[1]);
		option[1] = plus(option[1], edit->timestamp);
		option[2] = plus(option[2], edit->echo);
		if (words == 3)
			return true;
		sack = 3;
	}
	size = bpf_ntohl(sack ? option[3] : option[0]);
	if ((size & 0xffffff00) != (0x01010000 | OPTION_SACK << 8))
		return false;
	size &= 0xff;
	if (size + 2 != (words - sack) * 4)
		return false;
	if (sack) {
		for (__u32 i = 4; i < OPTION_WORDS; i++)
			if (i < words)
				option[i] = plus(option[i], edit->acknowledgement);
	} else {
		for (__u32 i = 1; i < OPTION_WORDS; i++)
			if (i < words)
				option[i] = plus(option[i], edit->acknowledgement);
	}
	return true;
}

struct bytes {
	__u32 length;
	__u32 at;
	struct edit edit;
	__u8 byte[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bytes);
} scratch SEC(".maps");

static __always_inline __u32 add_at(struct bytes *o, __u32 at, __u32 delta)
{
	__u32 value = o->byte[at & 63] << 24 | o->byte[(at + 1) & 63] << 16 | o->byte[(at + 2) & 63] << 8 | o->byte[(at + 3) & 63];
	__u32 sum = value + delta;

	o->byte[at & 63] = sum >> 24;
	o->byte[(at + 1) & 63] = sum >> 16;
	o->byte[(at + 2) & 63] = sum >> 8;
	o->byte[(at + 3) & 63] = sum;
	return value;
}

static long edit_option(__u32 index, void *context)
{
	__u32 zero = 0, at, kind, size;
	struct bytes *o = bpf_map_lookup_elem(&scratch, &zero);

	if (!o || o->at >= o->length)
		return 1;
	at = o->at;
	kind = o->byte[at & 63];
	if (kind == 0)
		return 1;
	if (kind == 1) {
		o->at = at + 1;
		return 0;
	}
	size = o->byte[(at + 1) & 63];
	if (size < 2 || at + size > o->length)
		return 1;
	if (kind == OPTION_TIMESTAMP && size == 10) {
		o->edit.found = add_at(o, at + 2, o->edit.timestamp);
		add_at(o, at + 6, o->edit.echo);
	} else if (kind == OPTION_SACK) {
		for (__u32 block = 0; block < 8; block++)
			if (2 + block * 4 + 4 <= size)
				add_at(o, at + 2 + block * 4, o->edit.acknowledgement);
	}
	o->at = at + size;
	return 0;
}

/* In any order and at any offset. */
static __always_inline void edit_bytes(struct packet *packet, struct edit *edit)
{
	__u32 zero = 0;
	struct bytes *o = bpf_map_lookup_elem(&scratch, &zero);

	if (!o)
		return;
	o->length = packet->words * 4;
	o->at = 0;
	o->edit = *edit;
	__builtin_memcpy(o->byte, packet->new.option, MPROX_OPTIONS_MAX);
	bpf_loop(MPROX_OPTIONS_MAX, edit_option, NULL, 0);
	edit->found = o->edit.found;
	__builtin_memcpy(packet->new.option, o->byte, MPROX_OPTIONS_MAX);
}

static __always_inline void edit_options(struct packet *packet, struct edit *edit)
{
	if (packet->words && !edit_words(packet, edit)) {
		/* Whatever was edited on the way is edited again. */
		__builtin_memcpy(packet->new.option, packet->old.option, MPROX_OPTIONS_MAX);
		edit_bytes(packet, edit);
	}
}

static __always_inline void count(struct mprox_splice *splice, const struct packet *packet)
{
	const struct tcphdr *tcp = &packet->old.tcp;
	__u32 end = bpf_ntohl(tcp->seq) + packet->payload;
	__u32 acked = bpf_ntohl(tcp->ack_seq);

	splice->packets++;
	if (packet->payload && (__s32)(end - splice->next) > 0) {
		splice->bytes += end - splice->next;
		splice->next = end;
	}
	if (tcp->ack && (__s32)(acked - splice->acked) > 0)
		splice->acked = acked;
	if (tcp->fin)
		__sync_fetch_and_or(&splice->seen, MPROX_SEEN_FIN);
	if (tcp->rst)
		__sync_fetch_and_or(&splice->seen, MPROX_SEEN_RST);
}

static __always_inline void edit_header(const struct mprox_splice *splice, struct packet *packet)
{
	struct tcphdr *tcp = &packet->new.tcp;
	__u32 window = bpf_ntohs(tcp->window);

	tcp->source = splice->source_port;
	tcp->dest = splice->destination_port;
	tcp->seq = plus(tcp->seq, splice->sequence);
	if (tcp->ack)
		tcp->ack_seq = plus(tcp->ack_seq, splice->acknowledgement);
	if (splice->window_left != splice->window_right) {
		window = window << (splice->window_left & 15) >> (splice->window_right & 15);
		tcp->window = bpf_htons(window > 0xffff ? 0xffff : window);
	}
}

static __always_inline bool write_packet(struct __sk_buff *skb, const struct mprox_splice *splice, struct packet *packet,
					 bool received)
{
	__u32 check = packet->transport + __builtin_offsetof(struct tcphdr, check);
	__u32 at = packet->transport + sizeof(struct tcphdr);
	__s64 addresses, rest;

	if (packet->ip6) {
		union mprox_ip pair[2] = { splice->source, splice->destination };

		addresses = bpf_csum_diff((__be32 *)&packet->key.source, 32, (__be32 *)pair, 32, 0);
		if (bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct ipv6hdr, saddr), pair, 32, 0))
			return false;
	} else {
		__be32 old[2] = { packet->key.source.word[3], packet->key.destination.word[3] };
		__be32 pair[2] = { splice->source.word[3], splice->destination.word[3] };

		addresses = bpf_csum_diff(old, 8, pair, 8, 0);
		if (bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct iphdr, saddr), pair, 8, 0) ||
		    bpf_l3_csum_replace(skb, packet->network + __builtin_offsetof(struct iphdr, check), 0, addresses, 0))
			return false;
	}
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
	    bpf_l4_csum_replace(skb, check, 0, addresses, BPF_F_PSEUDO_HDR))
		return false;
	/*
	 * A device that has summed up the whole packet: the kernel takes the addresses' difference out of that sum, but an
	 * IPv6 header has no checksum of its own that would have put it in.
	 */
	if (received && packet->ip6)
		bpf_csum_update(skb, addresses);
	return true;
}

/* On to the application. */
static __always_inline int through_loopback(struct __sk_buff *skb, const struct packet *packet)
{
	struct ethhdr ethernet = { .h_proto = skb->protocol };

	if (!packet->network && bpf_skb_change_head(skb, sizeof(ethernet), 0))
		return TC_ACT_SHOT;
	/* lo's own address: anything else would count as somebody else's packet. */
	if (bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0))
		return TC_ACT_SHOT;
	if (packet->ip6)
		return bpf_redirect(LOOPBACK, BPF_F_INGRESS);
	/*
	 * IPv4 takes no packet from 127.0.0.0/8 in that it has to route, not even on lo. One that is sent through lo brings its
	 * route along. The kernel counts the Ethernet header in when it hands the packet over, and does not count it out.
	 */
	bpf_csum_update(skb, ~(__u32)skb->protocol);
	return bpf_redirect_neigh(LOOPBACK, NULL, 0, 0);
}

static __always_inline int translate(struct __sk_buff *skb, __u32 network, bool received)
{
	struct packet packet = {};
	struct mprox_splice *splice;
	struct edit edit = {};

	if (!read_packet(skb, network, &packet))
		return TC_ACT_UNSPEC;
	splice = bpf_map_lookup_elem(&splices, &packet.key);
	if (!splice || !read_options(skb, &packet))
		return TC_ACT_UNSPEC;
	packet.new = packet.old;
	edit.acknowledgement = splice->acknowledgement;
	edit.timestamp = splice->timestamp;
	edit.echo = packet.old.tcp.ack ? splice->echo : 0;
	edit_options(&packet, &edit);
	if (edit.found)
		splice->last_timestamp = edit.found;
	if (splice->way == MPROX_WAY_WATCH) {
		splice->ifindex = skb->ifindex;
		splice->packets++;
		return TC_ACT_UNSPEC;
	}
	/*
	 * A socket in SYN_SENT answers anything but a SYN-ACK with a reset, which would end the server's side. What comes too
	 * early comes again.
	 */
	if (!splice->outward && !(splice->seen & MPROX_OPENED))
		return TC_ACT_SHOT;
	count(splice, &packet);
	edit_header(splice, &packet);
	if (!write_packet(skb, splice, &packet, received))
		return TC_ACT_SHOT;
	if (splice->way == MPROX_WAY_OUT)
		return bpf_redirect_neigh(splice->ifindex, NULL, 0, 0);
	if (splice->way == MPROX_WAY_IN)
		return through_loopback(skb, &packet);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int mprox_lo(struct __sk_buff *skb)
{
	return translate(skb, ETH_HLEN, false);
}

/* Of a device with Ethernet headers. */
SEC("tc")
int mprox_ether(struct __sk_buff *skb)
{
	/* What is meant for others, or for a VLAN, is not ours yet. */
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	return translate(skb, ETH_HLEN, true);
}

/* Of a device without: TUN, WireGuard, PPP. */
SEC("tc")
int mprox_bare(struct __sk_buff *skb)
{
	return translate(skb, 0, true);
}

char LICENSE[] SEC("license") = "GPL";
