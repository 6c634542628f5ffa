// SPDX-License-Identifier: GPL-2.0-only
/*
 * Catches connect() of members and holds it until the engine has an answer.
 *
 *   connect4|6        remember where the application wants to go, point the socket at an address nobody listens on
 *   egress            drop the SYN that results, and its retransmissions; tell the engine. Or, when a connection to the
 *                     server waits, let the SYN be made a request of it on lo, or of one from a port that waits the SYN, and
 *                     tell nobody. Nothing that is meant for a held address leaves through another device than lo
 *   sockops           the answer came: give the socket its own settings back. Or nobody waits any more: say so.
 *                     And of the engine's sockets to servers: what is to be known of them
 *   getpeername, getsockname   the names a direct connection would show
 *
 * All are attached to the root of cgroup v2; a socket that no member connected costs one failed look-up.
 */
#include "bpf/common.bpf.h"
#include "bpf/dials.bpf.h"
#include "bpf/members.bpf.h"
#include "bpf/pool.bpf.h"
#include "bpf/splices.bpf.h"

#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define TCP_USER_TIMEOUT 18
#define ENETUNREACH 101
#define EPROTONOSUPPORT 93
#define EPERM 1
#define LOOPBACK 1 /* the index of lo, in every network namespace */

enum state {
	IDLE, /* connected directly, or not at all */
	HELD,
	OPEN,
	SPLICED, /* open, and joined to the server's connection: the end is reported */
	ENDED, /* refused or given up; the names remain until the next connect() */
};

/* What we know of one application socket. */
struct held_socket {
	struct mprox_member owner;
	__u32 state;
	__u32 attempt;
	__u64 netns;
	__u32 tgid;
	__u32 shard; /* of the engine, that serves this attempt */
	__u32 device; /* lifted from the socket, for good: BPF cannot bind it again by index */
	__u32 mark;
	__u32 user_timeout; /* the application's own, milliseconds */
	__u32 our_timeout; /* what we put there instead; 0: nothing */
	bool reported; /* the engine knows of this attempt */
	union mprox_ip destination;
	union mprox_ip held;
	union mprox_ip bound;
	union mprox_ip local; /* what getsockname() shows; zero: the truth */
	__u16 destination_port;
	__u16 held_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct held_socket);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MPROX_BYPASS_MAX);
	__type(key, struct mprox_bypass_key);
	__type(value, __u8);
} bypass SEC(".maps");

/* Local addresses for getsockname(), put here by the engine just before it answers; taken out by sockops. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* socket cookie */
	__type(value, union mprox_ip);
} locals SEC(".maps");

/* Nobody here asks these: they tell the engines what there is to undo, also of an engine that was killed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct mprox_hook);
	__type(value, __u32); /* enum mprox_hook_kind */
} hooks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct mprox_hook_user);
	__type(value, __u32);
} hook_users SEC(".maps");

static __u32 flows; /* numbers the held addresses */

static __always_inline bool is_zero(const union mprox_ip *ip)
{
	return !(ip->half[0] | ip->half[1]);
}

static __always_inline bool is_mapped(const union mprox_ip *ip)
{
	return !ip->half[0] && ip->word[2] == bpf_htonl(0xffff);
}

/* What the kernel itself refuses to connect a TCP socket to. 240.0.0.0/4 is not among it. */
static __always_inline bool is_multicast(const union mprox_ip *ip)
{
	if (is_mapped(ip))
		return (ip->byte[12] & 0xf0) == 0xe0 || ip->word[3] == 0xffffffff;
	return ip->byte[0] == 0xff;
}

static __always_inline bool is_link_local(const union mprox_ip *ip)
{
	return ip->byte[0] == 0xfe && (ip->byte[1] & 0xc0) == 0x80;
}

/* The kernel takes "any" as a destination for the loopback address. */
static __always_inline void any_is_loopback(union mprox_ip *ip)
{
	if (is_zero(ip))
		ip->word[3] = bpf_htonl(1);
	else if (is_mapped(ip) && !ip->word[3])
		ip->word[3] = bpf_htonl(0x7f000001);
}

static __always_inline bool bypassed(__u32 slot, const union mprox_ip *ip, __u16 port)
{
	__u32 family = is_mapped(ip) ? MPROX_BYPASS_IP4 : 0;
	struct mprox_bypass_key key = {
		.bits = MPROX_BYPASS_FIXED_BITS + 128,
		.slot = slot,
		.port = family | port,
		.ip = { ip->word[0], ip->word[1], ip->word[2], ip->word[3] },
	};

	if (bpf_map_lookup_elem(&bypass, &key))
		return true;
	key.port = family;
	return bpf_map_lookup_elem(&bypass, &key);
}

static __always_inline int deny(int error)
{
	bpf_set_retval(-error);
	return 0;
}

