/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The proxy protocols as pure machines: bytes in, bytes out, a verdict.
 *
 * Conventions
 *  1. Freestanding C11: no I/O, no allocation, no libc, no clock. Usable in a kernel.
 *  2. Ports are in host order, addresses in network order.
 *  3. Nothing here keeps a global; two machines never share state. A machine is used by one thread at a time.
 *  4. Pointers given to a *_start function are borrowed until the machine has ended.
 *  5. `out` always has room for MPROTO_OUT_MAX bytes; `*out_len` is set on every call, to 0 when there is
 *     nothing to send.
 *  6. Input may be cut at any byte. A machine never takes a byte that comes after the reply it waits for:
 *     what follows belongs to the application.
 */
#ifndef MPROTO_H
#define MPROTO_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MPROTO_NAME_MAX 255 /* bytes of a host name (RFC 1928 section 5) */
#define MPROTO_CRED_MAX 255 /* bytes of a user name or password (RFC 1929 section 2) */
#define MPROTO_OUT_MAX 2048 /* bytes: the longest message any machine sends */
#define MPROTO_HEAD_MAX 16384 /* bytes: the longest HTTP head any machine reads */

enum mproto_host_kind {
	MPROTO_HOST_NONE = 0,
	MPROTO_HOST_IPV4 = 4,
	MPROTO_HOST_IPV6 = 6,
	MPROTO_HOST_NAME = 1,
};

/* Where something listens: an address or a name, and a port. */
struct mproto_endpoint {
	uint8_t kind; /* enum mproto_host_kind */
	uint8_t name_len; /* bytes of name, when kind is NAME; name is also NUL-terminated */
	uint16_t port; /* host order */
	union {
		uint8_t ip[16]; /* the first 4 for IPv4 */
		char name[MPROTO_NAME_MAX + 1];
	};
};

struct mproto_credentials {
	bool present; /* false: none were given; both lengths are 0 */
	uint8_t user_len;
	uint8_t password_len;
	char user[MPROTO_CRED_MAX + 1]; /* NUL-terminated as well; may hold any byte but NUL */
	char password[MPROTO_CRED_MAX + 1];
};

enum mproto_protocol {
	MPROTO_SOCKS5 = 1, /* RFC 1928, RFC 1929; names resolved on our side */
	MPROTO_SOCKS5H, /* the same; names resolved by the server */
	MPROTO_SOCKS4,
	MPROTO_SOCKS4A,
	MPROTO_HTTP, /* CONNECT: RFC 9110 section 9.3.6; Basic: RFC 7617 */
};

/* An upstream proxy. */
struct mproto_server {
	uint8_t protocol; /* enum mproto_protocol */
	struct mproto_endpoint at;
	struct mproto_credentials credentials;
};

/* A block of addresses, and optionally one port of them. IPv4 is held v4-mapped: ::ffff:a.b.c.d, bits 96..128. */
struct mproto_prefix {
	uint8_t ip[16]; /* bits past `bits` are zero */
	uint8_t bits;
	uint16_t port; /* 0: every port */
};

/* Where and why a text could not be read. */
struct mproto_parse_error {
	size_t column; /* from 0: the byte at fault */
	const char *reason; /* static, a phrase: "port must be 1 to 65535" */
};

/* ---- text (uri.c, prefix.c, ip.c) ---- */

/*
 * Reads a proxy URI as curl writes it: scheme://[user[:password]@]host[:port][/]
 * Schemes socks5 socks5h socks4 socks4a http, in any case; no scheme means http, as for curl. User and password
 * are percent-decoded. Hosts: IPv4, [IPv6], name. Default ports: 1080 for SOCKS, 8080 for http (curl says 1080
 * for both; 8080 is where HTTP proxies listen). A path other than "/" , a query, a NUL or a control byte, a
 * too long part, an https or socks scheme we cannot speak: refused with its reason.
 * Returns false and fills *error (never echoing the password) without touching *server.
 */
