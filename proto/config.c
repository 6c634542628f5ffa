/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The configuration text of a proxy descriptor. */
#include "config.h"
#include "machine.h"

#define TIMEOUT_DEFAULT 60
#define TIMEOUT_MAX 3600
#define WEIGHT_MAX 1000
#define PRIORITY_MAX 1000

/* A word within the text, as [from, to). Empty at the end of a line. */
struct word {
	size_t from, to;
};

static const char *const strategies[] = {
	[MPROTO_FAILOVER] = "failover",
	[MPROTO_ROUND_ROBIN] = "round-robin",
	[MPROTO_RANDOM] = "random",
};

static const char *const on_closes[] = {
	[MPROTO_ON_CLOSE_DIRECT] = "direct",
	[MPROTO_ON_CLOSE_REFUSE] = "refuse",
};

static const char *const udps[] = {
	[MPROTO_UDP_DIRECT] = "direct",
	[MPROTO_UDP_BLOCK] = "block",
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const char *mproto_strategy_text(enum mproto_strategy strategy)
{
	return (size_t)strategy < COUNT(strategies) ? strategies[strategy] : "?";
}

const char *mproto_on_close_text(enum mproto_on_close on_close)
{
	return (size_t)on_close < COUNT(on_closes) ? on_closes[on_close] : "?";
}

const char *mproto_udp_text(enum mproto_udp udp)
{
	return (size_t)udp < COUNT(udps) ? udps[udp] : "?";
}

/* `at` counts within the text; the column is told within the line. */
static enum mproto_config_item fail(struct mproto_config_reader *reader, size_t at, const char *reason)
{
	size_t start = at;

	while (start > 0 && reader->text[start - 1] != '\n')
		start--;
	reader->error.column = at - start;
	reader->error.reason = reason;
	reader->len = 0; /* the first error is the last item */
	return MPROTO_CONFIG_ERROR;
}

/* The bytes of the UTF-8 character that starts at `at` (RFC 3629 section 4), 0 when it is none. */
static size_t utf8_length(const char *text, size_t at, size_t len)
{
	uint8_t first = (uint8_t)text[at];
	uint8_t low = 0x80, high = 0xBF; /* of the second byte */
	size_t i, length;

	if (first < 0x80)
		return 1;
	if (first >= 0xC2 && first <= 0xDF)
		length = 2;
	else if ((first & 0xF0) == 0xE0)
		length = 3;
	else if (first >= 0xF0 && first <= 0xF4)
		length = 4;
	else
		return 0;
	if (first == 0xE0)
		low = 0xA0;
	else if (first == 0xED)
		high = 0x9F;
	else if (first == 0xF0)
		low = 0x90;
	else if (first == 0xF4)
		high = 0x8F;
	if (len - at < length)
		return 0;
	for (i = 1; i < length; i++, low = 0x80, high = 0xBF)
		if ((uint8_t)text[at + i] < low || (uint8_t)text[at + i] > high)
			return 0;
	return length;
}

static size_t line_end(const struct mproto_config_reader *reader)
{
	size_t end = reader->at;

	while (end < reader->len && reader->text[end] != '\n')
		end++;
	return end;
}

/* The first byte of [at, end) that no line may hold, or end. */
static size_t first_strange(const struct mproto_config_reader *reader, size_t at, size_t end)
{
	while (at < end) {
		uint8_t c = (uint8_t)reader->text[at];
		size_t length = utf8_length(reader->text, at, end);

		if (!length || (c < ' ' && c != '\t') || c == 0x7F)
			break;
		at += length;
	}
	return at;
}

static struct word next_word(const char *text, size_t at, size_t end)
{
	struct word word;

	while (at < end && (text[at] == ' ' || text[at] == '\t'))
		at++;
	word.from = at;
	if (at < end && text[at] == '#')
		end = at;
	while (at < end && text[at] != ' ' && text[at] != '\t')
		at++;
	word.to = at;
	return word;
}

static bool is_word(const struct mproto_config_reader *reader, struct word word, const char *what)
{
	size_t i;

	for (i = 0; i < word.to - word.from; i++)
		if (!what[i] || reader->text[word.from + i] != what[i])
			return false;
	return !what[i];
}

/* Reads digits up to `max`, all of the word. */
static bool number(const char *text, struct word word, unsigned int min, unsigned int max, unsigned int *value)
{
	size_t i;

	*value = 0;
	if (word.from == word.to || word.to - word.from > 6)
		return false;
	for (i = word.from; i < word.to; i++) {
		if (!mproto_is_digit((uint8_t)text[i]))
			return false;
		*value = *value * 10 + (uint8_t)(text[i] - '0');
	}
	return *value >= min && *value <= max;
}

static enum mproto_config_item server_line(struct mproto_config_reader *reader, size_t end,
					   struct mproto_config_server *server)
{
	struct word word = next_word(reader->text, reader->at, end);
	bool weight = false, priority = false;
	unsigned int value;

	if (word.from == word.to)
		return fail(reader, word.from, "the proxy's address is missing");
	if (reader->servers == reader->limits.servers)
		return fail(reader, word.from, "too many servers");
	if (!mproto_server_parse(reader->text + word.from, word.to - word.from, &server->server, &reader->error))
		return fail(reader, word.from + reader->error.column, reader->error.reason);
	server->weight = 1;
	server->priority = 0;
	server->line = reader->line;
	for (;;) {
		struct word name, option = next_word(reader->text, word.to, end);
		size_t equals = option.from;

		if (option.from == option.to)
			break;
		while (equals < option.to && reader->text[equals] != '=')
			equals++;
		name.from = option.from;
		name.to = equals;
		word.from = equals < option.to ? equals + 1 : option.to;
		word.to = option.to;
		if (is_word(reader, name, "weight")) {
			if (weight)
				return fail(reader, option.from, "weight is given twice");
			if (!number(reader->text, word, 1, WEIGHT_MAX, &value))
				return fail(reader, word.from, "weight must be 1 to 1000");
			server->weight = (uint16_t)value;
			weight = true;
		} else if (is_word(reader, name, "priority")) {
			if (priority)
				return fail(reader, option.from, "priority is given twice");
			if (!number(reader->text, word, 0, PRIORITY_MAX, &value))
				return fail(reader, word.from, "priority must be 0 to 1000");
			server->priority = (uint16_t)value;
			priority = true;
		} else {
			return fail(reader, option.from, "only weight=N and priority=N may follow the address");
		}
	}
	reader->servers++;
	return MPROTO_CONFIG_SERVER;
}

/* The one argument of a directive, and nothing behind it. False: reader->error says why. */
static bool argument(struct mproto_config_reader *reader, size_t end, const char *missing, struct word *word)
{
	struct word more;

	*word = next_word(reader->text, reader->at, end);
	if (word->from == word->to) {
		fail(reader, word->from, missing);
		return false;
	}
	more = next_word(reader->text, word->to, end);
	if (more.from != more.to) {
		fail(reader, more.from, "nothing may follow here");
		return false;
	}
	return true;
}

static enum mproto_config_item bypass_line(struct mproto_config_reader *reader, size_t end,
					   struct mproto_prefix *bypass)
{
	struct word word;

	if (!argument(reader, end, "the address is missing", &word))
		return MPROTO_CONFIG_ERROR;
	if (reader->bypass == reader->limits.bypass)
		return fail(reader, word.from, "too many bypass lines");
	if (!mproto_prefix_parse(reader->text + word.from, word.to - word.from, bypass, &reader->error))
		return fail(reader, word.from + reader->error.column, reader->error.reason);
	reader->bypass++;
	return MPROTO_CONFIG_BYPASS;
}

/* One of a few words, as its index. */
static bool choice(struct mproto_config_reader *reader, size_t end, const char *const *words, size_t n_words,
		   const char *reason, uint8_t *value)
{
	struct word word;
	size_t i;

	if (!argument(reader, end, reason, &word))
		return false;
	for (i = 0; i < n_words; i++) {
		if (is_word(reader, word, words[i])) {
			*value = (uint8_t)i;
			return true;
		}
	}
	fail(reader, word.from, reason);
	return false;
}

static bool timeout(struct mproto_config_reader *reader, size_t end)
{
	static const char reason[] = "timeout must be 1 to 3600 seconds";
	struct word word;
	unsigned int value;

	if (!argument(reader, end, reason, &word))
		return false;
	if (!number(reader->text, word, 1, TIMEOUT_MAX, &value)) {
		fail(reader, word.from, reason);
		return false;
	}
	reader->settings.timeout = (uint16_t)value;
	return true;
}

enum setting { STRATEGY, ON_CLOSE, UDP, TIMEOUT, SETTINGS };

/* A directive that may be given once. */
static bool setting_line(struct mproto_config_reader *reader, struct word directive, size_t end)
{
	static const char *const names[SETTINGS] = {
		[STRATEGY] = "strategy",
		[ON_CLOSE] = "on-close",
		[UDP] = "udp",
		[TIMEOUT] = "timeout",
	};
	struct mproto_config_settings *settings = &reader->settings;
	unsigned int which = 0;

	while (which < SETTINGS && !is_word(reader, directive, names[which]))
		which++;
	if (which == SETTINGS) {
		fail(reader, directive.from,
		     "unknown directive; use server, strategy, bypass, on-close, udp or timeout");
		return false;
	}
	if (reader->seen & 1U << which) {
		fail(reader, directive.from, "this directive is given twice");
		return false;
	}
	reader->seen |= (uint8_t)(1U << which);
	switch (which) {
	case STRATEGY:
		return choice(reader, end, strategies, COUNT(strategies),
			      "strategy must be failover, round-robin or random", &settings->strategy);
	case ON_CLOSE:
		return choice(reader, end, on_closes, COUNT(on_closes), "on-close must be direct or refuse",
			      &settings->on_close);
	case UDP:
		return choice(reader, end, udps, COUNT(udps), "udp must be direct or block", &settings->udp);
	default:
		return timeout(reader, end);
	}
}

void mproto_config_start(struct mproto_config_reader *reader, const struct mproto_config_limits *limits,
			 const char *text, size_t len)
{
	__builtin_memset(reader, 0, sizeof(*reader));
	reader->limits = *limits;
	reader->settings.timeout = TIMEOUT_DEFAULT;
	reader->text = text;
	reader->len = len;
}

enum mproto_config_item mproto_config_next(struct mproto_config_reader *reader, struct mproto_config_server *server,
					   struct mproto_prefix *bypass)
{
	enum mproto_config_item item = MPROTO_CONFIG_END;

	while (item == MPROTO_CONFIG_END && reader->at < reader->len) {
		size_t newline = line_end(reader), end = newline, strange;
		struct word directive;

		reader->line++;
		if (end < reader->len && end > reader->at && reader->text[end - 1] == '\r')
			end--;
		strange = first_strange(reader, reader->at, end);
		if (strange < end)
			return fail(reader, strange, utf8_length(reader->text, strange, end) ?
				    "a control character" : "this is not UTF-8");
		directive = next_word(reader->text, reader->at, end);
		reader->at = directive.to;
		if (is_word(reader, directive, "server"))
			item = server_line(reader, end, server);
		else if (is_word(reader, directive, "bypass"))
			item = bypass_line(reader, end, bypass);
		else if (directive.from != directive.to && !setting_line(reader, directive, end))
			item = MPROTO_CONFIG_ERROR;
		reader->at = newline + 1;
	}
	return item;
}

size_t mproto_prefix_format(const struct mproto_prefix *prefix, char out[MPROTO_PREFIX_TEXT_MAX])
{
	struct mproto_endpoint address = {0};
	/* v4-mapped exactly when all 96 bits of the mapping belong to the prefix */
	static const uint8_t mapped[12] = {[10] = 0xFF, [11] = 0xFF};
	unsigned int bits = prefix->bits;
	bool brackets = false;
	size_t len = 0, i;

	address.kind = MPROTO_HOST_IPV6;
	__builtin_memcpy(address.ip, prefix->ip, 16);
	for (i = 0; i < sizeof(mapped) && prefix->ip[i] == mapped[i];)
		i++;
	if (i == sizeof(mapped) && bits >= 96) {
		address.kind = MPROTO_HOST_IPV4;
		__builtin_memcpy(address.ip, prefix->ip + 12, 4);
		bits -= 96;
	}
	brackets = address.kind == MPROTO_HOST_IPV6 && prefix->port;
	if (brackets)
		out[len++] = '[';
	len += mproto_ip_format(&address, out + len);
	if (brackets)
		out[len++] = ']';
	out[len++] = '/';
	len += mproto_decimal(bits, out + len);
	if (prefix->port) {
		out[len++] = ':';
		len += mproto_decimal(prefix->port, out + len);
	}
	out[len] = 0;
	return len;
}
