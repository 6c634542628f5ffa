/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a connect() is answered without an engine. Of a connection that waits the SYN becomes the request, the server's reply the
 * SYN-ACK. From a port the SYN becomes one to the server, and each packet of the server's the next word to it, before that. All
 * are written anew; what their senders' kernels send again, when one is lost, becomes the same again.
 */
#ifndef MPROX_ASK_BPF_H
#define MPROX_ASK_BPF_H

#include <linux/pkt_cls.h>

#include "bpf/packet.bpf.h"
#include "bpf/pool.bpf.h"
#include "bpf/splices.bpf.h"

#define TIMESTAMPS bpf_htonl(0x01010000 | OPTION_TIMESTAMP << 8 | OPTION_TIMESTAMP_SIZE)
#define REQUEST_HEADER (sizeof(struct tcphdr) + 12) /* with timestamps */
#define ANSWER_HEADER (sizeof(struct tcphdr) + 20) /* with MSS, window scale and SACK permitted as well */
#define ECHO_MOST 4000 /* milliseconds that a SYN which comes again may be younger than the first; more than there is time for */
#define WAIT_MOST 600000 /* the same, of one that the engine does not interrupt */
#define GREETING_BYTES bpf_htonl(SOCKS5 << 24 | 1 << 16) /* one method: no authentication */
#define HOPS 64 /* of a packet that we send ourselves */

/* Not verdicts of the kernel's. */
#define PASS (-3) /* the packet is one as any */
#define BACK (-4) /* it becomes an answer to its sender */

/*
 * Makes it the packet whose TCP header is packet->new, and which has packet->payload bytes: a greeting, a request, or none;
 * with the entry's addresses, or its own, or to go back. Called by the outermost function only: the stack has no room for more.
 */
static __noinline bool rewrite(struct __sk_buff *skb, const struct mprox_splice *splice, struct packet *packet)
{
	__u32 header = packet->new.tcp.doff == REQUEST_HEADER / 4 ? REQUEST_HEADER : ANSWER_HEADER;
	__u32 segment = header + packet->payload, end = packet->transport + segment;
	__u32 check = packet->transport + __builtin_offsetof(struct tcphdr, check);
	struct mprox_pool *pool = pool_of(&splice->owner, splice->shard);
	struct mprox_ready *ready = pool ? ready_of(splice, pool) : NULL;
	const __u32 greeting = GREETING_BYTES;
	const __u8 hops = HOPS;
	__u32 pair[9] = {};
	__s64 addresses, rest;

	if (!ready)
		return false;
	if (packet->back)
		splice = &ready->outward;

	/* Grown, a packet loses the sum that the device may have made of it: it would be of no use. */
	if (bpf_skb_change_tail(skb, end - 4, 0) || bpf_skb_change_tail(skb, end, 0))
		return false;
	if (packet->ip6) {
		__be16 length = bpf_htons(end - packet->network - sizeof(struct ipv6hdr));

		if (packet->back && bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct ipv6hdr, hop_limit), &hops, 1, 0))
			return false;
		if (packet->direct) {
			__builtin_memcpy(pair, &packet->key.source, 16);
			__builtin_memcpy(pair + 4, &packet->key.destination, 16);
		} else {
			__builtin_memcpy(pair, &splice->source, 16);
			__builtin_memcpy(pair + 4, &splice->destination, 16);
		}
		if (bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct ipv6hdr, payload_len), &length, 2, 0) ||
		    bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct ipv6hdr, saddr), pair, 32, 0))
			return false;
	} else {
		__u32 old[4] = { 0, packet->key.source.word[3], packet->key.destination.word[3], 0 }, new[4] = {};
		__u8 *lifetime = (__u8 *)&old[3];
		__be16 length = bpf_htons(end - packet->network);

		pair[0] = packet->direct ? old[1] : splice->source.word[3];
		pair[1] = packet->direct ? old[2] : splice->destination.word[3];
		if (bpf_skb_load_bytes(skb, packet->network, old, 4) ||
		    bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct iphdr, tot_len), &length, 2, 0) ||
		    bpf_skb_load_bytes(skb, packet->network, new, 4))
			return false;
		new[1] = pair[0];
		new[2] = pair[1];
		if (packet->back) {
			if (bpf_skb_load_bytes(skb, packet->network + __builtin_offsetof(struct iphdr, ttl), lifetime, 1) ||
			    bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct iphdr, ttl), &hops, 1, 0))
				return false;
			*(__u8 *)&new[3] = hops;
		}
		if (bpf_skb_store_bytes(skb, packet->network + __builtin_offsetof(struct iphdr, saddr), pair, 8, 0) ||
		    bpf_l3_csum_replace(skb, packet->network + __builtin_offsetof(struct iphdr, check), 0,
					bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0), 0))
			return false;
	}
	if (packet->direct) {
		packet->new.tcp.source = packet->old.tcp.source;
		packet->new.tcp.dest = packet->old.tcp.dest;
	}
	/* Zero, as the sum sees it; where the device is to sum up, the kernel wants the pseudo header alone. */
	packet->new.tcp.check = 0;
	rest = bpf_csum_diff(NULL, 0, (__be32 *)&packet->new, sizeof(packet->new), 0);
	packet->new.tcp.check = 0xffff;
	if (header == REQUEST_HEADER ? bpf_skb_store_bytes(skb, packet->transport, &packet->new, REQUEST_HEADER, 0) :
				       bpf_skb_store_bytes(skb, packet->transport, &packet->new, ANSWER_HEADER, 0))
		return false;
	if (packet->payload == GREETING) {
		rest = bpf_csum_diff(NULL, 0, (__be32 *)&greeting, sizeof(greeting), rest);
		if (bpf_skb_store_bytes(skb, packet->transport + REQUEST_HEADER, &greeting, GREETING, 0))
			return false;
	} else if (packet->payload) {
		rest = bpf_csum_diff(NULL, 0, (__be32 *)ready->request, MPROX_REQUEST_MOST, rest); /* zero behind its end */
		if (packet->payload == REQUEST_IP4 ?
			    bpf_skb_store_bytes(skb, packet->transport + REQUEST_HEADER, ready->request, REQUEST_IP4, 0) :
			    bpf_skb_store_bytes(skb, packet->transport + REQUEST_HEADER, ready->request, REQUEST_IP6, 0))
			return false;
	}
	pair[8] = bpf_htonl(IPPROTO_TCP << 16 | segment);
	addresses = bpf_csum_diff(NULL, 0, pair, sizeof(pair), 0);
	return !bpf_l4_csum_replace(skb, check, 0, rest, 0) && !bpf_l4_csum_replace(skb, check, 0, addresses, BPF_F_PSEUDO_HDR);
}