static __always_inline int deny_counted(struct mprox_context *context)
{
	if (context)
		__sync_fetch_and_add(&context->denied, 1);
	return deny(ENETUNREACH);
}

/*
 * The kernel itself ends a connect() that stays unanswered: with ETIMEDOUT, on time, and also when no engine is
 * left to answer. A shorter time of the application's own stays.
 */
static __always_inline void limit_wait(struct bpf_sock_addr *ctx, struct held_socket *held, __u32 limit)
{
	int value = 0;

	if (bpf_getsockopt(ctx, SOL_TCP, TCP_USER_TIMEOUT, &value, sizeof(value)))
		return;
	if (!held->our_timeout || (__u32)value != held->our_timeout)
		held->user_timeout = value;
	held->our_timeout = 0;
	if (value && (__u32)value <= limit)
		return;
	value = limit;
	if (!bpf_setsockopt(ctx, SOL_TCP, TCP_USER_TIMEOUT, &value, sizeof(value)))
		held->our_timeout = limit;
}

/* A socket bound to a device would look for the held address there. The dial honours the binding instead. */
static __always_inline bool lift_device(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct held_socket *held)
{
	char none[4] = "";

	if (!sk->bound_dev_if)
		return true;
	held->device = sk->bound_dev_if;
	return !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none));
}

/*
 * An address at which the thread that is going to answer has a socket already; 0: none. If another one answers it binds one of
 * its own there.
 */
static __always_inline __u32 spare_address(struct mprox_context *context, __u64 cookie)
{
	__u32 shard = context->spread ? cookie % context->spread : 0;

	for (int i = 0; i < MPROX_SPARES; i++) {
		__u32 *place = &context->spares[shard % MPROX_SHARDS][i], address = *place;

		if (address && __sync_val_compare_and_swap(place, address, 0) == address)
			return address;
	}
	return 0;
}

/* Where the socket is to be pointed; NULL when the connect() was denied. */
static __always_inline struct held_socket *hold(struct bpf_sock_addr *ctx, struct bpf_sock *sk,
						const struct mprox_member *member,
						const union mprox_ip *destination)
{
	struct mprox_context *context = context_of(member);
	bool ip6 = !is_mapped(destination);
	struct held_socket *held = NULL;
	__u32 number;

	if (context && context->alive)
		held = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!held)
		goto denied;

	number = __sync_fetch_and_add(&flows, 1);
	held->owner = *member;
	held->attempt++;
	held->reported = false;
	held->netns = bpf_get_netns_cookie(ctx);
	held->tgid = bpf_get_current_pid_tgid() >> 32;
	held->mark = sk->mark;
	held->destination = *destination;
	held->destination_port = bpf_ntohs(ctx->user_port);
	held->bound = (union mprox_ip){};
	held->local = (union mprox_ip){};
	if (ip6) {
		held->bound.word[0] = sk->src_ip6[0];
		held->bound.word[1] = sk->src_ip6[1];
		held->bound.word[2] = sk->src_ip6[2];
		held->bound.word[3] = sk->src_ip6[3];
	} else if (sk->src_ip4) {
		held->bound = mapped(sk->src_ip4);
	}
	if (!is_zero(&held->bound))
		held->local = held->bound;
	else if (held->netns == context->netns)
		held->local = ip6 ? context->local6 : context->local4;

	limit_wait(ctx, held, context->timeout);
	if (!lift_device(ctx, sk, held))
		goto denied;

	if (ip6) {
		/*
		 * A socket with a global address of its own is held at that very address: what TIME_WAIT answers to
		 * ::1 would be routed by the device that bears the socket's address, and leave through it.
		 */
		if (is_zero(&held->bound) || is_link_local(&held->bound))
			held->held = (union mprox_ip){ .word = { 0, 0, 0, bpf_htonl(1) } };
		else
			held->held = held->bound;
		held->held_port = MPROX_HELD_PORT6 + number % MPROX_HELD_PORTS6;
	} else {
		/* From one port there is one connection to an address for as long as TIME_WAIT lasts. */
		bool usual = !sk->src_port && held->netns == context->netns;
		__u32 spare = usual ? spare_address(context, bpf_get_socket_cookie(ctx)) : 0;

		held->held = mapped(spare ? spare : bpf_htonl(MPROX_HELD_NET4 | (number & MPROX_HELD_MASK4)));
		held->held_port = MPROX_HELD_PORT4;
	}
	held->state = HELD;
	__sync_fetch_and_add(&context->held, 1);
	return held;

denied:
	deny_counted(context);
	return NULL;
}

enum verdict {
	DIRECT,
	DENIED,
	POINTED, /* at *held */
};

