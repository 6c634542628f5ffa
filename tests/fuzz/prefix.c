/* SPDX-License-Identifier: MIT */
/* Any text as a block of addresses. */
#include "pieces.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mproto_prefix prefix, again;
	struct mproto_parse_error error = {SIZE_MAX, NULL};
	struct mproto_endpoint first = {.kind = MPROTO_HOST_IPV6, .port = 1};
	char address[MPROTO_TEXT_MAX], text[MPROTO_TEXT_MAX + 32];
	char *copy = malloc(size ? size : 1);
	bool ok;

	REQUIRE(copy);
	memcpy(copy, data, size);
	memset(&prefix, 0, sizeof(prefix));
	ok = mproto_prefix_parse(copy, size, &prefix, &error);
	free(copy);
	if (!ok) {
		REQUIRE(error.column <= size);
		REQUIRE(error.reason && strlen(error.reason) > 0);
		return 0;
	}
	REQUIRE(prefix.bits <= 128);
	for (unsigned int i = prefix.bits; i < 128; i++)
		REQUIRE(!(prefix.ip[i / 8] >> (7 - i % 8) & 1));

	/* "[address]:1" without the port is the address; with bits and port it has to be the same block. */
	memcpy(first.ip, prefix.ip, 16);
	mproto_endpoint_format(&first, address);
	*strrchr(address, ':') = 0;
	if (prefix.port)
		snprintf(text, sizeof(text), "%s/%u:%u", address, prefix.bits, prefix.port);
	else
		snprintf(text, sizeof(text), "%s/%u", address, prefix.bits);
	memset(&again, 0, sizeof(again));
	REQUIRE(mproto_prefix_parse(text, strlen(text), &again, &error));
	REQUIRE(!memcmp(&again, &prefix, sizeof(prefix)));
	return 0;
}