/* What goes to the server: its header, but for our own timestamp, and its size. */
static __always_inline void speak(struct packet *packet, const struct mprox_splice *outward, const struct mprox_ready *ready,
				  __u32 sequence, __u32 acknowledgement, __u32 size)
{
	struct header *new = &packet->new;

	*new = (struct header){};
	new->tcp.source = outward->source_port;
	new->tcp.dest = outward->destination_port;
	new->tcp.seq = bpf_htonl(sequence);
	new->tcp.ack_seq = bpf_htonl(acknowledgement);
	new->tcp.doff = REQUEST_HEADER / 4;
	new->tcp.ack = new->tcp.psh = 1;
	new->tcp.window = bpf_htons(ready->held.window >> (ready->receive_scale & 15));
	new->option[0] = TIMESTAMPS;
	new->option[2] = bpf_htonl(ready->inward.last_timestamp);
	packet->payload = size;
}

/* The SYN of a connection from a port. */
static __always_inline void dial(struct packet *packet, const struct mprox_splice *outward, const struct mprox_ready *ready)
{
	struct header *new = &packet->new;

	*new = (struct header){};
	new->tcp.source = outward->source_port;
	new->tcp.dest = outward->destination_port;
	new->tcp.seq = bpf_htonl(ready->send_next - GREETING - 1);
	new->tcp.doff = ANSWER_HEADER / 4;
	new->tcp.syn = 1;
	new->tcp.window = bpf_htons(ready->held.window);
	new->option[0] = bpf_htonl(0x02040000 | ready->own_mss);
	new->option[1] = bpf_htonl(0x04020000 | OPTION_TIMESTAMP << 8 | OPTION_TIMESTAMP_SIZE);
	new->option[4] = bpf_htonl(0x01030300 | ready->scale);
}

/* A SYN becomes what the server is to hear next. `stamp` is the SYN's timestamp. */
static __noinline bool ask(const struct mprox_splice *splice, struct packet *packet, __u32 stamp)
{
	struct mprox_pool *pool = pool_of(&splice->owner, splice->shard);
	struct mprox_ready *ready = pool ? ready_of(splice, pool) : NULL;
	__u32 state;

	if (!ready || packet->payload)
		return false;
	state = pool->state[(splice->ready - 1) % MPROX_POOL_MOST];
	if (state == MPROX_READY_DIALLED) {
		dial(packet, splice, ready);
		packet->new.option[2] = bpf_htonl(stamp + splice->timestamp);
		return true;
	}
	if (state == MPROX_READY_GREETED)
		speak(packet, splice, ready, ready->send_next - GREETING, ready->receive_next - GREETED, GREETING);
	else if (state == MPROX_READY_ASKED || state == MPROX_READY_ANSWERED)
		speak(packet, splice, ready, ready->send_next, ready->receive_next, ready->request_size);
	else
		return false;
	packet->new.option[1] = bpf_htonl(stamp + splice->timestamp);
	return true;
}

