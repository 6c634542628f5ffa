/* SPDX-License-Identifier: MIT */
/* Any text as a proxy URI. */
#include "pieces.h"

static const struct mproto_server zero;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct mproto_server server, again;
	struct mproto_parse_error error = {SIZE_MAX, NULL};
	char text[MPROTO_TEXT_MAX];
	char *copy = malloc(size ? size : 1);
	bool ok;

	REQUIRE(copy);
	memcpy(copy, data, size);
	server = zero;
	ok = mproto_server_parse(copy, size, &server, &error);
	free(copy);
	if (!ok) {
		REQUIRE(error.column <= size);
		REQUIRE(error.reason && strlen(error.reason) > 0);
		REQUIRE(!memcmp(&server, &zero, sizeof(server)));
		return 0;
	}
	REQUIRE(strlen(server.credentials.user) == server.credentials.user_len);
	REQUIRE(strlen(server.credentials.password) == server.credentials.password_len);
	REQUIRE(server.at.port);
	REQUIRE(mproto_server_format(&server, text) == strlen(text));
	REQUIRE(!strchr(text, '@'));
	REQUIRE(mproto_server_parse(text, strlen(text), &again, &error));
	REQUIRE(again.protocol == server.protocol);
	REQUIRE(!memcmp(&again.at, &server.at, sizeof(server.at)));
	REQUIRE(!memcmp(&again.credentials, &zero.credentials, sizeof(zero.credentials)));
	mproto_credentials_wipe(&server.credentials);
	REQUIRE(!memcmp(&server.credentials, &zero.credentials, sizeof(zero.credentials)));
	return 0;
}
