// SPDX-License-Identifier: GPL-2.0-only
/*
 * Translates the packets of spliced connections: the application's socket speaks to the server's, and neither knows.
 *
 *   lo egress          from the application: becomes the server's connection, and leaves through the server's device.
 *                      To and from a server on this host: becomes the other's connection, and stays on lo
 *   device ingress     from the server: becomes the application's connection, and goes on to its socket. ICMP errors about
 *                      the server's connection become errors about the application's
 *
 * And a SYN for which a connection to the server waits, or a port, leads to its answer by itself: bpf/ask.bpf.h.
 * A packet of no connection of ours costs one failed look-up and goes its way. Loaded once for each network namespace:
 * tc programs of Linux 6.1 cannot ask which one they are in. docs/splicing.md has the drawing.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bpf/ask.bpf.h"
#include "bpf/icmp.bpf.h"
#include "bpf/options.bpf.h"
#include "bpf/packet.bpf.h"
#include "bpf/splices.bpf.h"

#ifndef NULL
#define NULL ((void *)0)
#endif

#define LOOPBACK 1 /* the index of lo, in every network namespace */
#define PACKET_HOST 0
#define SILENCE 100 /* milliseconds; less than between a packet that comes again and the next time that it does */

#define ROUNDABOUT 30000000000 /* nanoseconds */

const volatile __u64 netns; /* cookie of the namespace these are loaded for */
__u64 roundabout; /* until when all takes the way through lo, as something has not arrived otherwise; CLOCK_MONOTONIC, or 0 */

static __always_inline void count(struct mprox_splice *splice, struct packet *packet)
{
	const struct tcphdr *tcp = &packet->old.tcp;
	__u32 end = bpf_ntohl(tcp->seq) + packet->payload;
	__u32 acked = bpf_ntohl(tcp->ack_seq);

	splice->packets++;
	if (packet->payload && (__s32)(end - splice->next) > 0) {
		splice->bytes += end - splice->next;
		splice->next = end;
	} else if (packet->payload) {
		packet->again = true;
	}
	if (tcp->ack && (__s32)(acked - splice->acked) > 0)
		splice->acked = acked;
	if (tcp->fin)
		__sync_fetch_and_or(&splice->seen, MPROX_SEEN_FIN);
	if (tcp->rst)
		__sync_fetch_and_or(&splice->seen, MPROX_SEEN_RST);
}

/* Before a connection is translated: what of it has passed. */
static __always_inline void watch(struct mprox_splice *splice, struct packet *packet, __u32 ifindex)
{
	const struct tcphdr *tcp = &packet->old.tcp;

	if (!splice->packets) {
		splice->next = bpf_ntohl(tcp->seq) + tcp->syn;
		splice->acked = bpf_ntohl(tcp->ack_seq);
	}
	splice->ifindex = ifindex;
	count(splice, packet);
}

static __always_inline void edit_header(const struct mprox_splice *splice, struct packet *packet)
{
	struct tcphdr *tcp = &packet->new.tcp;
	__u32 window = bpf_ntohs(tcp->window);

	if (!packet->direct) {
		tcp->source = splice->source_port;
		tcp->dest = splice->destination_port;
	}
	tcp->seq = plus(tcp->seq, splice->sequence);
	if (tcp->ack)
		tcp->ack_seq = plus(tcp->ack_seq, splice->acknowledgement);
	if (splice->window_left != splice->window_right) {
		window = window << (splice->window_left & 15) >> (splice->window_right & 15);
		tcp->window = bpf_htons(window > 0xffff ? 0xffff : window);
	}
}

/* An Ethernet header in place of what there is before the IP header. Its addresses are zero, as lo's. */
static __always_inline bool write_ethernet(struct __sk_buff *skb, __u32 network)
{
	struct ethhdr ethernet = { .h_proto = skb->protocol };

	return (network || !bpf_skb_change_head(skb, sizeof(ethernet), 0)) && !bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0);
}

