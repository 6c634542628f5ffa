/* SPDX-License-Identifier: MIT */
/*
 * A server says anything to our client of FUZZ_PROTOCOL. Input: a byte of settings, four that decide how the rest
 * is cut, then what the server says.
 */
#include "pieces.h"

struct machine {
	struct mproto_client client;
	const struct mproto_endpoint *to;
};

static enum mproto_progress feed(void *self, const uint8_t *in, size_t in_len, size_t *consumed,
				 uint8_t out[MPROTO_OUT_MAX], size_t *out_len)
{
	struct machine *machine = self;
	enum mproto_progress progress = mproto_client_feed(&machine->client, in, in_len, consumed, out, out_len);

	if (progress == MPROTO_READY) {
		REQUIRE(!*out_len);
		progress = mproto_client_request(&machine->client, machine->to, out, out_len);
	}
	return progress;
}

struct outcome {
	struct run run;
	struct mproto_refusal refusal;
};

/* LATER: the destination becomes known when the server has been greeted. */
static void converse(struct outcome *outcome, uint8_t settings, const uint8_t *in, size_t len, uint32_t cuts, bool later)
{
	struct mproto_server server = {0};
	struct mproto_endpoint to = {0};
	struct machine machine = {.to = &to};
	uint8_t out[MPROTO_OUT_MAX];
	size_t out_len = SIZE_MAX;

	server.protocol = settings & 1 ? FUZZ_OTHER : FUZZ_PROTOCOL;
	to.port = 443;
	switch (settings >> 1 & 3) {
	case 0:
		to.kind = MPROTO_HOST_IPV4;
		to.ip[0] = 10;
		break;
	case 1:
		to.kind = MPROTO_HOST_IPV6;
		to.ip[15] = 1;
		break;
	default:
		to.kind = MPROTO_HOST_NAME;
		set_text(to.name, &to.name_len, "a.example");
		break;
	}
	if (settings & 8) {
		server.credentials.present = true;
		set_text(server.credentials.user, &server.credentials.user_len, "user");
		set_text(server.credentials.password, &server.credentials.password_len, "secret");
	}
	memset(outcome, 0, sizeof(*outcome));
	outcome->run.progress = mproto_client_start(&machine.client, &server, later ? NULL : &to, out, &out_len);
	if (outcome->run.progress == MPROTO_READY) {
		REQUIRE(later && !out_len);
		outcome->run.progress = mproto_client_request(&machine.client, &to, out, &out_len);
	}
	REQUIRE(out_len <= MPROTO_OUT_MAX);
	REQUIRE(outcome->run.progress != MPROTO_DONE);
	if (outcome->run.progress == MPROTO_MORE) {
		REQUIRE(out_len > 0);
		run_in_pieces(&outcome->run, feed, &machine, in, len, cuts);
	}
	outcome->refusal = machine.client.refusal;
}

static void require_same_outcome(const struct outcome *a, const struct outcome *b)
{
	require_same(&a->run, &b->run);
	if (a->run.progress == MPROTO_MORE)
		return;
	REQUIRE(a->refusal.reason == b->refusal.reason);
	REQUIRE(a->refusal.code == b->refusal.code);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct outcome whole, other;
	uint32_t cuts;

	if (size < 5)
		return 0;
	memcpy(&cuts, data + 1, 4);
	converse(&whole, data[0], data + 5, size - 5, 0, false);
	converse(&other, data[0], data + 5, size - 5, cuts | 1, false);
	require_same_outcome(&whole, &other);
	converse(&other, data[0], data + 5, size - 5, cuts, true);
	/* What cannot be carried is refused before the greeting, or after it. */
	if (whole.refusal.reason != MPROTO_UNSUPPORTED || whole.refusal.code)
		require_same_outcome(&whole, &other);

	if (whole.run.progress == MPROTO_REFUSED) {
		char text[MPROTO_REFUSAL_TEXT_MAX];

		REQUIRE(whole.refusal.reason > MPROTO_OK && whole.refusal.reason <= MPROTO_MALFORMED);
		REQUIRE(mproto_reason_errno(whole.refusal.reason) > 0);
		REQUIRE(mproto_refusal_format(&whole.refusal, text) == strlen(text));
	}
	if (whole.run.progress == MPROTO_DONE)
		REQUIRE(whole.refusal.reason == MPROTO_OK);
	if (whole.run.progress != MPROTO_MORE && whole.run.consumed) {
		/* The verdict hangs on the bytes taken, on all of them and on nothing after. */
		converse(&other, data[0], data + 5, whole.run.consumed, 0, false);
		require_same_outcome(&whole, &other);
		converse(&other, data[0], data + 5, whole.run.consumed - 1, 0, false);
		REQUIRE(other.run.progress == MPROTO_MORE);
	}
	return 0;
}
