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

enum mproto_progress mproto_client_ready(struct mproto_client *client)
{
	client->state = MPROTO_STATE_READY;
	return MPROTO_READY;
}

static bool is_socks5(const struct mproto_client *client)
{
	return client->server->protocol == MPROTO_SOCKS5 || client->server->protocol == MPROTO_SOCKS5H;
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

static enum mproto_progress request(struct mproto_client *client, struct mproto_out *message)
{
	switch (client->server->protocol) {
	case MPROTO_SOCKS5:
	case MPROTO_SOCKS5H:
		return mproto_socks5_request(client, message);
	case MPROTO_SOCKS4:
	case MPROTO_SOCKS4A:
		return mproto_socks4_request(client, message);
	case MPROTO_HTTP:
		return mproto_http_request(client, message);
	default:
		return mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
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
	if (destination && !has_destination(destination))
		return mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
	if (is_socks5(client))
		progress = mproto_socks5_start(client, &message);
	else
		progress = destination ? request(client, &message) : mproto_client_ready(client);
	*out_len = message.len;
	return progress;
}

enum mproto_progress mproto_client_request(struct mproto_client *client, const struct mproto_endpoint *destination,
					   uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	struct mproto_out message = {out, 0};
	enum mproto_progress progress;

	client->destination = destination;
	*out_len = 0;
	if (!has_destination(destination))
		return mproto_client_refuse(client, MPROTO_UNSUPPORTED, 0);
	progress = request(client, &message);
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
	else if (client->state == MPROTO_STATE_READY)
		progress = MPROTO_READY;
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
