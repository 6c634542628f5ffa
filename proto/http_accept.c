/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* HTTP CONNECT, the server's side. */
#include "http.h"

enum { REQUEST_LINE, HEADERS };

static void put_head(struct mproto_out *out, const char *status, const char *header)
{
	mproto_put_text(out, "HTTP/1.1 ");
	mproto_put_text(out, status);
	mproto_put_text(out, "\r\n");
	mproto_put_text(out, header);
	mproto_put_text(out, "Content-Length: 0\r\nConnection: close\r\n\r\n");
}

static enum mproto_progress fail(struct mproto_acceptor *acceptor, unsigned int status, struct mproto_out *out)
{
	switch (status) {
	case 405:
		put_head(out, "405 Method Not Allowed", "Allow: CONNECT\r\n");
		break;
	case 407:
		put_head(out, "407 Proxy Authentication Required",
			 "Proxy-Authenticate: Basic realm=\"mprox\"\r\n");
		break;
	case 431:
		put_head(out, "431 Request Header Fields Too Large", "");
		break;
	default:
		put_head(out, "400 Bad Request", "");
		break;
	}
	return mproto_acceptor_refuse(acceptor);
}

static size_t find_space(const uint8_t *line, size_t from, size_t len)
{
	while (from < len && line[from] != ' ')
		from++;
	return from;
}

/*
 * "METHOD target HTTP/1.x". A wrong method is answered only after the head has ended (`need` keeps the status):
 * closing over unread bytes would reset the connection under the client that is still to read the answer.
 */
static enum mproto_progress request_line(struct mproto_acceptor *acceptor, size_t len, struct mproto_out *out)
{
	const uint8_t *line = acceptor->buffer;
	size_t method = find_space(line, 0, len);
	size_t target = find_space(line, method + 1, len);
	const uint8_t *version = line + target + 1;
	struct mproto_parse_error ignored;

	if (target >= len || len - target - 1 != 8 || !mproto_is_word(version, 7, "http/1.") ||
	    version[0] != 'H' || !mproto_is_digit(version[7]))
		return fail(acceptor, 400, out);
	acceptor->state = HEADERS;
	if (method != 7 || __builtin_memcmp(line, "CONNECT", 7)) {
		acceptor->need = 405;
		return MPROTO_MORE;
	}
	if (!mproto_authority_parse((const char *)line + method + 1, target - method - 1, 0,
				    &acceptor->destination, &ignored))
		return fail(acceptor, 400, out);
	return MPROTO_MORE;
}

static int base64_value(unsigned int c)
{
	if (c - 'A' < 26)
		return (int)(c - 'A');
	if (c - 'a' < 26)
		return (int)(c - 'a' + 26);
	if (mproto_is_digit(c))
		return (int)(c - '0' + 52);
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes in place; returns false when it is not base64. Missing padding does no harm. */
static bool base64_decode(uint8_t *text, size_t *len)
{
	uint32_t bits = 0;
	size_t i, n = 0;

	while (*len && text[*len - 1] == '=')
		--*len;
	for (i = 0; i < *len; i++) {
		int value = base64_value(text[i]);

		if (value < 0)
			return false;
		bits = bits << 6 | (uint32_t)value;
		if (i % 4)
			text[n++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
	}
	*len = n;
	return true;
}

/* Against "user:password" as a whole, so that a ':' in the user name is no ambiguity. */
static bool is_required(const struct mproto_credentials *required, const uint8_t *given, size_t given_len)
{
	size_t user = required->user_len, len = user + 1 + required->password_len;
	size_t difference = given_len ^ len, i;

	for (i = 0; i < given_len; i++) {
		uint8_t expected = 0;

		if (i < user)
			expected = (uint8_t)required->user[i];
		else if (i == user)
			expected = ':';
		else if (i < len)
			expected = (uint8_t)required->password[i - user - 1];
		difference |= (size_t)(given[i] ^ expected);
	}
	return !difference;
}

static void check_authorization(struct mproto_acceptor *acceptor, size_t len)
{
	uint8_t *line = acceptor->buffer;
	size_t at = mproto_header_value(line, len, "proxy-authorization"), scheme;

	if (!at)
		return;
	scheme = at;
	at = find_space(line, at, len);
	if (!mproto_is_word(line + scheme, at - scheme, "basic"))
		return;
	while (at < len && line[at] == ' ')
		at++;
	while (len > at && (line[len - 1] == ' ' || line[len - 1] == '\t'))
		len--;
	len -= at;
	if (acceptor->required && base64_decode(line + at, &len))
		acceptor->authorized = is_required(acceptor->required, line + at, len);
	mproto_wipe(acceptor->buffer, sizeof(acceptor->buffer));
}

static enum mproto_progress end_of_head(struct mproto_acceptor *acceptor, struct mproto_out *out)
{
	if (acceptor->need)
		return fail(acceptor, acceptor->need, out);
	if (!acceptor->authorized)
		return fail(acceptor, 407, out);
	return mproto_acceptor_done(acceptor);
}

static enum mproto_progress end_of_line(struct mproto_acceptor *acceptor, struct mproto_out *out)
{
	size_t len = acceptor->got; /* counts on past the buffer: then the end was not kept */
	bool cut = len > sizeof(acceptor->buffer);

	if (len && !cut && acceptor->buffer[len - 1] == '\r')
		len--;
	acceptor->got = 0;
	if (acceptor->state == REQUEST_LINE)
		return cut ? fail(acceptor, 400, out) : request_line(acceptor, len, out);
	if (!len)
		return end_of_head(acceptor, out);
	if (!cut) /* the longest authorization we could accept fits */
		check_authorization(acceptor, len);
	return MPROTO_MORE;
}

enum mproto_progress mproto_http_accept(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out)
{
	if (++acceptor->head_len > MPROTO_HEAD_MAX)
		return fail(acceptor, 431, out);
	if (!byte)
		return fail(acceptor, 400, out);
	if (byte == '\n')
		return end_of_line(acceptor, out);
	if (acceptor->got < sizeof(acceptor->buffer))
		acceptor->buffer[acceptor->got] = byte;
	acceptor->got++;
	return MPROTO_MORE;
}

void mproto_http_answer(enum mproto_reason reason, struct mproto_out *out)
{
	static const char field[] = "Proxy-Status: mprox; error=";

	if (reason == MPROTO_OK) {
		mproto_put_text(out, "HTTP/1.1 200 Connection established\r\n\r\n");
		return;
	}
	mproto_put_text(out, "HTTP/1.1 ");
	mproto_put_text(out, reason == MPROTO_NOT_ALLOWED ? "403 Forbidden" :
			     reason == MPROTO_TIMED_OUT	  ? "504 Gateway Timeout" :
							    "502 Bad Gateway");
	mproto_put_text(out, "\r\n");
	mproto_put_text(out, field);
	mproto_put_text(out, mproto_http_reason_word(reason));
	mproto_put_text(out, "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}