bool mproto_server_parse(const char *text, size_t len, struct mproto_server *server,
			 struct mproto_parse_error *error);

/*
 * Reads CIDR[:PORT]: 10.0.0.0/8, 10.1.2.3, 10.1.2.3:80, 10.0.0.0/8:443, 2001:db8::/32, 2001:db8::/32:443,
 * ::1, [::1]:80, [2001:db8::]/32:443, [2001:db8::/32]:443. Bits set past the prefix length are an error that says so.
 */
bool mproto_prefix_parse(const char *text, size_t len, struct mproto_prefix *prefix,
			 struct mproto_parse_error *error);

/* Reads one address without brackets or port (RFC 4291 section 2.2 for IPv6; no zone). kind becomes IPV4 or IPV6. */
bool mproto_ip_parse(const char *text, size_t len, struct mproto_endpoint *endpoint);

#define MPROTO_TEXT_MAX (MPROTO_NAME_MAX + 32)
/* Writes "10.0.0.1:80", "[2001:db8::1]:80" (RFC 5952) or "name:80", NUL-terminated; returns its length. */
size_t mproto_endpoint_format(const struct mproto_endpoint *endpoint, char out[MPROTO_TEXT_MAX]);

/* Writes "socks5://10.0.0.1:1080": never user or password. */
size_t mproto_server_format(const struct mproto_server *server, char out[MPROTO_TEXT_MAX]);

/* "SOCKS5", "SOCKS4a", "HTTP"... */
const char *mproto_protocol_text(enum mproto_protocol protocol);

/* Overwrites credentials so that the compiler cannot drop the stores. */
void mproto_credentials_wipe(struct mproto_credentials *credentials);

/* ---- why a dial failed (reason.c) ---- */

enum mproto_reason {
	MPROTO_OK = 0,
	/* What the server says of the destination: the application's answer. */
	MPROTO_CONNECTION_REFUSED,
	MPROTO_HOST_UNREACHABLE,
	MPROTO_NETWORK_UNREACHABLE,
	MPROTO_TIMED_OUT,
	MPROTO_NOT_ALLOWED, /* by the server's rules */
	MPROTO_NAME_UNKNOWN, /* the server could not resolve it */
	MPROTO_GENERAL_FAILURE, /* the server gave no better word */
	/* What is wrong with the server itself: another server may do better. */
	MPROTO_AUTH_REQUIRED, /* it wants credentials and we have none */
	MPROTO_AUTH_REJECTED,
	MPROTO_UNSUPPORTED, /* it cannot carry this destination, or does not know CONNECT */
	MPROTO_MALFORMED, /* it does not speak the protocol */
};

/* A refusal is a value, not a fault: the reason, and the code the server gave for it. */
struct mproto_refusal {
	uint8_t reason; /* enum mproto_reason */
	uint8_t protocol; /* enum mproto_protocol */
	uint16_t code; /* SOCKS reply or HTTP status; 0 when there was none */
};

/* True when the fault lies with the server rather than the destination. */
bool mproto_reason_is_servers(enum mproto_reason reason);

/*
 * The errno (positive, Linux values) that connect() reports:
 * CONNECTION_REFUSED ECONNREFUSED; TIMED_OUT ETIMEDOUT; HOST_UNREACHABLE, NOT_ALLOWED, NAME_UNKNOWN,
 * GENERAL_FAILURE EHOSTUNREACH; NETWORK_UNREACHABLE and every reason that is the server's ENETUNREACH; OK 0.
 */
int mproto_reason_errno(enum mproto_reason reason);

/* A phrase: "connection refused", "the server does not speak SOCKS5"... Static. */
const char *mproto_reason_text(enum mproto_reason reason);

#define MPROTO_REFUSAL_TEXT_MAX 128
/* "SOCKS5 reply 5: connection refused", "HTTP status 407: the proxy wants a user and password". Returns its length. */
size_t mproto_refusal_format(const struct mproto_refusal *refusal, char out[MPROTO_REFUSAL_TEXT_MAX]);

