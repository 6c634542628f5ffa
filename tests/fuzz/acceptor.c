/* SPDX-License-Identifier: MIT */
/*
 * A client says anything to our acceptor. Input: a byte of settings, four that decide how the rest is cut, then
 * what the client says.
 */
#include "pieces.h"

static enum mproto_progress feed(void *machine, const uint8_t *in, size_t in_len, size_t *consumed,
				 uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	return mproto_acceptor_feed(machine, in, in_len, consumed, out, out_len);
}

static void require_same_endpoint(const struct mproto_endpoint *a, const struct mproto_endpoint *b)
{
	REQUIRE(a->kind == b->kind);
	REQUIRE(a->port == b->port);
	REQUIRE(a->name_len == b->name_len);
	if (a->kind == MPROTO_HOST_NAME)
		REQUIRE(!memcmp(a->name, b->name, a->name_len + 1u));
	else
		REQUIRE(!memcmp(a->ip, b->ip, a->kind == MPROTO_HOST_IPV4 ? 4 : 16));
}

/* What was asked for, asked for by our own client, is the same request. */
static void require_round_trip(const struct mproto_acceptor *asked)
{
	struct mproto_server server = {.protocol = asked->protocol};
	struct mproto_client client;
	struct mproto_acceptor again;
	uint8_t to_server[MPROTO_OUT_MAX], to_client[MPROTO_OUT_MAX];
	size_t up, down, consumed;
	enum mproto_progress progress;

	progress = mproto_client_start(&client, &server, &asked->destination, to_server, &up);
	REQUIRE(progress == MPROTO_MORE);
	mproto_acceptor_start(&again, NULL);
	for (int turn = 0; turn < 2; turn++) {
		progress = mproto_acceptor_feed(&again, to_server, up, &consumed, to_client, &down);
		REQUIRE(progress != MPROTO_REFUSED);
		REQUIRE(consumed == up);
		if (progress == MPROTO_DONE)
			break;
		REQUIRE(mproto_client_feed(&client, to_client, down, &consumed, to_server, &up) == MPROTO_MORE);
	}
	REQUIRE(progress == MPROTO_DONE);
	require_same_endpoint(&asked->destination, &again.destination);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct run whole, pieces;
	struct mproto_credentials required = {.present = true};
	struct mproto_acceptor a, b;
	uint32_t cuts;

	if (size < 5)
		return 0;
	set_text(required.user, &required.user_len, "user");
	set_text(required.password, &required.password_len, "secret");
	memcpy(&cuts, data + 1, 4);
	mproto_acceptor_start(&a, data[0] & 1 ? &required : NULL);
	mproto_acceptor_start(&b, data[0] & 1 ? &required : NULL);
	run_in_pieces(&whole, feed, &a, data + 5, size - 5, 0);
	run_in_pieces(&pieces, feed, &b, data + 5, size - 5, cuts | 1);
	require_same(&whole, &pieces);
	REQUIRE(a.protocol == b.protocol);
	if (whole.progress == MPROTO_DONE) {
		char text[MPROTO_TEXT_MAX];

		require_same_endpoint(&a.destination, &b.destination);
		REQUIRE(a.authorized);
		REQUIRE(mproto_endpoint_format(&a.destination, text) == strlen(text));
		require_round_trip(&a);
	}
	for (int reason = MPROTO_OK; reason <= MPROTO_MALFORMED; reason++) {
		uint8_t out[MPROTO_OUT_MAX];
		size_t out_len = SIZE_MAX;

		mproto_acceptor_reply(&a, reason, whole.progress == MPROTO_DONE ? &a.destination : NULL, out, &out_len);
		REQUIRE(out_len <= MPROTO_OUT_MAX);
		REQUIRE(!out_len == !a.protocol);
	}
	return 0;
}
