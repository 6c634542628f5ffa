/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What HTTP proxies say of a failure: status codes, Proxy-Status (RFC 9209), squid's X-Squid-Error. */
#include "http.h"

enum mproto_reason mproto_http_status_reason(unsigned int status)
{
	switch (status) {
	case 401:
	case 407:
		return MPROTO_AUTH_REQUIRED;
	case 400:
	case 405:
	case 501:
	case 505:
		return MPROTO_UNSUPPORTED;
	case 404:
		return MPROTO_NAME_UNKNOWN;
	case 408:
		return MPROTO_TIMED_OUT;
	case 500:
	case 502:
	case 503:
		return MPROTO_CONNECTION_REFUSED;
	case 504: /* at once: a kernel cannot be told ETIMEDOUT ahead of time */
		return MPROTO_HOST_UNREACHABLE;
	default:
		if (status >= 500)
			return MPROTO_GENERAL_FAILURE;
		return status >= 400 ? MPROTO_NOT_ALLOWED : MPROTO_MALFORMED;
	}
}

static const struct {
	const char *word;
	enum mproto_reason reason;
} errors[] = {
	{"connection_refused", MPROTO_CONNECTION_REFUSED},
	{"connection_terminated", MPROTO_CONNECTION_REFUSED},
	{"connection_timeout", MPROTO_TIMED_OUT},
	{"destination_ip_unroutable", MPROTO_NETWORK_UNREACHABLE},
	{"destination_unavailable", MPROTO_HOST_UNREACHABLE},
	{"destination_not_found", MPROTO_HOST_UNREACHABLE},
	{"destination_ip_prohibited", MPROTO_NOT_ALLOWED},
	{"http_request_denied", MPROTO_NOT_ALLOWED},
	{"dns_error", MPROTO_NAME_UNKNOWN},
	{"dns_timeout", MPROTO_NAME_UNKNOWN},
	{"connection_limit_reached", MPROTO_GENERAL_FAILURE},
	{"proxy_internal_error", MPROTO_GENERAL_FAILURE},
	{"proxy_configuration_error", MPROTO_GENERAL_FAILURE},
};

#define ERRORS (sizeof(errors) / sizeof(errors[0]))

const char *mproto_http_reason_word(enum mproto_reason reason)
{
	size_t i;

	for (i = 0; i < ERRORS; i++)
		if (errors[i].reason == reason)
			return errors[i].word;
	return "proxy_internal_error";
}

static bool is_token_byte(uint8_t c)
{
	return mproto_is_letter(c) || mproto_is_digit(c) || c == '_' || c == '-';
}

/* "error=token" as a parameter: after a ';', outside of quoted strings. */
static enum mproto_reason proxy_status_reason(const uint8_t *value, size_t len, bool cut)
{
	static const char key[] = "error=";
	const size_t key_len = sizeof(key) - 1;
	bool quoted = false;
	size_t i, j, end;

	for (i = 0; i < len; i++) {
		if (value[i] == '"')
			quoted = !quoted;
		else if (quoted && value[i] == '\\')
			i++;
		if (quoted || value[i] != ';')
			continue;
		for (j = i + 1; j < len && (value[j] == ' ' || value[j] == '\t');)
			j++;
		if (len - j < key_len || __builtin_memcmp(value + j, key, key_len))
			continue;
		j += key_len;
		for (end = j; end < len && is_token_byte(value[end]);)
			end++;
		if (end == len && cut) /* the token's end was not kept */
			return MPROTO_OK;
		for (i = 0; i < ERRORS; i++)
			if (mproto_is_word(value + j, end - j, errors[i].word))
				return errors[i].reason;
		return MPROTO_OK;
	}
	return MPROTO_OK;
}

/* "ERR_CONNECT_FAIL 111": squid's page name and its errno, a Linux one wherever squid runs on Linux. */
static enum mproto_reason squid_reason(const uint8_t *value, size_t len, bool cut)
{
	static const struct {
		const char *page;
		enum mproto_reason reason;
	} pages[] = {
		{"err_dns_fail", MPROTO_NAME_UNKNOWN},
		{"err_access_denied", MPROTO_NOT_ALLOWED},
		{"err_forwarding_denied", MPROTO_NOT_ALLOWED},
	};
	unsigned int error = 0;
	size_t page = 0, i;

	if (cut)
		return MPROTO_OK;
	while (page < len && value[page] != ' ')
		page++;
	for (i = page + 1; i < len && mproto_is_digit(value[i]) && error < 1000; i++)
		error = error * 10 + (value[i] - (unsigned int)'0');
	switch (error) {
	case 101:
		return MPROTO_NETWORK_UNREACHABLE;
	case 110:
		return MPROTO_TIMED_OUT;
	case 111:
		return MPROTO_CONNECTION_REFUSED;
	case 113:
		return MPROTO_HOST_UNREACHABLE;
	}
	for (i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
		if (mproto_is_word(value, page, pages[i].page))
			return pages[i].reason;
	return MPROTO_OK;
}

size_t mproto_header_value(const uint8_t *line, size_t len, const char *lower_name)
{
	size_t i = 0;

	while (i < len && line[i] != ':')
		i++;
	if (i == len || !mproto_is_word(line, i, lower_name))
		return 0;
	for (i++; i < len && (line[i] == ' ' || line[i] == '\t');)
		i++;
	return i;
}

enum mproto_reason mproto_http_header_reason(const uint8_t *line, size_t len, bool cut)
{
	size_t value = mproto_header_value(line, len, "proxy-status");

	if (value)
		return proxy_status_reason(line + value, len - value, cut);
	value = mproto_header_value(line, len, "x-squid-error");
	return value ? squid_reason(line + value, len - value, cut) : MPROTO_OK;
}
