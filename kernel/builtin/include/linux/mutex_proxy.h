/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the rest of the kernel calls of the proxy descriptor (net/mutex_proxy/).
 * Every call costs one static branch while no context lives, and nothing without CONFIG_MUTEX_PROXY.
 */
#ifndef _LINUX_MUTEX_PROXY_H
#define _LINUX_MUTEX_PROXY_H

struct signal_struct;

#ifdef CONFIG_MUTEX_PROXY

#include <linux/jump_label_ratelimit.h>

/* On while a context lives. It goes off with a delay, so that create and close in a loop do not patch code. */
extern struct static_key_false_deferred mutex_proxy_alive;

static inline bool mutex_proxy_any(void)
{
	return static_branch_unlikely(&mutex_proxy_alive.key);
}

void __mutex_proxy_fork(struct signal_struct *child);
void __mutex_proxy_exit(struct signal_struct *signal);

/* A thread group is born, as a child of current's: not yet visible to anybody. */
static inline void mutex_proxy_fork(struct signal_struct *child)
{
	if (mutex_proxy_any())
		__mutex_proxy_fork(child);
}

/* The last thread of a group has ended, or a fork has failed. May be called twice. */
static inline void mutex_proxy_exit(struct signal_struct *signal)
{
	if (mutex_proxy_any())
		__mutex_proxy_exit(signal);
}

#else

static inline void mutex_proxy_fork(struct signal_struct *child) { }
static inline void mutex_proxy_exit(struct signal_struct *signal) { }

#endif
#endif