/* The engine is asked to carry on. */
static __always_inline int give_up(const struct mprox_splice *splice, struct mprox_pool *pool)
{
	for (__u32 state = MPROX_READY_DIALLED; state <= MPROX_READY_ASKED; state++)
		if (move_on(pool, splice->ready - 1, state, MPROX_READY_STUCK)) {
			tell_of_pool(&splice->owner, splice->shard);
			break;
		}
	return TC_ACT_SHOT;
}

/* The server's SYN-ACK, if it has Linux's options. */
static __always_inline bool note_syn_ack(struct mprox_ready *ready, const struct packet *packet)
{
	const __u32 *option = packet->old.option;
	__u32 mss = bpf_ntohl(option[0]), kind = bpf_ntohl(option[1]), scale = bpf_ntohl(option[4]);

	if (packet->words != 5 || packet->old.tcp.ece || mss >> 16 != 0x0204 ||
	    (kind & 0xffff) != (OPTION_TIMESTAMP << 8 | OPTION_TIMESTAMP_SIZE) ||
	    (kind >> 16 != 0x0402 && kind >> 16 != 0x0101) || scale >> 8 != 0x010303 || (scale & 0xff) > 14)
		return false;
	mss &= 0xffff;
	if (mss < ready->mss)
		ready->mss = mss;
	ready->sack = kind >> 16 == 0x0402;
	ready->send_scale = scale;
	ready->receive_next = bpf_ntohl(packet->old.tcp.seq) + 1 + GREETED;
	return true;
}

/*
 * What a server says that has been dialled from a port: its SYN-ACK becomes the greeting, the answer to that the request.
 * What it says again, the same again. PASS: the rest is as for any other.
 */
static __noinline int greet(struct __sk_buff *skb, const struct mprox_splice *splice, struct packet *packet, __u32 stamp)
{
	struct mprox_pool *pool = pool_of(&splice->owner, splice->shard);
	struct mprox_ready *ready = pool ? ready_of(splice, pool) : NULL;
	__u32 sequence = bpf_ntohl(packet->old.tcp.seq), acknowledgement = bpf_ntohl(packet->old.tcp.ack_seq), state, echo;
	const struct tcphdr *tcp = &packet->old.tcp;
	__u8 said[GREETED] = {};

	if (!ready || !ready->port)
		return PASS;
	state = pool->state[(splice->ready - 1) % MPROX_POOL_MOST];
	if (state < MPROX_READY_DIALLED || state > MPROX_READY_ASKED)
		return PASS;
	if (state == MPROX_READY_ASKED && (tcp->rst || tcp->fin || sequence != ready->receive_next - GREETED || !packet->payload))
		return tcp->syn ? TC_ACT_SHOT : PASS;
	if (tcp->rst || tcp->fin)
		return give_up(splice, pool);
	if (tcp->syn) {
		if (!tcp->ack || acknowledgement != ready->send_next - GREETING || state == MPROX_READY_ASKED)
			return TC_ACT_SHOT;
		if (state == MPROX_READY_DIALLED) {
			if (!note_syn_ack(ready, packet))
				return give_up(splice, pool);
			ready->sent = ready->send_next;
			barrier();
			if (!move_on(pool, splice->ready - 1, MPROX_READY_DIALLED, MPROX_READY_GREETED))
				return TC_ACT_SHOT;
		} else if (sequence + 1 + GREETED != ready->receive_next) {
			return TC_ACT_SHOT;
		}
		ready->inward.last_timestamp = stamp;
		echo = packet->old.option[3];
		speak(packet, &ready->outward, ready, ready->send_next - GREETING, ready->receive_next - GREETED, GREETING);
	} else {
		if (state == MPROX_READY_DIALLED || !packet->payload || sequence != ready->receive_next - GREETED)
			return TC_ACT_SHOT;
		if (packet->payload != GREETED || packet->words != 3 || packet->old.option[0] != TIMESTAMPS ||
		    bpf_skb_load_bytes(skb, packet->transport + REQUEST_HEADER, said, GREETED) || said[0] != SOCKS5 || said[1])
			return give_up(splice, pool);
		ready->sent = ready->send_next + ready->request_size;
		barrier();
		if (state == MPROX_READY_GREETED && !move_on(pool, splice->ready - 1, MPROX_READY_GREETED, MPROX_READY_ASKED))
			return TC_ACT_SHOT;
		ready->inward.last_timestamp = stamp;
		echo = packet->old.option[2];
		speak(packet, &ready->outward, ready, ready->send_next, ready->receive_next, ready->request_size);
	}
	/* It has seen this one, and none that is younger. */
	packet->new.option[1] = echo;
	packet->back = true;
	return BACK;
}

