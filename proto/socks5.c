/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* SOCKS5 (RFC 1928) with user and password (RFC 1929), both sides. */
#include "machine.h"

static void put_address(struct mproto_out *out, const struct mproto_endpoint *at)
{
	static const uint8_t nowhere[4];

	switch (at ? at->kind : MPROTO_HOST_NONE) {
	case MPROTO_HOST_IPV6:
		mproto_put_byte(out, SOCKS5_IPV6);
		mproto_put(out, at->ip, 16);
		break;
	case MPROTO_HOST_NAME:
		mproto_put_byte(out, SOCKS5_NAME);
		mproto_put_byte(out, at->name_len);
		mproto_put(out, at->name, at->name_len);
		break;
	default:
		mproto_put_byte(out, SOCKS5_IPV4);
		mproto_put(out, at ? at->ip : nowhere, 4);
		break;
	}
	mproto_put_port(out, at ? at->port : 0);
}

/* ---- our side ---- */

enum { METHOD, AUTH, REPLY, REPLY_NAME, REPLY_TAIL };

enum mproto_progress mproto_socks5_start(struct mproto_client *client, struct mproto_out *out)
{
	bool password = client->server->credentials.present;

	client->state = METHOD;
	mproto_put_byte(out, SOCKS5_VERSION);
	mproto_put_byte(out, password ? 2 : 1);
	mproto_put_byte(out, SOCKS5_METHOD_NONE);
	if (password)
		mproto_put_byte(out, SOCKS5_METHOD_PASSWORD);
	return MPROTO_MORE;
}

/* RFC 1929 wants 1 to 255 bytes of each; an empty one is sent as it is, for the server to judge. */
static void put_password(const struct mproto_credentials *credentials, struct mproto_out *out)
{
	mproto_put_byte(out, SOCKS5_AUTH_VERSION);
	mproto_put_byte(out, credentials->user_len);
	mproto_put(out, credentials->user, credentials->user_len);
	mproto_put_byte(out, credentials->password_len);
	mproto_put(out, credentials->password, credentials->password_len);
}

enum mproto_progress mproto_socks5_request(struct mproto_client *client, struct mproto_out *out)
{
	mproto_put_byte(out, SOCKS5_VERSION);
	mproto_put_byte(out, SOCKS5_CONNECT);
	mproto_put_byte(out, 0);
	put_address(out, client->destination);
	client->state = REPLY;
	client->line_len = 0;
	return MPROTO_MORE;
}

static enum mproto_reason reply_reason(uint8_t reply)
{
	switch (reply) {
	case SOCKS5_NOT_ALLOWED:
		return MPROTO_NOT_ALLOWED;
	case SOCKS5_NETWORK_UNREACHABLE:
		return MPROTO_NETWORK_UNREACHABLE;
	case SOCKS5_HOST_UNREACHABLE:
	case SOCKS5_TTL_EXPIRED: /* as a kernel reports the ICMP message of that name */
		return MPROTO_HOST_UNREACHABLE;
	case SOCKS5_CONNECTION_REFUSED:
		return MPROTO_CONNECTION_REFUSED;
	case SOCKS5_COMMAND_UNSUPPORTED:
	case SOCKS5_ADDRESS_UNSUPPORTED:
		return MPROTO_UNSUPPORTED;
	default:
		return MPROTO_GENERAL_FAILURE;
	}
}

static enum mproto_progress take_method(struct mproto_client *client, uint8_t method, struct mproto_out *out)
{
	bool password = client->server->credentials.present;

	client->method = method;
	client->line_len = 0;
	if (method == SOCKS5_METHOD_NONE)
		return client->destination ? mproto_socks5_request(client, out) : mproto_client_ready(client);
	if (method == SOCKS5_METHOD_NO_ACCEPTABLE)
		return mproto_client_refuse(client, password ? MPROTO_AUTH_REJECTED : MPROTO_AUTH_REQUIRED, 0);
	if (method != SOCKS5_METHOD_PASSWORD || !password)
		return mproto_client_refuse(client, MPROTO_MALFORMED, 0); /* we never offered it */
	put_password(&client->server->credentials, out);
	client->state = AUTH;
	return MPROTO_MORE;
}

