/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What the HTTP files share. Private to proto/. */
#ifndef MPROTO_HTTP_H
#define MPROTO_HTTP_H

#include "machine.h"

/* "Proxy-Authorization: Basic " values: 255 + 1 + 255 bytes of user:password (RFC 7617) as base64. */
#define MPROTO_BASIC_MAX (2 * MPROTO_CRED_MAX + 1)

/* What a final status other than 2xx means, when no header says it better. */
enum mproto_reason mproto_http_status_reason(unsigned int status);

/* What one header line says of the failure; OK when it says nothing. `cut`: its end was not kept. */
enum mproto_reason mproto_http_header_reason(const uint8_t *line, size_t len, bool cut);

/* The RFC 9209 error type for a reason. */
const char *mproto_http_reason_word(enum mproto_reason reason);

/* Case-insensitive match of "name:"; returns where the value starts (spaces skipped), or 0. */
size_t mproto_header_value(const uint8_t *line, size_t len, const char *lower_name);

#endif