static __always_inline struct bpf_sock *find_socket(struct __sk_buff *skb, const union mprox_ip *source, __u16 source_port,
						    const union mprox_ip *destination, __u16 destination_port, bool ip6)
{
	struct bpf_sock_tuple tuple = {};

	if (ip6) {
		__builtin_memcpy(tuple.ipv6.saddr, source, 16);
		__builtin_memcpy(tuple.ipv6.daddr, destination, 16);
		tuple.ipv6.sport = source_port;
		tuple.ipv6.dport = destination_port;
	} else {
		tuple.ipv4.saddr = source->word[3];
		tuple.ipv4.daddr = destination->word[3];
		tuple.ipv4.sport = source_port;
		tuple.ipv4.dport = destination_port;
	}
	return bpf_skc_lookup_tcp(skb, &tuple, ip6 ? sizeof(tuple.ipv6) : sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* Is there a socket that the packet meets when it loses the one that it was given, as a copy of it does? The kernel would reset. */
static __noinline bool is_kept(struct __sk_buff *skb, struct mprox_splice *splice, const struct packet *packet)
{
	const struct mprox_splice_key *key = &packet->key;
	struct bpf_sock *socket;
	bool kept;

	if (splice->seen & MPROX_KEPT)
		return true;
	socket = find_socket(skb, &key->source, key->source_port, &key->destination, key->destination_port, packet->ip6);
	if (!socket)
		return false;
	kept = socket->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(socket);
	if (kept)
		__sync_fetch_and_or(&splice->seen, MPROX_KEPT);
	return kept;
}

/* Does the socket get what it is given directly? `sequence` is the packet's. */
static __always_inline bool arrives(struct mprox_splice *splice, const struct bpf_tcp_sock *tcp, __u32 sequence, bool again)
{
	bool wanted = again && sequence == tcp->rcv_nxt, grown = tcp->segs_in != splice->received;
	__u32 now = wanted || !grown ? bpf_ktime_get_ns() / 1000000 | 1 : 0;

	splice->received = tcp->segs_in;
	if (grown) {
		splice->silent = 0;
	} else if (!splice->silent) {
		splice->silent = now;
	} else if (now - splice->silent > SILENCE) {
		roundabout = bpf_ktime_get_ns() + ROUNDABOUT;
		return false;
	}
	if (!wanted)
		return true;
	if (!splice->wanted_since || splice->wanted != sequence) {
		splice->wanted = sequence;
		splice->wanted_since = now;
	}
	return now - splice->wanted_since <= SILENCE;
}

/*
 * Straight to the application's socket: true when the kernel hands the packet to that, whatever its addresses and ports are. It
 * saves the way through lo, which is left to sockets in other states, that could answer the packet with a reset to those
 * addresses (of one that is being closed this very moment it is not the last), and to connections of which packets do not
 * arrive like this, as a rule of the host may drop them.
 */
static __noinline bool deliver(struct __sk_buff *skb, struct mprox_splice *splice, const struct packet *packet)
{
	struct bpf_tcp_sock *tcp;
	struct bpf_sock *socket;
	bool assigned = false;

	if (splice->way != MPROX_WAY_IN || (splice->seen & MPROX_UNDELIVERED) || !is_kept(skb, splice, packet))
		return false;
	if (roundabout && bpf_ktime_get_ns() < roundabout)
		return false;
	socket = find_socket(skb, &splice->source, splice->source_port, &splice->destination, splice->destination_port, packet->ip6);
	if (!socket)
		return false;
	tcp = bpf_tcp_sock(socket);
	if (tcp && (socket->state == BPF_TCP_ESTABLISHED || (socket->state == BPF_TCP_SYN_SENT && !packet->again))) {
		if (arrives(splice, tcp, bpf_ntohl(packet->old.tcp.seq), packet->again))
			assigned = !bpf_sk_assign(skb, socket, 0);
		else
			__sync_fetch_and_or(&splice->seen, MPROX_UNDELIVERED);
	}
	bpf_sk_release(socket);
	return assigned;
}

/* On to the application. */
static __always_inline int through_loopback(struct __sk_buff *skb, __u32 network, bool ip6)
{
	/* With any address but lo's own it would count as somebody else's packet. */
	if (!write_ethernet(skb, network))
		return TC_ACT_SHOT;
	if (ip6)
		return bpf_redirect(LOOPBACK, BPF_F_INGRESS);
	/*
	 * IPv4 takes no packet from 127.0.0.0/8 in that it has to route, not even on lo. One that is sent through lo brings its
	 * route along. The kernel counts the Ethernet header in when it hands the packet over, and does not count it out.
	 */
	bpf_csum_update(skb, ~(__u32)skb->protocol);
	return bpf_redirect_neigh(LOOPBACK, NULL, 0, 0);
}

/* These two are functions of their own as the stack has no room for both at once. */
static __noinline int pass_error(struct __sk_buff *skb, __u32 network, bool received)
{
	struct error error = { .key.netns = netns, .network = network };

	switch (translate_error(skb, &error)) {
	case ERROR_OTHER:
		return TC_ACT_UNSPEC;
	case ERROR_TRANSLATED:
		return received ? through_loopback(skb, network, error.ip6) : TC_ACT_UNSPEC;
	default:
		return TC_ACT_SHOT;
	}
}

#define NO_SEGMENT (-2) /* not a verdict of the kernel's */

static __always_inline int send_on(struct __sk_buff *skb, const struct mprox_splice *splice, __u32 network,
				   const struct packet *packet)
{
	if (splice->way == MPROX_WAY_OUT)
		return bpf_redirect_neigh(splice->ifindex, NULL, 0, 0);
	if (packet->direct) /* others' filters might lose its socket */
		return TC_ACT_OK;
	if (splice->way == MPROX_WAY_IN)
		return through_loopback(skb, network, packet->ip6);
	return TC_ACT_UNSPEC;
}

/* Where it came from. */
static __always_inline int send_back(struct __sk_buff *skb, const struct mprox_splice *inward, __u32 network)
{
	if (inward->way == MPROX_WAY_STAY)
		return TC_ACT_UNSPEC;
	/* The kernel sends nothing on that has none, also where it has just come from a device without. */
	return write_ethernet(skb, network) ? bpf_redirect_neigh(inward->ifindex, NULL, 0, 0) : TC_ACT_SHOT;
}

/*
 * A socket in SYN_SENT answers anything but a SYN-ACK with a reset, which would end the server's side. What comes too early
 * comes again.
 */
static __always_inline int before_open(struct __sk_buff *skb, struct mprox_splice *splice, struct packet *packet, __u32 stamp)
{
	if (splice->ready) {
		int verdict = greet(skb, splice, packet, stamp);

		return verdict == PASS ? answer(skb, splice, packet, stamp) : verdict;
	}
	if (packet->old.tcp.rst) /* but for this, of which the engine will tell the application */
		__sync_fetch_and_or(&splice->seen, MPROX_SEEN_RST);
	return TC_ACT_SHOT;
}

static __noinline int pass_segment(struct __sk_buff *skb, __u32 network, bool received)
{
	struct packet packet = { .key.netns = netns };
	struct mprox_splice *splice;
	struct edit edit = {};
	int verdict;

	if (!read_packet(skb, network, &packet))
		return NO_SEGMENT;
	splice = bpf_map_lookup_elem(&splices, &packet.key);
	if (!splice || !read_options(skb, &packet))
		return !received && skb->mark == MPROX_MARK ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	packet.new = packet.old;
	edit.acknowledgement = splice->acknowledgement;
	edit.timestamp = splice->timestamp;
	edit.echo = packet.old.tcp.ack ? splice->echo : 0;
	edit_options(packet.new.option, packet.words, &edit);
	if (edit.found)
		splice->last_timestamp = edit.found;
	if (splice->way == MPROX_WAY_WATCH) {
		watch(splice, &packet, skb->ifindex);
		return TC_ACT_UNSPEC;
	}
	if (!splice->outward && !(splice->seen & MPROX_OPENED)) {
		verdict = before_open(skb, splice, &packet, edit.found);
		if (verdict == TC_ACT_OK) {
			packet.direct = received && deliver(skb, splice, &packet);
			return rewrite(skb, splice, &packet) ? send_on(skb, splice, network, &packet) : TC_ACT_SHOT;
		}
		if (verdict == BACK)
			return rewrite(skb, splice, &packet) ? send_back(skb, splice, network) : TC_ACT_SHOT;
		if (verdict != PASS)
			return verdict;
	}
	if (packet.old.tcp.syn && splice->outward && splice->ready) {
		skb->mark = 0;
		return ask(splice, &packet, edit.found) && rewrite(skb, splice, &packet) ? send_on(skb, splice, network, &packet) :
											   TC_ACT_SHOT;
	}
	count(splice, &packet);
	packet.direct = received && deliver(skb, splice, &packet);
	edit_header(splice, &packet);
	if (!write_packet(skb, splice, &packet, received))
		return TC_ACT_SHOT;
	return send_on(skb, splice, network, &packet);
}

static __always_inline int translate(struct __sk_buff *skb, __u32 network, bool received)
{
	int verdict = pass_segment(skb, network, received);

	return verdict == NO_SEGMENT ? pass_error(skb, network, received) : verdict;
}

SEC("tc")
int mprox_lo(struct __sk_buff *skb)
{
	/* It has come in by another device: nothing that this host's sockets send, but what we send through here ourselves. */
	if (skb->ingress_ifindex)
		return TC_ACT_UNSPEC;
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