static __always_inline enum verdict on_connect(struct bpf_sock_addr *ctx, union mprox_ip *destination,
					       struct held_socket **held)
{
	const struct mprox_member *member = current_member();
	struct bpf_sock *sk = ctx->sk;
	struct mprox_context *context;

	barrier_var(sk); /* else the compiler loads it through a pointer past ctx, which the verifier forbids */
	if (!member)
		goto direct;
	any_is_loopback(destination);
	if (bypassed(member->slot, destination, bpf_ntohs(ctx->user_port)))
		goto direct;
	if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP) {
		if (is_multicast(destination))
			goto direct;
		*held = hold(ctx, sk, member, destination);
		return *held ? POINTED : DENIED;
	}
	context = context_of(member);
	if (context && !(context->flags & MPROX_BLOCK_UDP))
		return DIRECT;
	deny(ENETUNREACH);
	return DENIED;

direct:
	/* A socket that goes its own way after all keeps nothing of an earlier, refused attempt. */
	*held = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (*held)
		(*held)->state = IDLE;
	return DIRECT;
}

SEC("cgroup/connect4")
int mprox_connect4(struct bpf_sock_addr *ctx)
{
	union mprox_ip destination = mapped(ctx->user_ip4);
	struct held_socket *held = NULL;
	enum verdict verdict = on_connect(ctx, &destination, &held);

	if (verdict == POINTED && held) {
		ctx->user_ip4 = held->held.word[3];
		ctx->user_port = bpf_htons(held->held_port);
	}
	return verdict != DENIED;
}

/* The context's fields can only be touched one by one, at fixed offsets. */
static __always_inline union mprox_ip read6(const struct bpf_sock_addr *ctx)
{
	union mprox_ip ip;

	ip.word[0] = ctx->user_ip6[0];
	ip.word[1] = ctx->user_ip6[1];
	ip.word[2] = ctx->user_ip6[2];
	ip.word[3] = ctx->user_ip6[3];
	return ip;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const union mprox_ip *ip)
{
	ctx->user_ip6[0] = ip->word[0];
	ctx->user_ip6[1] = ip->word[1];
	ctx->user_ip6[2] = ip->word[2];
	ctx->user_ip6[3] = ip->word[3];
}

SEC("cgroup/connect6")
int mprox_connect6(struct bpf_sock_addr *ctx)
{
	union mprox_ip destination = read6(ctx);
	struct held_socket *held = NULL;
	enum verdict verdict = on_connect(ctx, &destination, &held);

	if (verdict == POINTED && held) {
		write6(ctx, &held->held);
		ctx->user_port = bpf_htons(held->held_port);
	}
	return verdict != DENIED;
}

static __always_inline int on_sendmsg(struct bpf_sock_addr *ctx, union mprox_ip *destination)
{
	const struct mprox_member *member = current_member();
	struct mprox_context *context;

	if (!member)
		return 1;
	context = context_of(member);
	if (context && !(context->flags & MPROX_BLOCK_UDP))
		return 1;
	any_is_loopback(destination);
	return bypassed(member->slot, destination, bpf_ntohs(ctx->user_port)) ? 1 : deny(ENETUNREACH);
}

SEC("cgroup/sendmsg4")
int mprox_sendmsg4(struct bpf_sock_addr *ctx)
{
	union mprox_ip destination = mapped(ctx->user_ip4);

	return on_sendmsg(ctx, &destination);
}

SEC("cgroup/sendmsg6")
int mprox_sendmsg6(struct bpf_sock_addr *ctx)
{
	union mprox_ip destination = read6(ctx);

	return on_sendmsg(ctx, &destination);
}

/*
 * Transports that no proxy carries and no hook above sees would be a way around: as if the kernel lacked them.
 * So is MPTCP: a proxy carries one path, and the kernel (6.18) leaves an MPTCP socket in SYN_SENT after the crossed
 * SYNs of a simultaneous open. Programs that ask for MPTCP take TCP where it is missing.
 */
SEC("cgroup/sock_create")
int mprox_sock_create(struct bpf_sock *ctx)
{
	const struct mprox_member *member;
	struct mprox_context *context;

	if (ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP)
		return 1;
	member = current_member();
	if (!member)
		return 1;
	if (ctx->type == SOCK_DGRAM && (ctx->protocol == IPPROTO_UDP || ctx->protocol == IPPROTO_UDPLITE))
		return 1;
	if (ctx->type != SOCK_DGRAM && ctx->type != SOCK_RAW)
		return deny(EPROTONOSUPPORT);
	context = context_of(member);
	if (!context || (context->flags & MPROX_BLOCK_UDP))
		return deny(EPERM);
	return 1;
}

struct segment {
	union mprox_ip source;
	struct tcphdr tcp;
	__u32 options; /* where they begin */
	bool ip6;
	bool ip_options;
};

