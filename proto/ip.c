/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* IP addresses as text: dotted IPv4, RFC 4291 IPv6 in, RFC 5952 out. */
#include "machine.h"

size_t mproto_decimal(unsigned int value, char *out)
{
	char digits[10];
	size_t n = 0, i;

	do {
		digits[n++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	for (i = 0; i < n; i++)
		out[i] = digits[n - 1 - i];
	return n;
}

/* Four decimal bytes. A leading zero is refused: some readers take it for octal, and then it is another host. */
static bool ipv4_parse(const char *text, size_t len, uint8_t ip[4])
{
	size_t i = 0;
	int part;

	for (part = 0; part < 4; part++) {
		unsigned int value = 0;
		size_t start = i;

		while (i < len && i - start < 3 && mproto_is_digit((uint8_t)text[i]))
			value = value * 10 + (uint8_t)(text[i++] - '0');
		if (i == start || value > 255 || (text[start] == '0' && i - start > 1))
			return false;
		ip[part] = (uint8_t)value;
		if (part < 3 && (i >= len || text[i++] != '.'))
			return false;
	}
	return i == len;
}

#define NO_GAP 255

static bool ipv6_parse(const char *text, size_t len, uint8_t ip[16])
{
	size_t i = 0, at = 0, gap = NO_GAP; /* gap: where "::" stands */
	bool group_due = false; /* after a single colon */

	__builtin_memset(ip, 0, 16);
	if (len >= 2 && text[0] == ':' && text[1] == ':') {
		gap = 0;
		i = 2;
	}
	while (i < len) {
		unsigned int value = 0;
		size_t start = i;
		int hex;

		while (i < len && i - start < 4 && (hex = mproto_hex_value((uint8_t)text[i])) >= 0) {
			value = value << 4 | (unsigned int)hex;
			i++;
		}
		if (i == start || at > 14)
			return false;
		if (i < len && text[i] == '.') {
			if (at > 12 || !ipv4_parse(text + start, len - start, ip + at))
				return false;
			at += 4;
			i = len;
			group_due = false;
			break;
		}
		ip[at++] = (uint8_t)(value >> 8);
		ip[at++] = (uint8_t)value;
		group_due = false;
		if (i == len)
			break;
		if (text[i++] != ':')
			return false;
		group_due = true;
		if (i < len && text[i] == ':') {
			if (gap != NO_GAP)
				return false;
			gap = at;
			group_due = false;
			i++;
		}
	}
	if (group_due)
		return false;
	if (gap == NO_GAP)
		return at == 16;
	if (at > 14) /* "::" stands for at least one group */
		return false;
	/* Groups after the gap move to the end. */
	for (i = 0; i < at - gap; i++) {
		ip[15 - i] = ip[at - 1 - i];
		ip[at - 1 - i] = 0;
	}
	return true;
}

bool mproto_ip_parse(const char *text, size_t len, struct mproto_endpoint *endpoint)
{
	uint8_t ip[16] = {0};
	uint8_t kind;

	if (ipv4_parse(text, len, ip)) {
		kind = MPROTO_HOST_IPV4;
		__builtin_memset(ip + 4, 0, 12);
	} else if (ipv6_parse(text, len, ip)) {
		kind = MPROTO_HOST_IPV6;
	} else {
		return false;
	}
	endpoint->kind = kind;
	endpoint->name_len = 0;
	__builtin_memset(endpoint->name, 0, sizeof(endpoint->name));
	__builtin_memcpy(endpoint->ip, ip, sizeof(ip));
	return true;
}

static size_t ipv4_format(const uint8_t ip[4], char *out)
{
	size_t len = 0;
	int i;

	for (i = 0; i < 4; i++) {
		if (i)
			out[len++] = '.';
		len += mproto_decimal(ip[i], out + len);
	}
	return len;
}

static size_t hex_format(unsigned int group, char *out)
{
	size_t len = 0;
	int shift;

	for (shift = 12; shift >= 0; shift -= 4)
		if (len || shift == 0 || group >> shift)
			out[len++] = "0123456789abcdef"[group >> shift & 15];
	return len;
}

static unsigned int group_at(const uint8_t ip[16], int group)
{
	return (unsigned int)ip[2 * group] << 8 | ip[2 * group + 1];
}

static size_t ipv6_format(const uint8_t ip[16], char *out)
{
	static const uint8_t mapped[12] = {[10] = 0xFF, [11] = 0xFF};
	int best = 8, best_len = 1, i; /* a single zero group is not shortened */
	size_t len = 0;

	if (!__builtin_memcmp(ip, mapped, sizeof(mapped))) {
		__builtin_memcpy(out, "::ffff:", 7);
		return 7 + ipv4_format(ip + 12, out + 7);
	}
	for (i = 0; i < 8; i++) {
		int run = 0;

		while (i + run < 8 && group_at(ip, i + run) == 0)
			run++;
		if (run > best_len) {
			best = i;
			best_len = run;
		}
		i += run;
	}
	for (i = 0; i < 8; i++) {
		if (i == best) {
			out[len++] = ':';
			out[len++] = ':';
			i += best_len - 1;
			continue;
		}
		if (i && i != best + best_len)
			out[len++] = ':';
		len += hex_format(group_at(ip, i), out + len);
	}
	return len;
}

size_t mproto_ip_format(const struct mproto_endpoint *endpoint, char *out)
{
	return endpoint->kind == MPROTO_HOST_IPV6 ? ipv6_format(endpoint->ip, out) : ipv4_format(endpoint->ip, out);
}

size_t mproto_endpoint_format(const struct mproto_endpoint *endpoint, char out[MPROTO_TEXT_MAX])
{
	size_t len = 0;

	switch (endpoint->kind) {
	case MPROTO_HOST_IPV4:
		len = mproto_ip_format(endpoint, out);
		break;
	case MPROTO_HOST_IPV6:
		out[len++] = '[';
		len += mproto_ip_format(endpoint, out + len);
		out[len++] = ']';
		break;
	case MPROTO_HOST_NAME:
		len = endpoint->name_len;
		__builtin_memcpy(out, endpoint->name, len);
		break;
	default: /* nothing known of it: a lone "?" */
		out[0] = '?';
		out[1] = 0;
		return 1;
	}
	out[len++] = ':';
	len += mproto_decimal(endpoint->port, out + len);
	out[len] = 0;
	return len;
}
