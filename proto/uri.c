/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Proxy URIs: scheme://[user[:password]@]host[:port][/] */
#include "machine.h"

static const struct scheme {
	const char *word;
	const char *title;
	uint16_t port;
} schemes[] = {
	[MPROTO_SOCKS5] = {"socks5", "SOCKS5", 1080},
	[MPROTO_SOCKS5H] = {"socks5h", "SOCKS5", 1080}, /* the same words on the wire */
	[MPROTO_SOCKS4] = {"socks4", "SOCKS4", 1080},
	[MPROTO_SOCKS4A] = {"socks4a", "SOCKS4a", 1080},
	[MPROTO_HTTP] = {"http", "HTTP", 8080},
};

#define SCHEMES (sizeof(schemes) / sizeof(schemes[0]))

static bool fail(struct mproto_parse_error *error, size_t column, const char *reason)
{
	error->column = column;
	error->reason = reason;
	return false;
}

/* Moves a column found in a part of the text to where that part stands. */
static bool fail_in(struct mproto_parse_error *error, size_t start)
{
	error->column += start;
	return false;
}

const char *mproto_protocol_text(enum mproto_protocol protocol)
{
	return (size_t)protocol < SCHEMES && schemes[protocol].title ? schemes[protocol].title : "unknown protocol";
}

bool mproto_port_parse(const char *text, size_t len, uint16_t *port)
{
	uint32_t value = 0;
	size_t i;

	if (len < 1 || len > 5)
		return false;
	for (i = 0; i < len; i++) {
		if (!mproto_is_digit((uint8_t)text[i]))
			return false;
		value = value * 10 + (uint8_t)(text[i] - '0');
	}
	if (value < 1 || value > 65535)
		return false;
	*port = (uint16_t)value;
	return true;
}

bool mproto_name_is_sane(const struct mproto_endpoint *endpoint)
{
	size_t i;

	for (i = 0; i < endpoint->name_len; i++) {
		uint8_t c = (uint8_t)endpoint->name[i];

		if (c <= ' ' || c == 0x7F)
			return false;
	}
	return endpoint->name_len > 0;
}

/*
 * The characters of host names as they are used, '_' included. Anything else is a slip better reported here
 * than by a resolver. A name that ends in a number is an address that was miswritten (1.2.3, 256.0.0.1):
 * resolvers disagree on those, so they are refused.
 */
static bool name_parse(const char *text, size_t len, struct mproto_endpoint *endpoint,
		       struct mproto_parse_error *error)
{
	size_t i, label = 0;
	bool numeric = true;

	if (!len)
		return fail(error, 0, "host is missing");
	if (len > MPROTO_NAME_MAX)
		return fail(error, MPROTO_NAME_MAX, "host name is longer than 255 bytes");
	for (i = 0; i < len; i++) {
		uint8_t c = (uint8_t)text[i];

		if (c == '.') {
			if (i == label)
				return fail(error, i, "host name has an empty label");
			if (i + 1 < len) {
				label = i + 1;
				numeric = true;
			}
			continue;
		}
		if (!mproto_is_letter(c) && !mproto_is_digit(c) && c != '-' && c != '_')
			return fail(error, i, "host is neither an address nor a name (letters, digits, '-', '_', '.')");
		if (i - label >= 63)
			return fail(error, i, "host name has a label longer than 63 bytes");
		numeric = numeric && mproto_is_digit(c);
	}
	if (numeric)
		return fail(error, 0, "host is not an IPv4 address");
	endpoint->kind = MPROTO_HOST_NAME;
	endpoint->name_len = (uint8_t)len;
	__builtin_memset(endpoint->name, 0, sizeof(endpoint->name));
	__builtin_memcpy(endpoint->name, text, len);
	return true;
}

bool mproto_authority_parse(const char *text, size_t len, uint16_t default_port, struct mproto_endpoint *endpoint,
			    struct mproto_parse_error *error)
{
	size_t end = 0;

	if (len && text[0] == '[') {
		while (end < len && text[end] != ']')
			end++;
		if (end == len)
			return fail(error, 0, "'[' without ']'");
		if (!mproto_ip_parse(text + 1, end - 1, endpoint) || endpoint->kind != MPROTO_HOST_IPV6)
			return fail(error, 1, "not an IPv6 address between the brackets");
		end++;
		if (end < len && text[end] != ':')
			return fail(error, end, "only a port may follow ']'");
	} else {
		size_t i;

		while (end < len && text[end] != ':')
			end++;
		for (i = end + 1; i < len; i++)
			if (text[i] == ':')
				return fail(error, 0, "an IPv6 address needs brackets: [::1]:1080");
		if (!mproto_ip_parse(text, end, endpoint) && !name_parse(text, end, endpoint, error))
			return false;
	}
	endpoint->port = default_port;
	if (end == len)
		return default_port ? true : fail(error, end, "port is missing");
	if (!mproto_port_parse(text + end + 1, len - end - 1, &endpoint->port))
		return fail(error, end + 1, "port must be 1 to 65535");
	return true;
}

/* Decodes into `out`; only checks when `out` is NULL. */
static bool percent_decode(const char *text, size_t len, char *out, uint8_t *out_len,
			   struct mproto_parse_error *error)
{
	size_t i, n = 0;

