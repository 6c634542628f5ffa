/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Why a dial failed: as errno, as words. */
#include "machine.h"

/* Linux values; <errno.h> is not freestanding. The same on every architecture that Linux gives no own table. */
#ifdef __KERNEL__
#include <linux/errno.h>
#else
enum {
	ENETUNREACH = 101,
	ETIMEDOUT = 110,
	ECONNREFUSED = 111,
	EHOSTUNREACH = 113,
};
#endif

static const struct {
	int error;
	const char *text;
} reasons[] = {
	[MPROTO_OK] = {0, "connected"},
	[MPROTO_CONNECTION_REFUSED] = {ECONNREFUSED, "connection refused"},
	[MPROTO_HOST_UNREACHABLE] = {EHOSTUNREACH, "host unreachable"},
	[MPROTO_NETWORK_UNREACHABLE] = {ENETUNREACH, "network unreachable"},
	[MPROTO_TIMED_OUT] = {ETIMEDOUT, "timed out"},
	[MPROTO_NOT_ALLOWED] = {EHOSTUNREACH, "not allowed by the proxy's rules"},
	[MPROTO_NAME_UNKNOWN] = {EHOSTUNREACH, "the proxy cannot resolve the name"},
	[MPROTO_GENERAL_FAILURE] = {EHOSTUNREACH, "the proxy failed without saying why"},
	[MPROTO_AUTH_REQUIRED] = {ENETUNREACH, "the proxy wants a user and password"},
	[MPROTO_AUTH_REJECTED] = {ENETUNREACH, "the proxy rejects the user or password"},
	[MPROTO_UNSUPPORTED] = {ENETUNREACH, "the proxy cannot carry this request"},
	[MPROTO_MALFORMED] = {ENETUNREACH, "the server does not speak the proxy protocol"},
};

#define REASONS (sizeof(reasons) / sizeof(reasons[0]))

bool mproto_reason_is_servers(enum mproto_reason reason)
{
	return reason >= MPROTO_AUTH_REQUIRED;
}

int mproto_reason_errno(enum mproto_reason reason)
{
	return (size_t)reason < REASONS ? reasons[reason].error : ENETUNREACH;
}

const char *mproto_reason_text(enum mproto_reason reason)
{
	return (size_t)reason < REASONS ? reasons[reason].text : "unknown reason";
}

static size_t append(char *out, size_t len, const char *text)
{
	while (*text)
		out[len++] = *text++;
	return len;
}

size_t mproto_refusal_format(const struct mproto_refusal *refusal, char out[MPROTO_REFUSAL_TEXT_MAX])
{
	/* At most 16 of protocol, 13 of code, 2 and the longest phrase above, 44. */
	size_t len = append(out, 0, mproto_protocol_text((enum mproto_protocol)refusal->protocol));

	if (refusal->code) {
		len = append(out, len, refusal->protocol == MPROTO_HTTP ? " status " : " reply ");
		len += mproto_decimal(refusal->code, out + len);
	}
	len = append(out, len, ": ");
	len = append(out, len, mproto_reason_text((enum mproto_reason)refusal->reason));
	out[len] = 0;
	return len;
}