/* False when it is not a bare SYN. cgroup programs see the packet from its network header on. */
static __always_inline bool read_syn(struct __sk_buff *skb, struct segment *segment)
{
	__u32 offset;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return false;
		segment->source = mapped(ip.saddr);
		offset = ip.ihl * 4;
		segment->ip_options = ip.ihl != 5;
		segment->ip6 = false;
	} else {
		struct ipv6hdr ip;
		__u8 next;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return false;
		__builtin_memcpy(&segment->source, &ip.saddr, 16);
		offset = sizeof(ip);
		next = ip.nexthdr;
		segment->ip_options = next != IPPROTO_TCP;
		/* A socket may send extension headers with every packet. */
		for (int i = 0; i < 4 && next != IPPROTO_TCP; i++) {
			__u8 extension[2];

			if (bpf_skb_load_bytes(skb, offset, extension, sizeof(extension)))
				return false;
			next = extension[0];
			offset += (extension[1] + 1) * 8;
		}
		if (next != IPPROTO_TCP)
			return false;
		segment->ip6 = true;
	}
	if (bpf_skb_load_bytes(skb, offset, &segment->tcp, sizeof(segment->tcp)))
		return false;
	segment->options = offset + sizeof(segment->tcp);
	return segment->tcp.syn && !segment->tcp.ack;
}

/* Word by word: the verifier of Linux 6.1 wants constant lengths. */
static __always_inline void copy_options(struct __sk_buff *skb, const struct segment *segment, struct mprox_event *event)
{
	__u32 words = segment->tcp.doff > 5 ? segment->tcp.doff - 5 : 0;

	event->options_size = words * 4;
	for (__u32 i = 0; i < MPROX_OPTIONS_MAX / 4; i++) {
		__u32 word = 0;

		if (i < words && bpf_skb_load_bytes(skb, segment->options + i * 4, &word, sizeof(word)))
			event->options_size = 0;
		__builtin_memcpy(event->options + i * 4, &word, sizeof(word));
	}
}

/*
 * Few of the engine's threads while those have room: one that many connections share is woken less often for each, and
 * the members want processors as well.
 */
static __always_inline __u32 choose_shard(const struct mprox_context *context, __u64 cookie)
{
	__u32 shards = context->shards, spread = context->spread, shard;

	if (!shards || !spread)
		return 0;
	shard = cookie % spread;
	for (int i = 0; i < MPROX_SHARDS; i++) {
		shard %= MPROX_SHARDS; /* for the verifier */
		if (context->reported[shard] - context->done[shard] < context->room)
			break;
		shard = (shard + 1) % shards;
	}
	return shard;
}

/* All but the options. */
static __always_inline void describe(struct mprox_event *event, struct __sk_buff *skb, const struct segment *segment,
				     const struct held_socket *held)
{
	event->kind = MPROX_EVENT_HELD;
	event->attempt = held->attempt;
	event->cookie = bpf_get_socket_cookie(skb);
	event->netns = held->netns;
	event->tgid = held->tgid;
	event->sequence = bpf_ntohl(segment->tcp.seq);
	event->device = held->device;
	event->mark = held->mark;
	event->destination = held->destination;
	event->held = held->held;
	event->source = segment->source;
	event->bound = held->bound;
	event->destination_port = held->destination_port;
	event->held_port = held->held_port;
	event->source_port = bpf_ntohs(segment->tcp.source);
	event->ipv6 = segment->ip6;
	event->state = 0;
	event->time = bpf_ktime_get_ns();
	event->window = bpf_ntohs(segment->tcp.window);
	event->tcp_flags = segment->tcp.cwr << 7 | segment->tcp.ece << 6;
	event->ip_options = segment->ip_options;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
}

/* The pool that an entry's connect() has taken a connection from, as long as the engine leaves that to the programs. */
static __always_inline struct mprox_pool *asked_of(const struct mprox_splice *outward)
{
	__u32 number = (outward->ready - 1) % MPROX_POOL_MOST, state;
	struct mprox_pool *pool = outward->ready ? pool_of(&outward->owner, outward->shard) : NULL;

	if (!pool)
		return NULL;
	state = pool->state[number];
	return state >= MPROX_READY_DIALLED && state <= MPROX_READY_ANSWERED && ready_of(outward, pool) ? pool : NULL;
}

/* A SYN that comes again becomes the request again. */
static __always_inline bool is_asked(const struct held_socket *held, const struct segment *segment, __u64 cookie)
{
	struct mprox_splice_key key = {
		.netns = held->netns,
		.source = segment->source,
		.destination = held->held,
		.source_port = segment->tcp.source,
		.destination_port = segment->tcp.dest,
	};
	struct mprox_splice *outward = bpf_map_lookup_elem(&splices, &key);

	return outward && outward->cookie == cookie && outward->attempt == held->attempt && asked_of(outward);
}

