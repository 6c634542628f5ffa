/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The client machine: checks what every protocol needs and hands over to the one the server speaks. */
#include "machine.h"

enum mproto_progress mproto_client_refuse(struct mproto_client *client, enum mproto_reason reason,
					  unsigned int code)
{
	client->state = MPROTO_STATE_REFUSED;
	client->refusal.reason = (uint8_t)reason;
	client->refusal.code = (uint16_t)code;
	return MPROTO_REFUSED;
}

enum mproto_progress mproto_client_done(struct mproto_client *client)
{
	client->state = MPROTO_STATE_DONE;
	client->refusal.reason = MPROTO_OK;
	client->refusal.code = 0;
	return MPROTO_DONE;
}

static bool has_destination(const struct mproto_endpoint *destination)
{
	switch (destination->kind) {
	case MPROTO_HOST_IPV4:
	case MPROTO_HOST_IPV6:
		return true;
	case MPROTO_HOST_NAME:
		return mproto_name_is_sane(destination);
	default:
		return false;
	}
}

enum mproto_progress mproto_client_start(struct mproto_client *client, const struct mproto_server *server,
					 const struct mproto_endpoint *destination,
					 uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	struct mproto_out message = {out, 0};
	enum mproto_progress progress;

	__builtin_memset(client, 0, sizeof(*client));
	client->server = server;
	client->destination = destination;
	client->refusal.protocol = server->protocol;
	*out_len = 0;
	if (!has_destination(destination))
		return mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
	switch (server->protocol) {
	case MPROTO_SOCKS5:
	case MPROTO_SOCKS5H:
		progress = mproto_socks5_start(client, &message);
		break;
	case MPROTO_SOCKS4:
	case MPROTO_SOCKS4A:
		progress = mproto_socks4_start(client, &message);
		break;
	case MPROTO_HTTP:
		progress = mproto_http_start(client, &message);
		break;
	default:
		progress = mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
		break;
	}
	*out_len = message.len;
	return progress;
}

enum mproto_progress mproto_client_feed(struct mproto_client *client, const uint8_t *in, size_t in_len,
					size_t *consumed, uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	struct mproto_out message = {out, 0};
	enum mproto_progress progress = MPROTO_MORE;
	size_t i = 0;

	if (client->state == MPROTO_STATE_DONE)
		progress = MPROTO_DONE;
	else if (client->state == MPROTO_STATE_REFUSED)
		progress = MPROTO_REFUSED;
	while (i < in_len && progress == MPROTO_MORE && !message.len) {
		uint8_t byte = in[i++];

		switch (client->server->protocol) {
		case MPROTO_SOCKS5:
		case MPROTO_SOCKS5H:
			progress = mproto_socks5_take(client, byte, &message);
			break;
		case MPROTO_SOCKS4:
		case MPROTO_SOCKS4A:
			progress = mproto_socks4_take(client, byte);
			break;
		default:
			progress = mproto_http_take(client, byte);
			break;
		}
	}
	*consumed = i;
	*out_len = message.len;
	return progress;
}
