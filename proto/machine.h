/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What the protocol files share. Private to proto/.
 *
 * Every machine takes its input one byte at a time and decides at the earliest byte that settles the matter.
 * That is what makes the verdict, and the count of bytes taken, independent of how the input was cut.
 */
#ifndef MPROTO_MACHINE_H
#define MPROTO_MACHINE_H

#include "mproto.h"

#define MPROTO_STATE_READY 253 /* of clients */
#define MPROTO_STATE_DONE 254 /* of clients and acceptors alike */
#define MPROTO_STATE_REFUSED 255

/* SOCKS5, RFC 1928 */
#define SOCKS5_VERSION 5
#define SOCKS5_AUTH_VERSION 1 /* RFC 1929 */
#define SOCKS5_METHOD_NONE 0
#define SOCKS5_METHOD_PASSWORD 2
#define SOCKS5_METHOD_NO_ACCEPTABLE 0xFF
#define SOCKS5_CONNECT 1
#define SOCKS5_IPV4 1
#define SOCKS5_NAME 3
#define SOCKS5_IPV6 4

enum socks5_reply {
	SOCKS5_SUCCEEDED = 0,
	SOCKS5_GENERAL_FAILURE = 1,
	SOCKS5_NOT_ALLOWED = 2,
	SOCKS5_NETWORK_UNREACHABLE = 3,
	SOCKS5_HOST_UNREACHABLE = 4,
	SOCKS5_CONNECTION_REFUSED = 5,
	SOCKS5_TTL_EXPIRED = 6,
	SOCKS5_COMMAND_UNSUPPORTED = 7,
	SOCKS5_ADDRESS_UNSUPPORTED = 8,
};

/* SOCKS4 */
#define SOCKS4_VERSION 4
#define SOCKS4_CONNECT 1
#define SOCKS4_REPLY_VERSION 0

enum socks4_reply {
	SOCKS4_GRANTED = 90,
	SOCKS4_REJECTED = 91,
	SOCKS4_NO_IDENTD = 92,
	SOCKS4_USER_MISMATCH = 93,
};

/* ---- a message being written: never more than MPROTO_OUT_MAX, which every caller provides ---- */

struct mproto_out {
	uint8_t *bytes;
	size_t len;
};

static inline void mproto_put_byte(struct mproto_out *out, unsigned int byte)
{
	if (out->len < MPROTO_OUT_MAX)
		out->bytes[out->len++] = (uint8_t)byte;
}

static inline void mproto_put(struct mproto_out *out, const void *bytes, size_t len)
{
	if (len <= MPROTO_OUT_MAX - out->len) {
		__builtin_memcpy(out->bytes + out->len, bytes, len);
		out->len += len;
	}
}

static inline void mproto_put_port(struct mproto_out *out, uint16_t port)
{
	mproto_put_byte(out, port >> 8);
	mproto_put_byte(out, port & 0xFF);
}

static inline void mproto_put_text(struct mproto_out *out, const char *text)
{
	while (*text)
		mproto_put_byte(out, (uint8_t)*text++);
}

/* ---- text ---- */

static inline bool mproto_is_digit(unsigned int c)
{
	return c - '0' < 10;
}

static inline unsigned int mproto_lower(unsigned int c)
{
	return c - 'A' < 26 ? c | 0x20 : c;
}

static inline bool mproto_is_letter(unsigned int c)
{
	return mproto_lower(c) - 'a' < 26;
}

/* -1 when it is not a hexadecimal digit. */
static inline int mproto_hex_value(unsigned int c)
{
	if (mproto_is_digit(c))
		return (int)(c - '0');
	c = mproto_lower(c);
	return c - 'a' < 6 ? (int)(c - 'a' + 10) : -1;
}

/* Compares with a lower-case ASCII word, in any case. */
static inline bool mproto_is_word(const void *text, size_t len, const char *word)
{
	const uint8_t *bytes = text;
	size_t i;

	for (i = 0; i < len; i++)
		if (!word[i] || mproto_lower(bytes[i]) != (uint8_t)word[i])
			return false;
	return !word[i];
}

/* Writes decimal digits, no NUL; returns how many. */
size_t mproto_decimal(unsigned int value, char *out);

/* Writes an address without brackets (RFC 5952), no NUL; returns its length, at most 45. */
size_t mproto_ip_format(const struct mproto_endpoint *endpoint, char *out);

/* Reads 1..65535; all of the text. */
bool mproto_port_parse(const char *text, size_t len, uint16_t *port);

/* Reads host[:port], [IPv6][:port]. default_port 0: a port must be there. */
bool mproto_authority_parse(const char *text, size_t len, uint16_t default_port, struct mproto_endpoint *endpoint,
			    struct mproto_parse_error *error);

/* True when a name can go into a request: not empty, no NUL, control byte or space. */
bool mproto_name_is_sane(const struct mproto_endpoint *endpoint);

/* ---- clients: the protocols that client.c dispatches to ---- */

enum mproto_progress mproto_client_refuse(struct mproto_client *client, enum mproto_reason reason,
					  unsigned int code);
enum mproto_progress mproto_client_done(struct mproto_client *client);
enum mproto_progress mproto_client_ready(struct mproto_client *client);

enum mproto_progress mproto_socks4_request(struct mproto_client *client, struct mproto_out *out);
enum mproto_progress mproto_socks4_take(struct mproto_client *client, uint8_t byte);
enum mproto_progress mproto_socks5_start(struct mproto_client *client, struct mproto_out *out);
enum mproto_progress mproto_socks5_request(struct mproto_client *client, struct mproto_out *out);
enum mproto_progress mproto_socks5_take(struct mproto_client *client, uint8_t byte, struct mproto_out *out);
enum mproto_progress mproto_http_request(struct mproto_client *client, struct mproto_out *out);
enum mproto_progress mproto_http_take(struct mproto_client *client, uint8_t byte);

/* ---- acceptors: the protocols that acceptor.c dispatches to ---- */

/* What an acceptor does with a byte; on MORE with something written, the reply goes out first. */
enum mproto_progress mproto_socks4_accept(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out);
enum mproto_progress mproto_socks5_accept(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out);
enum mproto_progress mproto_http_accept(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out);

void mproto_socks4_answer(enum mproto_reason reason, const struct mproto_endpoint *bound, struct mproto_out *out);
void mproto_socks5_answer(enum mproto_reason reason, const struct mproto_endpoint *bound, struct mproto_out *out);
void mproto_http_answer(enum mproto_reason reason, struct mproto_out *out);

enum mproto_progress mproto_acceptor_done(struct mproto_acceptor *acceptor);
enum mproto_progress mproto_acceptor_refuse(struct mproto_acceptor *acceptor);

/* Takes as long for a wrong secret as for the right one of the same length. */
bool mproto_same_secret(const uint8_t *given, size_t given_len, const char *secret, size_t secret_len);

/* Stores that the compiler cannot drop. */
void mproto_wipe(void *bytes, size_t len);

#endif