struct search {
	struct mprox_pool *pool;
	__u64 netns;
	__u32 ip6, scale;
	__u32 port; /* one of these is looked for */
	__u32 found; /* its number, plus 1 */
};

static __always_inline bool suits(const struct mprox_ready *ready, const struct search *search)
{
	return ready->port == search->port && ready->netns == search->netns && ready->ipv6 == search->ip6 &&
	       (ready->port || ready->scale == search->scale);
}

static long search_next(__u32 number, void *context)
{
	struct search *search = context;
	struct mprox_pool *pool = search->pool;
	struct mprox_ready *ready = &pool->ready[number % MPROX_POOL_MOST];

	if (pool->state[number % MPROX_POOL_MOST] != MPROX_READY_WAITS || !suits(ready, search) ||
	    !move_on(pool, number, MPROX_READY_WAITS, MPROX_READY_TAKEN))
		return 0;
	search->found = number + 1;
	return 1;
}

/* RFC 1928 section 4. */
static __always_inline void write_request(struct mprox_ready *ready)
{
	const struct mprox_event *held = &ready->held;
	__u16 port = bpf_htons(held->destination_port);

	__builtin_memset(ready->request, 0, sizeof(ready->request));
	ready->request[0] = SOCKS5;
	ready->request[1] = SOCKS5_CONNECT;
	if (is_mapped(&held->destination)) {
		ready->request[3] = SOCKS5_IP4;
		__builtin_memcpy(ready->request + 4, &held->destination.word[3], 4);
		__builtin_memcpy(ready->request + 8, &port, 2);
		ready->request_size = REQUEST_IP4;
	} else {
		ready->request[3] = SOCKS5_IP6;
		__builtin_memcpy(ready->request + 4, &held->destination, 16);
		__builtin_memcpy(ready->request + 20, &port, 2);
		ready->request_size = REQUEST_IP6;
	}
	ready->reply_size = 0;
}

/* As the engine does for a connection that it hands over: see there. The request is counted in. */
static __always_inline void write_splices(struct mprox_ready *ready, const struct mprox_member *owner, __u32 shard)
{
	const struct mprox_event *held = &ready->held;
	struct mprox_splice *out = &ready->outward, *in = &ready->inward;
	__u32 difference = ready->send_next + ready->request_size - (held->sequence + 1);
	__u32 clock = stamp_of(held) - (__u32)(held->time / 1000000);

	__builtin_memset(out, 0, sizeof(*out));
	__builtin_memset(in, 0, sizeof(*in));
	out->cookie = in->cookie = held->cookie;
	out->attempt = in->attempt = held->attempt;
	out->owner = in->owner = *owner;
	out->way = ready->device == LOOPBACK ? MPROX_WAY_STAY : MPROX_WAY_OUT;
	in->way = ready->device == LOOPBACK ? MPROX_WAY_STAY : MPROX_WAY_IN;
	out->outward = 1;
	out->ifindex = in->ifindex = ready->device;
	out->source = ready->inward_key.destination;
	out->source_port = ready->inward_key.destination_port;
	out->destination = ready->inward_key.source;
	out->destination_port = ready->inward_key.source_port;
	in->source = held->held;
	in->source_port = bpf_htons(held->held_port);
	in->destination = held->source;
	in->destination_port = bpf_htons(held->source_port);
	out->sequence = difference;
	in->acknowledgement = -difference;
	out->timestamp = ready->clock - clock + MPROX_CLOCK_SLACK;
	in->echo = -out->timestamp;
	out->window_left = ready->scale;
	out->window_right = ready->receive_scale;
	out->next = held->sequence + 1;
	in->next = out->acked = ready->receive_next;
	in->acked = held->sequence + 1 + difference;
	out->ready = in->ready = ready->number + 1;
	out->shard = in->shard = shard;
	ready->outward_key.netns = held->netns;
	ready->outward_key.source = held->source;
	ready->outward_key.destination = held->held;
	ready->outward_key.source_port = in->destination_port;
	ready->outward_key.destination_port = in->source_port;
	ready->outward_key.pad = 0;
}

/* From now on the packets of both sides are translated. False: something has come that nobody asked for. */
static __always_inline bool enter_splices(struct mprox_ready *ready)
{
	struct mprox_splice *watch = bpf_map_lookup_elem(&splices, &ready->inward_key);

	/* Where nothing has been before, there is nothing to be watched. */
	if (ready->port ? !!watch :
			  !watch || watch->way != MPROX_WAY_WATCH || watch->ifindex != ready->device || watch->seen ||
				  watch->next != ready->receive_next || watch->acked != ready->send_next)
		return false;
	if (watch)
		ready->inward.last_timestamp = watch->last_timestamp;
	if (bpf_map_update_elem(&splices, &ready->outward_key, &ready->outward, BPF_ANY))
		return false;
	if (!bpf_map_update_elem(&splices, &ready->inward_key, &ready->inward, ready->port ? BPF_NOEXIST : BPF_EXIST))
		return true;
	bpf_map_delete_elem(&splices, &ready->outward_key);
	return false;
}

