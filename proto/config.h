/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The configuration text of a proxy descriptor, read line by line. Under the conventions of mproto.h.
 *
 *     server URI [weight=N] [priority=N]      any number; weight 1..1000 (1), priority 0..1000 (0), the lowest first
 *     strategy failover|round-robin|random
 *     bypass CIDR[:PORT]                      any number
 *     on-close direct|refuse
 *     timeout SECONDS                         1..3600 (60)
 *     udp direct|block
 *     # to the end of the line; also behind a directive, after a blank
 *
 * UTF-8. Words are separated by spaces or tabs; a line may end in CR LF. What is not said to be "any number" is
 * given at most once.
 */
#ifndef MPROTO_CONFIG_H
#define MPROTO_CONFIG_H

#include "mproto.h"

#ifdef __cplusplus
extern "C" {
#endif

enum mproto_strategy { MPROTO_FAILOVER, MPROTO_ROUND_ROBIN, MPROTO_RANDOM };
enum mproto_on_close { MPROTO_ON_CLOSE_DIRECT, MPROTO_ON_CLOSE_REFUSE };
enum mproto_udp { MPROTO_UDP_DIRECT, MPROTO_UDP_BLOCK };

struct mproto_config_settings {
	uint8_t strategy; /* enum mproto_strategy */
	uint8_t on_close; /* enum mproto_on_close */
	uint8_t udp; /* enum mproto_udp */
	uint16_t timeout; /* seconds */
};

struct mproto_config_server {
	struct mproto_server server;
	uint16_t weight;
	uint16_t priority;
	uint32_t line; /* from 1 */
};

/* What there may be of each; the provider's limits. */
struct mproto_config_limits {
	uint32_t servers;
	uint32_t bypass;
};

enum mproto_config_item {
	MPROTO_CONFIG_END,
	MPROTO_CONFIG_SERVER, /* *server was filled */
	MPROTO_CONFIG_BYPASS, /* *bypass was filled */
	MPROTO_CONFIG_ERROR, /* reader->line and reader->error say what */
};

struct mproto_config_reader {
	struct mproto_config_limits limits;
	struct mproto_config_settings settings; /* complete at END */
	uint32_t servers; /* read so far */
	uint32_t bypass;
	uint32_t line; /* from 1: of the last item */
	struct mproto_parse_error error; /* its column is that within the line */
	const char *text; /* private */
	size_t len;
	size_t at;
	uint8_t seen;
};

/* The text is borrowed until the reader has ended. */
void mproto_config_start(struct mproto_config_reader *reader, const struct mproto_config_limits *limits,
			 const char *text, size_t len);

/* The next server or bypass line, the end, or the first error, which is final. *server holds a password: wipe it. */
enum mproto_config_item mproto_config_next(struct mproto_config_reader *reader, struct mproto_config_server *server,
					   struct mproto_prefix *bypass);

/* "failover", "direct", ... Static. */
const char *mproto_strategy_text(enum mproto_strategy strategy);
const char *mproto_on_close_text(enum mproto_on_close on_close);
const char *mproto_udp_text(enum mproto_udp udp);

#define MPROTO_PREFIX_TEXT_MAX 64
/* Writes "10.0.0.0/8", "[2001:db8::]/32:443", NUL-terminated, readable by mproto_prefix_parse(); returns its length. */
size_t mproto_prefix_format(const struct mproto_prefix *prefix, char out[MPROTO_PREFIX_TEXT_MAX]);

#ifdef __cplusplus
}
#endif
#endif
