/* SPDX-License-Identifier: MIT */
/* Any text as a configuration. */
#include "pieces.h"
#include "proto/config.h"

static void check_server(const struct mproto_config_server *server)
{
	const struct mproto_credentials *credentials = &server->server.credentials;

	REQUIRE(server->weight >= 1 && server->weight <= 1000);
	REQUIRE(server->priority <= 1000);
	REQUIRE(server->line >= 1);
	REQUIRE(server->server.at.port);
	REQUIRE(strlen(credentials->user) == credentials->user_len);
	REQUIRE(strlen(credentials->password) == credentials->password_len);
}

static void check_bypass(const struct mproto_prefix *bypass)
{
	struct mproto_prefix again;
	struct mproto_parse_error error;
	char text[MPROTO_PREFIX_TEXT_MAX];
	size_t len;

	memset(text, 'x', sizeof(text));
	len = mproto_prefix_format(bypass, text);
	REQUIRE(len < sizeof(text) && strlen(text) == len);
	memset(&again, 0, sizeof(again));
	REQUIRE(mproto_prefix_parse(text, len, &again, &error));
	REQUIRE(!memcmp(&again, bypass, sizeof(again)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct mproto_config_limits limits = {.servers = 4, .bypass = 4};
	struct mproto_config_reader reader;
	struct mproto_config_server server;
	struct mproto_prefix bypass;
	enum mproto_config_item item;
	char *copy = malloc(size ? size : 1);
	uint32_t servers = 0, prefixes = 0, line = 0;

	REQUIRE(copy);
	memcpy(copy, data, size);
	memset(&bypass, 0, sizeof(bypass));
	mproto_config_start(&reader, &limits, copy, size);
	do {
		item = mproto_config_next(&reader, &server, &bypass);
		REQUIRE(reader.line >= line);
		line = reader.line;
		if (item == MPROTO_CONFIG_SERVER) {
			check_server(&server);
			REQUIRE(server.line == reader.line);
			servers++;
		} else if (item == MPROTO_CONFIG_BYPASS) {
			check_bypass(&bypass);
			prefixes++;
		}
	} while (item == MPROTO_CONFIG_SERVER || item == MPROTO_CONFIG_BYPASS);
	REQUIRE(servers == reader.servers && servers <= limits.servers);
	REQUIRE(prefixes == reader.bypass && prefixes <= limits.bypass);
	if (item == MPROTO_CONFIG_ERROR) {
		REQUIRE(reader.error.column <= size);
		REQUIRE(reader.error.reason && strlen(reader.error.reason) > 0 && strlen(reader.error.reason) < 200);
	} else {
		REQUIRE(reader.settings.timeout >= 1 && reader.settings.timeout <= 3600);
		REQUIRE(strcmp(mproto_strategy_text(reader.settings.strategy), "?"));
		REQUIRE(strcmp(mproto_on_close_text(reader.settings.on_close), "?"));
		REQUIRE(strcmp(mproto_udp_text(reader.settings.udp), "?"));
	}
	REQUIRE(mproto_config_next(&reader, &server, &bypass) == MPROTO_CONFIG_END);
	free(copy);
	return 0;
}