/* ---- our side: reach a destination through a server (client.c, socks4.c, socks5.c, http_connect.c, http_words.c) ---- */

enum mproto_progress {
	MPROTO_MORE, /* send *out, if any, and feed what arrives */
	MPROTO_DONE, /* client: the destination is connected. acceptor: a request stands in acceptor->destination */
	MPROTO_REFUSED, /* client: client->refusal says why. acceptor: send *out, then close */
	MPROTO_READY, /* client begun without a destination: *out is the last thing to be said without one */
};

struct mproto_client {
	const struct mproto_server *server;
	const struct mproto_endpoint *destination;
	struct mproto_refusal refusal;
	uint8_t state; /* the protocol's own */
	uint8_t need; /* SOCKS: bytes of the current field still to come */
	uint8_t method; /* SOCKS5: the method the server chose */
	uint8_t line_len; /* HTTP: bytes held in line */
	bool line_cut; /* HTTP: the line was longer than we hold; its rest is skipped */
	uint16_t head_len; /* HTTP: bytes of head read so far */
	uint8_t line[96]; /* HTTP: the line being read. SOCKS: the fixed part of a reply */
};

/*
 * Begins. Fills *out with the first message. REFUSED at once when the protocol cannot carry the destination.
 * Without a destination (NULL) it greets the server, where the protocol has a greeting, and comes to READY: now
 * or when fed. Bytes past *consumed are none of the protocol's then.
 */
enum mproto_progress mproto_client_start(struct mproto_client *client, const struct mproto_server *server,
					 const struct mproto_endpoint *destination,
					 uint8_t out[MPROTO_OUT_MAX], size_t *out_len);

/* Goes on from READY. As mproto_client_start() otherwise. */
enum mproto_progress mproto_client_request(struct mproto_client *client, const struct mproto_endpoint *destination,
					   uint8_t out[MPROTO_OUT_MAX], size_t *out_len);

/*
 * Takes what arrived. Returns as soon as there is something to send, so the caller sends *out and feeds
 * again what is left past *consumed. On DONE, bytes past *consumed are the destination's first.
 */
enum mproto_progress mproto_client_feed(struct mproto_client *client, const uint8_t *in, size_t in_len,
					size_t *consumed, uint8_t out[MPROTO_OUT_MAX], size_t *out_len);

/* ---- the server's side (acceptor.c, socks4.c, socks5.c, http_accept.c) ---- */

struct mproto_acceptor {
	const struct mproto_credentials *required; /* NULL: everybody may */
	struct mproto_endpoint destination; /* valid on DONE */
	uint8_t protocol; /* enum mproto_protocol; 0 until the first byte has told (5, 4, or a letter) */
	uint8_t state;
	uint16_t need;
	uint16_t got;
	uint16_t head_len;
	bool authorized;
	uint8_t buffer[1024]; /* the field or line being read */
};

void mproto_acceptor_start(struct mproto_acceptor *acceptor, const struct mproto_credentials *required);

enum mproto_progress mproto_acceptor_feed(struct mproto_acceptor *acceptor, const uint8_t *in, size_t in_len,
					  size_t *consumed, uint8_t out[MPROTO_OUT_MAX], size_t *out_len);

/*
 * The answer to the request: OK or why not, in the words of the protocol the client speaks. `bound` is the
 * local address of the outgoing connection (RFC 1928 section 6), or NULL. HTTP refusals carry Proxy-Status
 * (RFC 9209) so that a client can tell refused from unreachable.
 */
void mproto_acceptor_reply(const struct mproto_acceptor *acceptor, enum mproto_reason reason,
			   const struct mproto_endpoint *bound, uint8_t out[MPROTO_OUT_MAX], size_t *out_len);

#ifdef __cplusplus
}
#endif
#endif