	for (i = 0; i < len; i++, n++) {
		size_t escape = i;
		int c = (uint8_t)text[i];

		if (c == '%') {
			int high = len - i > 2 ? mproto_hex_value((uint8_t)text[i + 1]) : -1;
			int low = len - i > 2 ? mproto_hex_value((uint8_t)text[i + 2]) : -1;

			if (high < 0 || low < 0)
				return fail(error, escape, "'%' must be followed by two hexadecimal digits");
			c = high << 4 | low;
			i += 2;
		}
		if (!c)
			return fail(error, escape, "a user or password cannot hold a NUL byte");
		if (n == MPROTO_CRED_MAX)
			return fail(error, escape, "user or password is longer than 255 bytes");
		if (out)
			out[n] = (char)c;
	}
	if (out)
		*out_len = (uint8_t)n;
	return true;
}

/* Fills *credentials, zeroed before; only checks when it is NULL. */
static bool userinfo_parse(const char *text, size_t len, struct mproto_credentials *credentials,
			   struct mproto_parse_error *error)
{
	size_t colon = 0;

	if (!len) /* "http://@host": nothing was given */
		return true;
	while (colon < len && text[colon] != ':')
		colon++;
	if (!percent_decode(text, colon, credentials ? credentials->user : 0,
			    credentials ? &credentials->user_len : 0, error))
		return false;
	if (colon < len && !percent_decode(text + colon + 1, len - colon - 1,
					   credentials ? credentials->password : 0,
					   credentials ? &credentials->password_len : 0, error))
		return fail_in(error, colon + 1);
	if (credentials)
		credentials->present = true;
	return true;
}

/* Finds "://" and names the protocol before it. *start becomes where the authority starts. */
static bool scheme_parse(const char *text, size_t len, uint8_t *protocol, size_t *start,
			 struct mproto_parse_error *error)
{
	size_t end = 0, i;

	while (end < len && text[end] != ':' && text[end] != '/')
		end++;
	if (len - end < 3 || text[end] != ':' || text[end + 1] != '/' || text[end + 2] != '/') {
		*protocol = MPROTO_HTTP;
		*start = 0;
		return true;
	}
	for (i = MPROTO_SOCKS5; i < SCHEMES; i++) {
		if (mproto_is_word(text, end, schemes[i].word)) {
			*protocol = (uint8_t)i;
			*start = end + 3;
			return true;
		}
	}
	if (mproto_is_word(text, end, "https"))
		return fail(error, 0, "https proxies (TLS to the proxy) are not supported; use http");
	if (mproto_is_word(text, end, "socks"))
		return fail(error, 0, "\"socks\" does not say which; write socks5, socks5h, socks4 or socks4a");
	return fail(error, 0, "unknown scheme; use socks5, socks5h, socks4, socks4a or http");
}

bool mproto_server_parse(const char *text, size_t len, struct mproto_server *server,
			 struct mproto_parse_error *error)
{
	struct mproto_endpoint at = {0};
	uint8_t protocol;
	size_t i, start, end, host, userinfo_len;

	for (i = 0; i < len; i++)
		if ((uint8_t)text[i] <= ' ' || text[i] == 0x7F)
			return fail(error, i, "a proxy address holds no space or control character");
	if (!scheme_parse(text, len, &protocol, &start, error))
		return false;
	for (end = start; end < len; end++)
		if (text[end] == '/' || text[end] == '?' || text[end] == '#')
			break;
	if (end < len && !(text[end] == '/' && end + 1 == len))
		return fail(error, end, "a proxy address ends after the port: no path, query or fragment "
					"(in a password write %2F, %3F, %23)");

	/* The last '@' divides, as for curl, so that an '@' left bare in a password does no harm. */
	for (host = end; host > start && text[host - 1] != '@';)
		host--;
	userinfo_len = host > start ? host - 1 - start : 0;
	if (!mproto_authority_parse(text + host, end - host, schemes[protocol].port, &at, error))
		return fail_in(error, host);
	/* Checked before anything is stored: a copy of the credentials would be too much for a kernel's stack. */
	if (!userinfo_parse(text + start, userinfo_len, 0, error))
		return fail_in(error, start);

	__builtin_memset(server, 0, sizeof(*server));
	server->protocol = protocol;
	server->at = at;
	return userinfo_parse(text + start, userinfo_len, &server->credentials, error);
}

size_t mproto_server_format(const struct mproto_server *server, char out[MPROTO_TEXT_MAX])
{
	const char *word = server->protocol < SCHEMES ? schemes[server->protocol].word : 0;
	size_t len = 0;

	for (word = word ? word : "?"; *word; word++)
		out[len++] = *word;
	out[len++] = ':';
	out[len++] = '/';
	out[len++] = '/';
	/* The longest scheme and "://" are 10 bytes; an endpoint ends at most 262 further. */
	return len + mproto_endpoint_format(&server->at, out + len);
}

void mproto_wipe(void *bytes, size_t len)
{
	__builtin_memset(bytes, 0, len);
	__asm__ volatile("" : : "r"(bytes) : "memory");
}

void mproto_credentials_wipe(struct mproto_credentials *credentials)
{
	mproto_wipe(credentials, sizeof(*credentials));
}
