/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Blocks of addresses: CIDR[:PORT] */
#include "machine.h"

static bool fail(struct mproto_parse_error *error, size_t column, const char *reason)
{
	error->column = column;
	error->reason = reason;
	return false;
}

/* The parts of the text, as [from, to); from 0 to 0 when absent (no part but the address can start at 0). */
struct parts {
	size_t ip, ip_end;
	size_t bits, bits_end;
	size_t port, port_end;
};

static size_t find(const char *text, size_t from, size_t len, char c)
{
	while (from < len && text[from] != c)
		from++;
	return from;
}

/* "/BITS" at *at, ended by `stop` or the text; moves *at past it. */
static void take_bits(const char *text, size_t len, size_t *at, char stop, struct parts *parts)
{
	parts->bits = *at + 1;
	parts->bits_end = find(text, parts->bits, len, stop);
	*at = parts->bits_end;
}

static bool split(const char *text, size_t len, struct parts *parts, struct mproto_parse_error *error)
{
	size_t at, slash = find(text, 0, len, '/');

	if (len && text[0] == '[') {
		size_t close = find(text, 0, len, ']');

		if (close == len)
			return fail(error, 0, "'[' without ']'");
		parts->ip = 1;
		parts->ip_end = slash < close ? slash : close;
		if (slash < close) {
			at = slash;
			take_bits(text, close, &at, ']', parts);
		}
		at = close + 1;
		if (at < len && text[at] == '/') {
			if (parts->bits)
				return fail(error, at, "prefix length is given twice");
			take_bits(text, len, &at, ':', parts);
		}
	} else {
		size_t colon = find(text, 0, len, ':');

		parts->ip_end = slash;
		/* One colon without a slash is IPv4:port; more of them are an IPv6 address. */
		if (slash == len && find(text, colon + 1 < len ? colon + 1 : len, len, ':') == len)
			parts->ip_end = colon;
		at = parts->ip_end;
		if (at < len && text[at] == '/')
			take_bits(text, len, &at, ':', parts);
	}
	if (at < len) {
		if (text[at] != ':')
			return fail(error, at, "only a prefix length or a port may follow the address");
		parts->port = at + 1;
		parts->port_end = len;
	}
	return true;
}

static bool bits_parse(const char *text, size_t len, unsigned int max, unsigned int *bits)
{
	unsigned int value = 0;
	size_t i;

	if (len < 1 || len > 3)
		return false;
	for (i = 0; i < len; i++) {
		if (!mproto_is_digit((uint8_t)text[i]))
			return false;
		value = value * 10 + (uint8_t)(text[i] - '0');
	}
	*bits = value;
	return value <= max;
}

bool mproto_prefix_parse(const char *text, size_t len, struct mproto_prefix *prefix,
			 struct mproto_parse_error *error)
{
	struct parts parts = {0};
	struct mproto_endpoint address;
	struct mproto_prefix result = {0};
	unsigned int bits, max, i;

	if (!len)
		return fail(error, 0, "address is missing");
	if (!split(text, len, &parts, error))
		return false;
	if (!mproto_ip_parse(text + parts.ip, parts.ip_end - parts.ip, &address) ||
	    (parts.ip == 1 && address.kind != MPROTO_HOST_IPV6))
		return fail(error, parts.ip, parts.ip == 1 ? "not an IPv6 address between the brackets" :
							     "not an IPv4 or IPv6 address");
	max = address.kind == MPROTO_HOST_IPV4 ? 32 : 128;
	bits = max;
	if (parts.bits && !bits_parse(text + parts.bits, parts.bits_end - parts.bits, max, &bits))
		return fail(error, parts.bits, max == 32 ? "prefix length must be 0 to 32" :
							   "prefix length must be 0 to 128");
	if (address.kind == MPROTO_HOST_IPV4) {
		result.ip[10] = result.ip[11] = 0xFF;
		__builtin_memcpy(result.ip + 12, address.ip, 4);
		bits += 96;
	} else {
		__builtin_memcpy(result.ip, address.ip, 16);
	}
	for (i = bits; i < 128; i++)
		if (result.ip[i / 8] >> (7 - i % 8) & 1)
			return fail(error, parts.ip, "the address has bits set past the prefix length");
	result.bits = (uint8_t)bits;
	if (parts.port && !mproto_port_parse(text + parts.port, parts.port_end - parts.port, &result.port))
		return fail(error, parts.port, "port must be 1 to 65535");
	*prefix = result;
	return true;
}