/* Linux's own order; who sends another asks the engine. */
struct syn_options {
	__be32 mss, sack_and_timestamps, stamp, echo, scale;
};

/* From a port: what the handshakes with the server come to takes no room before the application's first byte. */
static __always_inline void number_from_port(struct mprox_ready *ready, __u32 scale)
{
	ready->send_next = ready->held.sequence + 1 - ready->request_size;
	ready->receive_next = 0;
	ready->sent = ready->send_next - GREETING;
	ready->scale = ready->receive_scale = scale;
}

/* Finds a waiting connection for the SYN, or a port. False: the engine is to see to it. */
static __noinline bool ask_ready(struct __sk_buff *skb, const struct segment *segment, struct held_socket *held,
				 struct mprox_context *context)
{
	struct mprox_pool *pool = pool_of(&held->owner, held->shard);
	struct syn_options options;
	struct search search;
	struct mprox_ready *ready;
	__u32 number, left, low;

	if (!pool || !(pool->waiting | pool->ports) || !context->alive || held->device || held->mark || !is_zero(&held->bound) ||
	    segment->ip_options || segment->tcp.ece || segment->tcp.cwr || segment->tcp.doff != (sizeof(struct tcphdr) + sizeof(options)) / 4 ||
	    bpf_skb_load_bytes(skb, segment->options, &options, sizeof(options)))
		return false;
	if ((options.mss & bpf_htonl(0xffff0000)) != bpf_htonl(0x02040000) || options.sack_and_timestamps != bpf_htonl(0x0402080a) ||
	    (options.scale & bpf_htonl(0xffffff00)) != bpf_htonl(0x01030300))
		return false;
	search = (struct search){ .pool = pool, .netns = held->netns, .ip6 = segment->ip6, .scale = bpf_ntohl(options.scale) & 0xff };
	if (pool->waiting)
		bpf_loop(MPROX_POOL_MOST, search_next, &search, 0);
	if (!search.found && pool->ports) {
		search.port = 1;
		bpf_loop(MPROX_POOL_MOST, search_next, &search, 0);
	}
	if (!search.found)
		return false;
	/* One that goes with the SYN, and is ours. */
	number = (search.found - 1) % MPROX_POOL_MOST;
	ready = &pool->ready[number];
	if (!suits(ready, &search)) {
		/* Another one by now. */
		move_on(pool, number, MPROX_READY_TAKEN, MPROX_READY_WAITS);
		return false;
	}
	ready->number = number;
	if (search.port) {
		low = pool->ports_low;
		left = __sync_fetch_and_sub(&pool->ports, 1) - 1;
	} else {
		low = pool->low;
		left = __sync_fetch_and_sub(&pool->waiting, 1) - 1;
		if (left < pool->fewest)
			pool->fewest = left;
	}
	describe(&ready->held, skb, segment, held);
	ready->held.options_size = sizeof(options);
	__builtin_memcpy(ready->held.options, &options, sizeof(options));
	write_request(ready);
	if (search.port)
		number_from_port(ready, search.scale);
	write_splices(ready, &held->owner, held->shard);
	if (!enter_splices(ready)) {
		move_on(pool, number, MPROX_READY_TAKEN, MPROX_READY_BROKEN);
		return false;
	}
	__sync_fetch_and_add(&context->reported[held->shard % MPROX_SHARDS], 1);
	held->reported = true;
	if (!is_zero(&ready->local))
		held->local = ready->local;
	move_on(pool, number, MPROX_READY_TAKEN, search.port ? MPROX_READY_DIALLED : MPROX_READY_ASKED);
	if (left == low)
		tell_of_pool(&held->owner, held->shard);
	return true;
}

/* The engine has found one by itself. It sends the SYN again, which becomes the request then. */
SEC("syscall")
int mprox_ask(struct mprox_ask *call)
{
	struct mprox_member owner = call->owner;
	__u32 shard = call->shard, number = call->number % MPROX_POOL_MOST;
	struct mprox_pool *pool = pool_of(&owner, shard);

	if (!pool || pool->state[number] != MPROX_READY_TAKEN)
		return -1;
	write_request(&pool->ready[number]);
	write_splices(&pool->ready[number], &owner, shard);
	if (!enter_splices(&pool->ready[number]))
		return -1;
	move_on(pool, number, MPROX_READY_TAKEN, MPROX_READY_ASKED);
	return 0;
}

