/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* HTTP CONNECT, our side: RFC 9110 section 9.3.6 over HTTP/1.1 (RFC 9112). */
#include "http.h"

enum { STATUS_LINE, HEADERS };

static void put_base64(struct mproto_out *out, const struct mproto_credentials *credentials)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t user = credentials->user_len, len = user + 1 + credentials->password_len, i;
	uint32_t bits = 0;

	for (i = 0; i < (len + 2) / 3 * 3; i++) {
		uint8_t byte = 0;

		if (i < user)
			byte = (uint8_t)credentials->user[i];
		else if (i == user)
			byte = ':';
		else if (i < len)
			byte = (uint8_t)credentials->password[i - user - 1];
		bits = bits << 8 | byte;
		if (i % 3 == 2) {
			mproto_put_byte(out, (uint8_t)digits[bits >> 18 & 63]);
			mproto_put_byte(out, (uint8_t)digits[bits >> 12 & 63]);
			mproto_put_byte(out, i - 1 < len ? (uint8_t)digits[bits >> 6 & 63] : '=');
			mproto_put_byte(out, i < len ? (uint8_t)digits[bits & 63] : '=');
		}
	}
}

/* A name that would end the target, or the header line, early cannot be asked for. */
static bool fits_request_target(const struct mproto_endpoint *to)
{
	size_t i;

	if (to->kind != MPROTO_HOST_NAME)
		return true;
	for (i = 0; i < to->name_len; i++) {
		switch (to->name[i]) {
		case ':':
		case '/':
		case '?':
		case '#':
		case '@':
		case '[':
		case ']':
		case '\\':
			return false;
		}
	}
	return true;
}

static void put_target(struct mproto_out *out, const struct mproto_endpoint *to)
{
	/* Written in place: there is room for it at every point where a target stands. */
	out->len += mproto_endpoint_format(to, (char *)out->bytes + out->len);
}

enum mproto_progress mproto_http_request(struct mproto_client *client, struct mproto_out *out)
{
	const struct mproto_credentials *credentials = &client->server->credentials;

	if (!fits_request_target(client->destination))
		return mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
	client->state = STATUS_LINE;
	mproto_put_text(out, "CONNECT ");
	put_target(out, client->destination);
	mproto_put_text(out, " HTTP/1.1\r\nHost: ");
	put_target(out, client->destination);
	if (credentials->present) {
		mproto_put_text(out, "\r\nProxy-Authorization: Basic ");
		put_base64(out, credentials);
	}
	mproto_put_text(out, "\r\n\r\n");
	return MPROTO_MORE;
}

/* "HTTP/1.x NNN", then a space or the end. Returns 0 when it is something else. */
static unsigned int status_of(const uint8_t *line, size_t len)
{
	unsigned int status = 0;
	size_t i;

	if (len < 12 || (line[7] != '0' && line[7] != '1') || line[8] != ' ' || (len > 12 && line[12] != ' '))
		return 0;
	for (i = 9; i < 12; i++) {
		if (!mproto_is_digit(line[i]))
			return 0;
		status = status * 10 + (line[i] - (unsigned int)'0');
	}
	return status < 100 || status > 599 ? 0 : status;
}

static bool may_be_explained(unsigned int status)
{
	/* That credentials are wanted is what these two say; there is no better word for it. */
	return status >= 300 && status != 401 && status != 407;
}

static enum mproto_progress end_of_head(struct mproto_client *client)
{
	unsigned int status = client->refusal.code;
	enum mproto_reason reason = (enum mproto_reason)client->refusal.reason;

	if (status < 200) { /* interim: the answer is still to come */
		client->state = STATUS_LINE;
		return MPROTO_MORE;
	}
	/* Content-Length and Transfer-Encoding mean nothing here: no body follows a 2xx to CONNECT. */
	if (status < 300)
		return mproto_client_done(client);
	if (reason == MPROTO_OK)
		reason = mproto_http_status_reason(status);
	if (reason == MPROTO_AUTH_REQUIRED && client->server->credentials.present)
		reason = MPROTO_AUTH_REJECTED;
	return mproto_client_refuse(client, reason, status);
}

static enum mproto_progress end_of_line(struct mproto_client *client)
{
	size_t len = client->line_len;
	bool cut = client->line_cut;

	if (len && !cut && client->line[len - 1] == '\r')
		len--;
	client->line_len = 0;
	client->line_cut = false;
	if (client->state == STATUS_LINE) {
		unsigned int status = status_of(client->line, len);

		if (!status || status == 101) /* nobody asked to upgrade */
			return mproto_client_refuse(client, MPROTO_MALFORMED, status);
		client->refusal.code = (uint16_t)status;
		client->refusal.reason = MPROTO_OK;
		client->state = HEADERS;
		return MPROTO_MORE;
	}
	if (!len && !cut)
		return end_of_head(client);
	/* The first to explain is the proxy nearest to the destination. */
	if (client->refusal.reason == MPROTO_OK && may_be_explained(client->refusal.code))
		client->refusal.reason = (uint8_t)mproto_http_header_reason(client->line, len, cut);
	return MPROTO_MORE;
}

enum mproto_progress mproto_http_take(struct mproto_client *client, uint8_t byte)
{
	static const char version[] = "HTTP/1.";

	if (++client->head_len > MPROTO_HEAD_MAX || !byte)
		return mproto_client_refuse(client, MPROTO_MALFORMED, client->refusal.code);
	/* What is not HTTP is told by its first bytes: it may never send an end of line to wait for. */
	if (client->state == STATUS_LINE && client->line_len < sizeof(version) - 1 &&
	    byte != (uint8_t)version[client->line_len])
		return mproto_client_refuse(client, MPROTO_MALFORMED, 0);
	if (byte == '\n')
		return end_of_line(client);
	if (client->line_len < sizeof(client->line))
		client->line[client->line_len++] = byte;
	else
		client->line_cut = true;
	return MPROTO_MORE;
}
