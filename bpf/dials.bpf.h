/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An engine's connections to servers: from before the first packet on it is known where the server's packets come in, and
 * with what numbers the connection began. Together with TCP_INFO that is all that another socket needs to carry it on.
 */
#ifndef MPROX_DIALS_BPF_H
#define MPROX_DIALS_BPF_H

#include "bpf/common.bpf.h"
#include "bpf/splices.bpf.h"

#define SOL_TCP 6
#define TCP_WINDOW_CLAMP 10
#define OPTION_TIMESTAMP 8

/* The engine puts its sockets here before it connects them. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mprox_dial);
} dials SEC(".maps");

static __always_inline union mprox_ip mapped(__u32 address)
{
	union mprox_ip ip = { .word = { 0, 0, bpf_htonl(0xffff), address } };

	return ip;
}

/* A program's context can only be touched word by word, at fixed offsets: the compiler must join none, nor choose of two. */
#define WORD(field)                \
	({                         \
		__u32 word = field; \
		barrier_var(word); \
		word;              \
	})

static __always_inline union mprox_ip local_ip(const struct bpf_sock_ops *skops)
{
	__u32 ip4 = WORD(skops->local_ip4);
	union mprox_ip ip;

	if (skops->family == AF_INET)
		return mapped(ip4);
	ip.word[0] = WORD(skops->local_ip6[0]);
	ip.word[1] = WORD(skops->local_ip6[1]);
	ip.word[2] = WORD(skops->local_ip6[2]);
	ip.word[3] = WORD(skops->local_ip6[3]);
	return ip;
}

static __always_inline union mprox_ip remote_ip(const struct bpf_sock_ops *skops)
{
	__u32 ip4 = WORD(skops->remote_ip4);
	union mprox_ip ip;

	if (skops->family == AF_INET)
		return mapped(ip4);
	ip.word[0] = WORD(skops->remote_ip6[0]);
	ip.word[1] = WORD(skops->remote_ip6[1]);
	ip.word[2] = WORD(skops->remote_ip6[2]);
	ip.word[3] = WORD(skops->remote_ip6[3]);
	return ip;
}

/* The socket has its addresses and ports; the SYN is next. */
static __always_inline void begin_dial(struct bpf_sock_ops *skops, struct mprox_dial *dial)
{
	struct mprox_splice watch = { .way = MPROX_WAY_WATCH, .owner = dial->owner };
	struct mprox_context *context = context_of(&dial->owner);
	int window = dial->window;

	dial->inward.source = remote_ip(skops);
	dial->inward.destination = local_ip(skops);
	dial->inward.source_port = bpf_htons(bpf_ntohl(skops->remote_port));
	dial->inward.destination_port = bpf_htons(skops->local_port);
	dial->time = bpf_ktime_get_ns();
	if (window)
		bpf_setsockopt(skops, SOL_TCP, TCP_WINDOW_CLAMP, &window, sizeof(window));
	dial->error = -bpf_map_update_elem(&splices, &dial->inward, &watch, BPF_NOEXIST);
	if (!dial->error)
		bpf_sock_ops_cb_flags_set(skops, BPF_SOCK_OPS_STATE_CB_FLAG);
	else if (context)
		__sync_fetch_and_add(&context->unwatched, 1);
}

/* The server's SYN-ACK has come. */
static __always_inline void note_dial(struct bpf_sock_ops *skops, struct mprox_dial *dial)
{
	__u8 option[10] = { OPTION_TIMESTAMP };
	__u32 echo = 0;

	dial->send_next = skops->snd_nxt;
	dial->receive_next = skops->rcv_nxt;
	if (bpf_load_hdr_opt(skops, option, sizeof(option), 0) == sizeof(option))
		__builtin_memcpy(&echo, option + 6, sizeof(echo));
	dial->clock = bpf_ntohl(echo);
}

/* However the socket ends. What has been handed over is no WATCH any more. */
static __always_inline void end_dial(struct mprox_dial *dial)
{
	struct mprox_splice *watch = dial->error ? NULL : bpf_map_lookup_elem(&splices, &dial->inward);

	if (watch && watch->way == MPROX_WAY_WATCH)
		bpf_map_delete_elem(&splices, &dial->inward);
}

