/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* SOCKS4 and 4a, both sides. There is no RFC: the protocol is the two memos by Ying-Da Lee. */
#include "machine.h"

#define REPLY_LEN 8

/* 0.0.0.x, x not 0, announces a name (4a): as an address no server could tell it from one. */
static bool announces_name(const uint8_t ip[4])
{
	return !ip[0] && !ip[1] && !ip[2] && ip[3];
}

/* ---- our side ---- */

enum mproto_progress mproto_socks4_request(struct mproto_client *client, struct mproto_out *out)
{
	static const uint8_t name_follows[4] = {0, 0, 0, 1};
	const struct mproto_endpoint *to = client->destination;
	const struct mproto_credentials *credentials = &client->server->credentials;
	bool name = to->kind == MPROTO_HOST_NAME;

	if (to->kind == MPROTO_HOST_IPV6 || (name && client->server->protocol != MPROTO_SOCKS4A) ||
	    (!name && announces_name(to->ip)))
		return mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
	mproto_put_byte(out, SOCKS4_VERSION);
	mproto_put_byte(out, SOCKS4_CONNECT);
	mproto_put_port(out, to->port);
	mproto_put(out, name ? name_follows : to->ip, 4);
	mproto_put(out, credentials->user, credentials->user_len); /* there is no word for a password */
	mproto_put_byte(out, 0);
	if (name) {
		mproto_put(out, to->name, to->name_len);
		mproto_put_byte(out, 0);
	}
	client->state = 0;
	return MPROTO_MORE;
}

/* A reply: 0, code, port, address. Port and address mean nothing after a CONNECT. */
enum mproto_progress mproto_socks4_take(struct mproto_client *client, uint8_t byte)
{
	client->line_len++;
	if (client->line_len == 1 && byte != SOCKS4_REPLY_VERSION)
		return mproto_client_refuse(client, MPROTO_MALFORMED, 0);
	if (client->line_len == 2) {
		switch (byte) {
		case SOCKS4_GRANTED:
			break;
		case SOCKS4_REJECTED: /* "rejected or failed": the only word SOCKS4 has for refused */
			return mproto_client_refuse(client, MPROTO_CONNECTION_REFUSED, byte);
		case SOCKS4_NO_IDENTD:
		case SOCKS4_USER_MISMATCH:
			return mproto_client_refuse(client, MPROTO_AUTH_REJECTED, byte);
		default:
			return mproto_client_refuse(client, MPROTO_MALFORMED, byte);
		}
	}
	return client->line_len == REPLY_LEN ? mproto_client_done(client) : MPROTO_MORE;
}

/* ---- the server's side ---- */

enum { FIXED, USER, NAME };

static enum mproto_progress reject(struct mproto_acceptor *acceptor, enum socks4_reply code, struct mproto_out *out)
{
	static const uint8_t nowhere[6];

	mproto_put_byte(out, SOCKS4_REPLY_VERSION);
	mproto_put_byte(out, code);
	mproto_put(out, nowhere, sizeof(nowhere));
	return mproto_acceptor_refuse(acceptor);
}

/* The whole request has been read: SOCKS4 has no password to show, so where one is required there is no way in. */
static enum mproto_progress complete(struct mproto_acceptor *acceptor, struct mproto_out *out)
{
	if (acceptor->required)
		return reject(acceptor, SOCKS4_USER_MISMATCH, out);
	if (acceptor->buffer[1] != SOCKS4_CONNECT)
		return reject(acceptor, SOCKS4_REJECTED, out);
	if (acceptor->destination.kind == MPROTO_HOST_NAME && !mproto_name_is_sane(&acceptor->destination))
		return reject(acceptor, SOCKS4_REJECTED, out);
	return mproto_acceptor_done(acceptor);
}

enum mproto_progress mproto_socks4_accept(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out)
{
	struct mproto_endpoint *to = &acceptor->destination;

	switch (acceptor->state) {
	case FIXED: /* version, command, port, address */
		acceptor->buffer[acceptor->got++] = byte;
		if (acceptor->got < 8)
			return MPROTO_MORE;
		to->port = (uint16_t)(acceptor->buffer[2] << 8 | acceptor->buffer[3]);
		if (announces_name(acceptor->buffer + 4)) {
			acceptor->protocol = MPROTO_SOCKS4A;
			to->kind = MPROTO_HOST_NAME;
		} else {
			to->kind = MPROTO_HOST_IPV4;
			__builtin_memcpy(to->ip, acceptor->buffer + 4, 4);
		}
		acceptor->state = USER;
		acceptor->got = 0;
		return MPROTO_MORE;
	case USER: /* read over: nothing to check it against */
		if (byte) {
			if (++acceptor->got > MPROTO_CRED_MAX)
				return reject(acceptor, SOCKS4_REJECTED, out);
			return MPROTO_MORE;
		}
		if (to->kind == MPROTO_HOST_IPV4)
			return complete(acceptor, out);
		acceptor->state = NAME;
		return MPROTO_MORE;
	default:
		if (!byte)
			return complete(acceptor, out);
		if (to->name_len == MPROTO_NAME_MAX)
			return reject(acceptor, SOCKS4_REJECTED, out);
		to->name[to->name_len++] = (char)byte;
		return MPROTO_MORE;
	}
}

void mproto_socks4_answer(enum mproto_reason reason, const struct mproto_endpoint *bound, struct mproto_out *out)
{
	static const uint8_t nowhere[4];
	bool known = bound && bound->kind == MPROTO_HOST_IPV4;

	mproto_put_byte(out, SOCKS4_REPLY_VERSION);
	mproto_put_byte(out, reason == MPROTO_OK ? SOCKS4_GRANTED : SOCKS4_REJECTED);
	mproto_put_port(out, known ? bound->port : 0);
	mproto_put(out, known ? bound->ip : nowhere, 4);
}