/* Bytes of the reply, or 0 when it is not for us to read. */
static __always_inline __u32 reply_size(const __u8 *reply, __u32 there)
{
	__u32 size = reply[3] == SOCKS5_IP4 ? REQUEST_IP4 : reply[3] == SOCKS5_IP6 ? REQUEST_IP6 : 0;

	return reply[0] == SOCKS5 && !reply[2] && size <= there ? size : 0;
}

/*
 * The server's first packet with bytes becomes the SYN-ACK (here its header, and TC_ACT_OK), when these say that the
 * destination is connected. What it says behind them in the same packet it has to say again.
 */
static __noinline int answer(struct __sk_buff *skb, struct mprox_splice *splice, struct packet *packet, __u32 stamp)
{
	struct mprox_pool *pool = pool_of(&splice->owner, splice->shard);
	struct mprox_ready *ready = pool ? ready_of(splice, pool) : NULL;
	__u32 at = packet->transport + packet->old.tcp.doff * 4, size, state;
	struct header *new = &packet->new;
	bool answered;
	__be32 echo;
	__u8 reply[4];

	if (!ready)
		return TC_ACT_SHOT;
	state = pool->state[(splice->ready - 1) % MPROX_POOL_MOST];
	answered = state == MPROX_READY_ANSWERED;
	if (!answered && state != MPROX_READY_ASKED)
		return TC_ACT_SHOT;
	/*
	 * What does not acknowledge all of the SYN makes a socket in SYN_SENT send a reset, which would end the server's side.
	 * With that it drops all but the SYN-ACK, and that is on its way to it already.
	 */
	if (answered && bpf_ntohl(packet->old.tcp.seq) != ready->receive_next &&
	    (packet->old.tcp.rst || bpf_ntohl(packet->old.tcp.ack_seq) == ready->inward.acked))
		return PASS;
	if (packet->old.tcp.rst || packet->old.tcp.fin)
		return give_up(splice, pool);
	if (!packet->payload || bpf_ntohl(packet->old.tcp.seq) != ready->receive_next ||
	    bpf_ntohl(packet->old.tcp.ack_seq) != ready->inward.acked)
		return TC_ACT_SHOT;
	if (packet->payload < REQUEST_IP4 || packet->words != 3 || packet->old.option[0] != TIMESTAMPS ||
	    bpf_skb_load_bytes(skb, at, reply, sizeof(reply)))
		return give_up(splice, pool);
	size = reply_size(reply, packet->payload);
	if (!size || reply[1]) {
		if (size == REQUEST_IP4)
			bpf_skb_load_bytes(skb, at, ready->reply, REQUEST_IP4);
		else if (size == REQUEST_IP6)
			bpf_skb_load_bytes(skb, at, ready->reply, REQUEST_IP6);
		barrier();
		ready->reply_size = size;
		return give_up(splice, pool);
	}
	/* The SYN that this answers. A socket in SYN_SENT would reset the connection for any other. */
	echo = plus(packet->old.option[2], splice->echo);
	if (bpf_ntohl(echo) - stamp_of(&ready->held) > (ready->port ? WAIT_MOST : ECHO_MOST))
		return give_up(splice, pool);
	if (ready->port) {
		__u32 window = bpf_ntohs(packet->old.tcp.window) << (ready->send_scale & 15);
		struct mprox_splice *outward = bpf_map_lookup_elem(&splices, &ready->outward_key);

		ready->window = window > 0xffff ? 0xffff : window;
		ready->outward.acked = ready->inward.next = ready->receive_next;
		if (outward && !answered)
			outward->acked = ready->receive_next;
	}
	if (!answered) {
		if (!move_on(pool, splice->ready - 1, MPROX_READY_ASKED, MPROX_READY_ANSWERED))
			return TC_ACT_SHOT;
		splice->next = ready->receive_next + size;
	} else {
		packet->again = true;
	}
	*new = (struct header){};
	new->tcp.source = splice->source_port;
	new->tcp.dest = splice->destination_port;
	new->tcp.seq = bpf_htonl(ready->receive_next + size - 1);
	new->tcp.ack_seq = plus(packet->old.tcp.ack_seq, splice->acknowledgement);
	new->tcp.doff = ANSWER_HEADER / 4;
	packet->payload = 0;
	new->tcp.syn = new->tcp.ack = 1;
	new->tcp.window = bpf_htons(ready->window);
	new->option[0] = bpf_htonl(0x02040000 | ready->mss);
	new->option[1] = ready->sack ? bpf_htonl(0x04020000 | OPTION_TIMESTAMP << 8 | OPTION_TIMESTAMP_SIZE) : TIMESTAMPS;
	new->option[2] = bpf_htonl(stamp);
	new->option[3] = echo;
	new->option[4] = bpf_htonl(0x01030300 | ready->send_scale);
	return TC_ACT_OK;
}

#endif
