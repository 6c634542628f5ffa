/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The acceptor machine: the first byte tells which protocol the client speaks. */
#include "machine.h"

void mproto_acceptor_start(struct mproto_acceptor *acceptor, const struct mproto_credentials *required)
{
	__builtin_memset(acceptor, 0, sizeof(*acceptor));
	acceptor->required = required;
	acceptor->authorized = !required;
}

enum mproto_progress mproto_acceptor_done(struct mproto_acceptor *acceptor)
{
	acceptor->state = MPROTO_STATE_DONE;
	return MPROTO_DONE;
}

enum mproto_progress mproto_acceptor_refuse(struct mproto_acceptor *acceptor)
{
	acceptor->state = MPROTO_STATE_REFUSED;
	return MPROTO_REFUSED;
}

bool mproto_same_secret(const uint8_t *given, size_t given_len, const char *secret, size_t secret_len)
{
	size_t difference = given_len ^ secret_len, i;

	/* Secrets end in a NUL, so there is always a byte to compare with. */
	for (i = 0; i < given_len; i++)
		difference |= (size_t)(given[i] ^ (uint8_t)secret[i < secret_len ? i : secret_len]);
	return !difference;
}

static enum mproto_progress take(struct mproto_acceptor *acceptor, uint8_t byte, struct mproto_out *out)
{
	if (!acceptor->protocol) {
		if (byte == SOCKS5_VERSION)
			acceptor->protocol = MPROTO_SOCKS5;
		else if (byte == SOCKS4_VERSION)
			acceptor->protocol = MPROTO_SOCKS4;
		else if (mproto_is_letter(byte))
			acceptor->protocol = MPROTO_HTTP;
		else /* there is no language to answer in */
			return mproto_acceptor_refuse(acceptor);
	}
	switch (acceptor->protocol) {
	case MPROTO_SOCKS5:
		return mproto_socks5_accept(acceptor, byte, out);
	case MPROTO_HTTP:
		return mproto_http_accept(acceptor, byte, out);
	default:
		return mproto_socks4_accept(acceptor, byte, out);
	}
}

enum mproto_progress mproto_acceptor_feed(struct mproto_acceptor *acceptor, const uint8_t *in, size_t in_len,
					  size_t *consumed, uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	struct mproto_out message = {out, 0};
	enum mproto_progress progress = MPROTO_MORE;
	size_t i = 0;

	if (acceptor->state == MPROTO_STATE_DONE)
		progress = MPROTO_DONE;
	else if (acceptor->state == MPROTO_STATE_REFUSED)
		progress = MPROTO_REFUSED;
	while (i < in_len && progress == MPROTO_MORE && !message.len)
		progress = take(acceptor, in[i++], &message);
	*consumed = i;
	*out_len = message.len;
	return progress;
}

void mproto_acceptor_reply(const struct mproto_acceptor *acceptor, enum mproto_reason reason,
			   const struct mproto_endpoint *bound, uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	struct mproto_out message = {out, 0};

	switch (acceptor->protocol) {
	case MPROTO_SOCKS5:
		mproto_socks5_answer(reason, bound, &message);
		break;
	case MPROTO_SOCKS4:
	case MPROTO_SOCKS4A:
		mproto_socks4_answer(reason, bound, &message);
		break;
	case MPROTO_HTTP:
		mproto_http_answer(reason, &message);
		break;
	default:
		break;
	}
	*out_len = message.len;
}