static __noinline int on_dial(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct mprox_dial *dial = sk ? bpf_sk_storage_get(&dials, sk, 0, 0) : NULL;

	if (!dial)
		return 1;
	if (skops->op == BPF_SOCK_OPS_TCP_CONNECT_CB && dial->revived)
		bpf_sock_ops_cb_flags_set(skops, BPF_SOCK_OPS_STATE_CB_FLAG);
	else if (skops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		begin_dial(skops, dial);
	else if (skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && !dial->revived)
		note_dial(skops, dial);
	else if (skops->op == BPF_SOCK_OPS_STATE_CB && skops->args[1] == BPF_TCP_CLOSE)
		end_dial(dial);
	return 1;
}

/*
 * Does another socket send in this one's place? What it has to say itself (it may still acknowledge the greeting) is of no
 * use to the server, which would ask what is meant.
 */
static __always_inline bool is_replaced(struct bpf_sock *sk)
{
	struct mprox_dial *dial = bpf_sk_storage_get(&dials, sk, 0, 0);
	struct mprox_splice *inward = dial && dial->warm && !dial->error ? bpf_map_lookup_elem(&splices, &dial->inward) : NULL;

	return inward && inward->way != MPROX_WAY_WATCH;
}

/* Puts a translation in the place of a watch, unless a packet has been seen that the socket has not: see docs/splicing.md. */
SEC("syscall")
int mprox_hand_over(struct mprox_hand_over *call)
{
	/* A map takes no memory of a program's argument. */
	struct mprox_splice_key key = call->inward_key;
	struct mprox_splice *watch = bpf_map_lookup_elem(&splices, &key), value;

	if (!watch || watch->way != MPROX_WAY_WATCH || !watch->packets)
		return MPROX_HANDED_UNSEEN;
	if (watch->ifindex != call->ifindex)
		return MPROX_HANDED_ELSEWHERE;
	if (watch->next != call->seen || watch->acked != call->inward.acked) {
		call->seen = watch->next;
		return MPROX_HANDED_BUSY;
	}
	call->inward.last_timestamp = watch->last_timestamp;
	call->inward.seen = watch->seen & MPROX_SEEN_RST; /* dropped, and not sent again */
	barrier_var(call); /* else the compiler keeps pointers into it, which the verifier forbids */
	key = call->outward_key;
	barrier_var(call);
	value = call->outward;
	if (bpf_map_update_elem(&splices, &key, &value, BPF_ANY))
		return MPROX_HANDED_FULL;
	barrier_var(call);
	key = call->inward_key;
	barrier_var(call);
	value = call->inward;
	if (!bpf_map_update_elem(&splices, &key, &value, BPF_EXIST))
		return MPROX_HANDED;
	barrier_var(call);
	key = call->outward_key;
	bpf_map_delete_elem(&splices, &key);
	return MPROX_HANDED_FULL;
}

/* The opposite: a connect() has got no answer by the packets alone. What its server says from now on is for the engine's socket. */
SEC("syscall")
int mprox_take_back(struct mprox_take_back *call)
{
	struct mprox_splice_key key = call->outward_key;
	struct mprox_splice *outward = bpf_map_lookup_elem(&splices, &key), *inward;

	if (outward && outward->cookie == call->cookie && outward->attempt == call->attempt)
		bpf_map_delete_elem(&splices, &key);
	barrier_var(call);
	key = call->inward_key;
	inward = bpf_map_lookup_elem(&splices, &key);
	if (!inward || inward->cookie != call->cookie || inward->attempt != call->attempt)
		return -1;
	inward->ifindex = call->device;
	inward->next = call->receive_next;
	inward->acked = call->send_next;
	inward->timestamp = inward->echo = inward->acknowledgement = 0;
	inward->seen = 0;
	inward->packets = 1;
	inward->bytes = 0;
	inward->cookie = 0;
	barrier();
	inward->way = MPROX_WAY_WATCH;
	return 0;
}

static __always_inline void measure_one(const struct mprox_splice_key *at, const struct mprox_measure *call,
					struct mprox_measured *measured)
{
	struct mprox_splice_key key = *at;
	struct mprox_splice *splice = bpf_map_lookup_elem(&splices, &key);

	/* Or another connection's by now: one with the same addresses and ports. */
	measured->ours = splice && splice->cookie == call->cookie && splice->attempt == call->attempt;
	if (!splice || !measured->ours)
		return;
	measured->bytes = splice->bytes;
	measured->seen = splice->seen;
	measured->next = splice->next;
	measured->acked = splice->acked;
	if (call->remove)
		bpf_map_delete_elem(&splices, &key);
}

/* What both directions have carried. */
SEC("syscall")
int mprox_measure(struct mprox_measure *call)
{
	measure_one(&call->outward_key, call, &call->outward);
	measure_one(&call->inward_key, call, &call->inward);
	return 0;
}

/* One field, while packets change others. */
SEC("syscall")
int mprox_reroute(struct mprox_reroute *call)
{
	struct mprox_splice_key key = call->key;
	struct mprox_splice *splice = bpf_map_lookup_elem(&splices, &key);

	if (!splice || splice->way != MPROX_WAY_OUT)
		return -1;
	splice->ifindex = call->ifindex;
	return 0;
}

#endif