SEC("cgroup_skb/egress")
int mprox_egress(struct __sk_buff *skb)
{
	struct segment segment = {};
	struct held_socket *held;
	struct mprox_context *context;
	struct mprox_event *event;
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	held = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!held)
		return !is_replaced(sk);
	if (held->state == IDLE)
		return 1;
	/* A held address must never be looked for outside, whatever device the application binds to by now. */
	if (skb->ifindex != LOOPBACK)
		return 0;
	if (held->state != HELD || !read_syn(skb, &segment))
		return 1;
	if (held->reported) {
		if (!is_asked(held, &segment, bpf_get_socket_cookie(skb)))
			return 0;
		skb->mark = MPROX_MARK;
		return 1;
	}
	context = context_of(&held->owner);
	if (!context)
		return 0;
	held->shard = choose_shard(context, bpf_get_socket_cookie(skb));
	if (ask_ready(skb, &segment, held, context)) {
		skb->mark = MPROX_MARK;
		return 1;
	}
	event = reserve_event(&held->owner, held->shard);
	/* No engine or no room: the SYN is dropped all the same, and comes again. */
	if (!event)
		return 0;
	__sync_fetch_and_add(&context->reported[held->shard % MPROX_SHARDS], 1);
	describe(event, skb, &segment, held);
	copy_options(skb, &segment, event);
	held->reported = true;
	submit_event(event, &held->owner, held->shard, false);
	return 0;
}

static __always_inline void restore_timeout(struct bpf_sock_ops *skops, struct held_socket *held)
{
	int value = held->user_timeout;

	if (held->our_timeout)
		bpf_setsockopt(skops, SOL_TCP, TCP_USER_TIMEOUT, &value, sizeof(value));
	held->our_timeout = 0;
}

static __always_inline void on_open(struct bpf_sock_ops *skops, struct held_socket *held)
{
	__u64 cookie = bpf_get_socket_cookie(skops);
	union mprox_ip *local = bpf_map_lookup_elem(&locals, &cookie);

	held->state = OPEN;
	if (local) {
		held->local = *local;
		bpf_map_delete_elem(&locals, &cookie);
	}
	restore_timeout(skops, held);
}

/* The outward direction of a spliced connection. */
static __always_inline struct mprox_splice_key key_of(struct bpf_sock_ops *skops, const struct held_socket *held)
{
	return (struct mprox_splice_key){
		.netns = held->netns,
		.source = is_mapped(&held->held) ? mapped(skops->local_ip4) : local_ip(skops),
		.destination = held->held,
		.source_port = bpf_htons(skops->local_port),
		.destination_port = bpf_htons(held->held_port),
	};
}

/* The other direction. */
static __always_inline struct mprox_splice *reverse_of(const struct mprox_splice *outward, __u64 netns)
{
	struct mprox_splice_key key = {
		.netns = netns,
		.source = outward->destination,
		.destination = outward->source,
		.source_port = outward->destination_port,
		.destination_port = outward->source_port,
	};

	return bpf_map_lookup_elem(&splices, &key);
}

static __always_inline void on_splice(struct bpf_sock_ops *skops, struct held_socket *held)
{
	struct mprox_splice_key key = key_of(skops, held);
	struct mprox_splice *outward = bpf_map_lookup_elem(&splices, &key), *inward;
	struct mprox_context *context = context_of(&held->owner);

	on_open(skops, held);
	held->state = SPLICED;
	bpf_sock_ops_cb_flags_set(skops, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!outward)
		return;
	inward = reverse_of(outward, held->netns);
	if (inward)
		__sync_fetch_and_or(&inward->seen, MPROX_OPENED);
	__sync_fetch_and_or(&outward->seen, MPROX_OPENED);
	if (outward->ready) {
		struct mprox_pool *pool = asked_of(outward);

		/* The engine may have given it up in this very moment. Then this one leads nowhere, and meets a reset. */
		if (!pool || !move_on(pool, outward->ready - 1, MPROX_READY_ANSWERED, MPROX_READY_OPEN))
			bpf_map_delete_elem(&splices, &key);
		return;
	}
	/* Otherwise the engine looks closer. */
	if (context && inward && !(inward->seen & MPROX_SEEN_RST))
		context->opened[held->shard % MPROX_SHARDS] = bpf_get_socket_cookie(skops);
}

/* A connect() that was asked for ends without an answer. */
static __always_inline void on_gone(const struct mprox_splice *outward)
{
	struct mprox_pool *pool = asked_of(outward);

	if (!pool)
		return;
	for (__u32 state = MPROX_READY_DIALLED; state <= MPROX_READY_ANSWERED; state++)
		if (move_on(pool, outward->ready - 1, state, MPROX_READY_GONE))
			return;
}

