/* SPDX-License-Identifier: GPL-2.0-only */
/* What is limited, and is not the contract's (those limits are in the UAPI header). */
#ifndef _MUTEX_PROXY_LIMITS_H
#define _MUTEX_PROXY_LIMITS_H

/* initial values of what may be set in /sys/kernel/mutex_proxy/limits/ */
#define MUTEX_PROXY_CONTEXTS 65536
#define MUTEX_PROXY_CONTEXTS_PER_USER 16384
#define MUTEX_PROXY_FLOWS_PER_CONTEXT 65536

/* a reader hears of changes ten times a second at most */
#define MUTEX_PROXY_READ_INTERVAL (HZ / 10)

/* how long a server that failed is passed over while another is up */
#define MUTEX_PROXY_DOWN_MS 10000

#endif