/* Version, reply, reserved, address type. A refusal is settled by the second byte: some servers send no more. */
static enum mproto_progress take_reply(struct mproto_client *client, uint8_t byte)
{
	switch (client->line_len) {
	case 1:
		return byte == SOCKS5_VERSION ? MPROTO_MORE : mproto_client_refuse(client, MPROTO_MALFORMED, 0);
	case 2:
		return byte == SOCKS5_SUCCEEDED ? MPROTO_MORE :
						  mproto_client_refuse(client, reply_reason(byte), byte);
	case 3: /* reserved: not every server sends 0 */
		return MPROTO_MORE;
	case 4:
		if (byte == SOCKS5_IPV4 || byte == SOCKS5_IPV6) {
			client->need = (byte == SOCKS5_IPV4 ? 4 : 16) + 2;
			client->state = REPLY_TAIL;
		} else if (byte != SOCKS5_NAME) {
			return mproto_client_refuse(client, MPROTO_MALFORMED, 0);
		}
		return MPROTO_MORE;
	default: /* the length of a name, which may be 0 */
		client->need = byte ? byte : 2;
		client->state = byte ? REPLY_NAME : REPLY_TAIL;
		return MPROTO_MORE;
	}
}

enum mproto_progress mproto_socks5_take(struct mproto_client *client, uint8_t byte, struct mproto_out *out)
{
	switch (client->state) {
	case METHOD:
		if (client->line_len++)
			return take_method(client, byte, out);
		return byte == SOCKS5_VERSION ? MPROTO_MORE : mproto_client_refuse(client, MPROTO_MALFORMED, 0);
	case AUTH: /* some servers send 5 for the version; curl does not look at it either */
		if (!client->line_len++)
			return MPROTO_MORE;
		if (byte)
			return mproto_client_refuse(client, MPROTO_AUTH_REJECTED, 0);
		return client->destination ? mproto_socks5_request(client, out) : mproto_client_ready(client);
	case REPLY:
		client->line_len++;
		return take_reply(client, byte);
	case REPLY_NAME:
		if (!--client->need) {
			client->need = 2;
			client->state = REPLY_TAIL;
		}
		return MPROTO_MORE;
	default:
		return --client->need ? MPROTO_MORE : mproto_client_done(client);
	}
}

/* ---- the server's side ---- */

enum { GREETING, PASSWORD, REQUEST };

/* How long the message in the buffer is to become, as far as it tells yet. */
static size_t greeting_len(const uint8_t *message, size_t got)
{
	return got < 2 ? 2 : 2 + (size_t)message[1];
}

static size_t password_len(const uint8_t *message, size_t got)
{
	size_t user = got < 2 ? 0 : message[1];

	if (got < 2 || got < 3 + user)
		return 3 + user;
	return 3 + user + message[2 + user];
}

static size_t request_len(const uint8_t *message, size_t got)
{
	if (got < 5)
		return 5;
	switch (message[3]) {
	case SOCKS5_IPV4:
		return 4 + 4 + 2;
	case SOCKS5_IPV6:
		return 4 + 16 + 2;
	default:
		return 4 + 1 + (size_t)message[4] + 2;
	}
}

static enum mproto_progress fail(struct mproto_acceptor *acceptor, enum socks5_reply reply, struct mproto_out *out)
{
	mproto_put_byte(out, SOCKS5_VERSION);
	mproto_put_byte(out, reply);
	mproto_put_byte(out, 0);
	put_address(out, 0);
	return mproto_acceptor_refuse(acceptor);
}

static enum mproto_progress greeted(struct mproto_acceptor *acceptor, struct mproto_out *out)
{
	bool none = false, password = false;
	size_t i;

	for (i = 2; i < acceptor->got; i++) {
		none |= acceptor->buffer[i] == SOCKS5_METHOD_NONE;
		password |= acceptor->buffer[i] == SOCKS5_METHOD_PASSWORD;
	}
	mproto_put_byte(out, SOCKS5_VERSION);
	acceptor->got = 0;
	if (!acceptor->required && none) {
		mproto_put_byte(out, SOCKS5_METHOD_NONE);
		acceptor->state = REQUEST;
	} else if (password) { /* also of a client that offers nothing else, when everybody may */
		mproto_put_byte(out, SOCKS5_METHOD_PASSWORD);
		acceptor->state = PASSWORD;
	} else {
		mproto_put_byte(out, SOCKS5_METHOD_NO_ACCEPTABLE);
		return mproto_acceptor_refuse(acceptor);
	}
	return MPROTO_MORE;
}

static enum mproto_progress check_password(struct mproto_acceptor *acceptor, struct mproto_out *out)
{
	const struct mproto_credentials *required = acceptor->required;
	const uint8_t *message = acceptor->buffer;
	bool good = true;