static __always_inline void on_end(struct bpf_sock_ops *skops, struct held_socket *held)
{
	bool spliced = held->state == SPLICED, quiet;
	struct mprox_context *context = context_of(&held->owner);
	__u32 shard = held->shard % MPROX_SHARDS;
	struct mprox_splice_key key = key_of(skops, held);
	struct mprox_splice *splice;
	struct mprox_event *event;

	held->state = ENDED;
	splice = bpf_map_lookup_elem(&splices, &key);
	if (splice && splice->cookie == bpf_get_socket_cookie(skops) && (spliced || splice->ready)) {
		if (!spliced)
			on_gone(splice);
		/* The engine may be dead, or miss the event: whoever cleans up sees this. */
		splice->closed = bpf_ktime_get_ns();
		__sync_fetch_and_or(&splice->seen, MPROX_CLOSED | skops->args[0] << MPROX_STATE_SHIFT);
	}
	if (!spliced)
		restore_timeout(skops, held);
	if (!context)
		return;
	/* Counted before: an engine that has just emptied its ring, and looks at this, must not look too early. */
	if (spliced)
		__sync_fetch_and_add(&context->missed[shard], 1);
	quiet = spliced && can_wait(context, shard);
	event = reserve_event(&held->owner, shard);
	if (!event) {
		if (quiet)
			__sync_fetch_and_sub(&context->quiet[shard], 1);
		return;
	}
	if (spliced)
		__sync_fetch_and_sub(&context->missed[shard], 1);
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = spliced ? MPROX_EVENT_CLOSED : MPROX_EVENT_ENDED;
	event->state = skops->args[0];
	event->attempt = held->attempt;
	event->cookie = bpf_get_socket_cookie(skops);
	submit_event(event, &held->owner, shard, quiet);
}

SEC("sockops")
int mprox_sockops(struct bpf_sock_ops *skops)
{
	struct held_socket *held;
	struct bpf_sock *sk;
	__u32 op = skops->op;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB && op != BPF_SOCK_OPS_RETRANS_CB)
		return 1;
	sk = skops->sk;
	if (!sk)
		return 1;
	held = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!held)
		return on_dial(skops);
	if (held->state != HELD && held->state != SPLICED)
		return 1;
	if (op == BPF_SOCK_OPS_STATE_CB) {
		if (skops->args[1] == BPF_TCP_CLOSE)
			on_end(skops, held);
	} else if (held->state != HELD) {
		return 1;
	} else if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
							 BPF_SOCK_OPS_RETRANS_CB_FLAG);
	} else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		/* Simultaneous open: the engine's SYN crossed the held one. */
		on_open(skops, held);
	} else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		/* The engine's SYN-ACK: the server's connection is this one from now on. */
		on_splice(skops, held);
	} else {
		struct mprox_context *context = context_of(&held->owner);
		int soon = 1;

		/* The engine died while we waited: nobody will answer. The next timer ends it with ETIMEDOUT. */
		if (!context || !context->alive)
			bpf_setsockopt(skops, SOL_TCP, TCP_USER_TIMEOUT, &soon, sizeof(soon));
	}
	return 1;
}

/* The held socket behind a name look-up, when its names are not its own. */
static __always_inline struct held_socket *named(struct bpf_sock_addr *ctx)
{
	struct held_socket *held = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);

	return held && held->state != IDLE ? held : NULL;
}

SEC("cgroup/getpeername4")
int mprox_getpeername4(struct bpf_sock_addr *ctx)
{
	struct held_socket *held = named(ctx);

	if (held) {
		ctx->user_ip4 = held->destination.word[3];
		ctx->user_port = bpf_htons(held->destination_port);
	}
	return 1;
}

SEC("cgroup/getpeername6")
int mprox_getpeername6(struct bpf_sock_addr *ctx)
{
	struct held_socket *held = named(ctx);

	if (held) {
		write6(ctx, &held->destination);
		ctx->user_port = bpf_htons(held->destination_port);
	}
	return 1;
}

SEC("cgroup/getsockname4")
int mprox_getsockname4(struct bpf_sock_addr *ctx)
{
	struct held_socket *held = named(ctx);

	/* No address of its own: connect(AF_UNSPEC) has dissolved the association. */
	if (held && !is_zero(&held->local) && ctx->user_ip4)
		ctx->user_ip4 = held->local.word[3];
	return 1;
}

SEC("cgroup/getsockname6")
int mprox_getsockname6(struct bpf_sock_addr *ctx)
{
	struct held_socket *held = named(ctx);
	union mprox_ip own = read6(ctx);

	if (held && !is_zero(&held->local) && !is_zero(&own))
		write6(ctx, &held->local);
	return 1;
}

/* For the engine's socket of a spliced connection: from now on no packet changes it. */
SEC("socket")
int mprox_deaf(struct __sk_buff *skb)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