	if (required) {
		size_t user = message[1];
		bool good_user = mproto_same_secret(message + 2, user, required->user, required->user_len);

		/* Both are compared, whatever the first one gave: the time must not tell which was wrong. */
		good = mproto_same_secret(message + 3 + user, message[2 + user], required->password,
					  required->password_len) & good_user;
	}
	mproto_wipe(acceptor->buffer, sizeof(acceptor->buffer));
	acceptor->got = 0;
	acceptor->authorized = good;
	mproto_put_byte(out, SOCKS5_AUTH_VERSION);
	mproto_put_byte(out, !good);
	if (!good)
		return mproto_acceptor_refuse(acceptor);
	acceptor->state = REQUEST;
	return MPROTO_MORE;
}

static enum mproto_progress requested(struct mproto_acceptor *acceptor, struct mproto_out *out)
{
	const uint8_t *message = acceptor->buffer;
	struct mproto_endpoint *to = &acceptor->destination;
	const uint8_t *port = message + acceptor->got - 2;

	to->port = (uint16_t)(port[0] << 8 | port[1]);
	switch (message[3]) {
	case SOCKS5_IPV4:
		to->kind = MPROTO_HOST_IPV4;
		__builtin_memcpy(to->ip, message + 4, 4);
		break;
	case SOCKS5_IPV6:
		to->kind = MPROTO_HOST_IPV6;
		__builtin_memcpy(to->ip, message + 4, 16);
		break;
	default:
		to->kind = MPROTO_HOST_NAME;
		to->name_len = message[4];
		__builtin_memcpy(to->name, message + 5, message[4]);
		break;
	}
	if (message[1] != SOCKS5_CONNECT)
		return fail(acceptor, SOCKS5_COMMAND_UNSUPPORTED, out);
	if (to->kind == MPROTO_HOST_NAME && !mproto_name_is_sane(to))
		return fail(acceptor, SOCKS5_GENERAL_FAILURE, out);
	return mproto_acceptor_done(acceptor);
}

enum mproto_progress mproto_socks5_accept(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out)
{
	uint8_t *message = acceptor->buffer; /* the longest, a password message, is 513 bytes */
	size_t got;

	message[acceptor->got++] = byte;
	got = acceptor->got;
	switch (acceptor->state) {
	case GREETING:
		return got == greeting_len(message, got) ? greeted(acceptor, out) : MPROTO_MORE;
	case PASSWORD:
		if (got == 1 && byte != SOCKS5_AUTH_VERSION) {
			mproto_put_byte(out, SOCKS5_AUTH_VERSION);
			mproto_put_byte(out, 1);
			return mproto_acceptor_refuse(acceptor);
		}
		return got == password_len(message, got) ? check_password(acceptor, out) : MPROTO_MORE;
	default:
		if (got == 1 && byte != SOCKS5_VERSION)
			return fail(acceptor, SOCKS5_GENERAL_FAILURE, out);
		/* Of an unknown type the length is unknown too: there is no end to wait for. */
		if (got == 4 && byte != SOCKS5_IPV4 && byte != SOCKS5_NAME && byte != SOCKS5_IPV6)
			return fail(acceptor, SOCKS5_ADDRESS_UNSUPPORTED, out);
		return got == request_len(message, got) ? requested(acceptor, out) : MPROTO_MORE;
	}
}

static enum socks5_reply reason_reply(enum mproto_reason reason)
{
	switch (reason) {
	case MPROTO_OK:
		return SOCKS5_SUCCEEDED;
	case MPROTO_CONNECTION_REFUSED:
		return SOCKS5_CONNECTION_REFUSED;
	case MPROTO_NETWORK_UNREACHABLE:
		return SOCKS5_NETWORK_UNREACHABLE;
	case MPROTO_HOST_UNREACHABLE:
	case MPROTO_NAME_UNKNOWN:
		return SOCKS5_HOST_UNREACHABLE;
	case MPROTO_TIMED_OUT:
		return SOCKS5_TTL_EXPIRED;
	case MPROTO_NOT_ALLOWED:
		return SOCKS5_NOT_ALLOWED;
	default:
		return SOCKS5_GENERAL_FAILURE;
	}
}

void mproto_socks5_answer(enum mproto_reason reason, const struct mproto_endpoint *bound, struct mproto_out *out)
{
	mproto_put_byte(out, SOCKS5_VERSION);
	mproto_put_byte(out, reason_reply(reason));
	mproto_put_byte(out, 0);
	put_address(out, reason == MPROTO_OK ? bound : 0);
}
