/* SPDX-License-Identifier: MIT */
/*
 * libmprox: proxy descriptors, whoever provides them. What a descriptor does stands in <linux/mutex_proxy.h>; here are
 * a function for each thing one can ask of it, and the search for a provider.
 *
 * Conventions
 *  1. A function that fails returns -1 and sets errno; the values named are those it gives beyond the descriptor's own
 *     EBADF (not open) and ENOTTY (not a proxy descriptor). Otherwise it returns 0, or what it says.
 *  2. Descriptors belong to the caller, who close()s them. Nothing here closes, keeps or duplicates one.
 *  3. Memory belongs to the caller. Nothing here allocates, and no pointer is kept after the return.
 *  4. Every function may be called from any thread at any time, on the same descriptor, too.
 *  5. Lengths and sizes are bytes. Text is UTF-8; a length never counts a terminating NUL.
 *  6. In a structure whose first field is `size`, the caller sets that field to sizeof of the structure and clears what
 *     it does not fill: a program and a library built at different times understand each other.
 *  7. No call is restarted: EINTR is the caller's to handle (only mprox_snapshot() waits).
 */
#ifndef MPROX_H
#define MPROX_H

#include <linux/mutex_proxy.h>
#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum mprox_provider {
	MPROX_PROVIDER_NONE = 0,
	MPROX_PROVIDER_KERNEL, /* the running kernel has the system call */
};

/*
 * Who would make a descriptor now. NONE: nobody, and errno says why: ENOSYS, or what opening the kernel's
 * announcement failed with (EMFILE, ENFILE, ENOMEM). The kernel announces itself in /sys/kernel/mutex_proxy/; what
 * it once announced is remembered, since it cannot change.
 */
enum mprox_provider mprox_find_provider(void);

/* "kernel", "none". Static. */
const char *mprox_provider_name(enum mprox_provider provider);

/* The number of the system call on this kernel, as the kernel shows it; -1 with errno as for mprox_find_provider(). */
long mprox_syscall_number(void);

/*
 * A new proxy descriptor. flags: MUTEX_PROXY_CLOEXEC, _NONBLOCK, _GLOBAL.
 * EPERM (no CAP_NET_ADMIN; before anything else is looked at), EINVAL (an unknown flag), EMFILE, ENFILE, ENOMEM;
 * ENOSYS when there is no provider: a number that the kernel does not show is never called.
 */
int mprox_create(unsigned int flags);

/*
 * Replaces the whole configuration, or nothing. text: one directive a line; may hold passwords, which the caller wipes.
 * EINVAL (a line is bad: the next snapshot's `error:` says which, where and why), E2BIG (over MUTEX_PROXY_CONFIG_MAX),
 * EFAULT, ENOMEM.
 */
int mprox_set_config(int fd, const char *text, size_t length);

/*
 * The configuration in force, without passwords; not NUL-terminated. Returns its length; `size` is the room in `text`.
 * ENOSPC when there is not room for all of it (nothing is stored); EFAULT, ENOMEM. MUTEX_PROXY_CONFIG_MAX may not
 * suffice, since the canonical form says what was left out: on ENOSPC *needed, unless it is NULL, says how much would.
 */
ssize_t mprox_get_config(int fd, char *text, size_t size, size_t *needed);

/*
 * The context is turned on, and unless it is a GLOBAL one the caller's process becomes its member.
 * EOPNOTSUPP (nothing is there that could proxy), EPERM.
 */
int mprox_enable(int fd);

/* The context is turned off: it governs nobody until it is enabled again. */
int mprox_disable(int fd);

/* The process of `pidfd` becomes a member; the context is not turned on. EBADF (also: no pidfd), ESRCH, EPERM. */
int mprox_attach(int fd, int pidfd);

/* The process of `pidfd` is a member no more. ENOENT (it was none of this context), EBADF, ESRCH. */
int mprox_detach(int fd, int pidfd);

/* Fills *stats; stats->size is the caller's. EINVAL (size is too small to be one), E2BIG, EFAULT. */
int mprox_get_stats(int fd, struct mutex_proxy_stats *stats);

/*
 * Flows in the order of their ids. in: list->size, ->connection_size, ->after, ->capacity, ->connections; the rest is
 * zero. out: ->count, ->more. To have them all, repeat with `after` the last id while `more` is set.
 * EINVAL (a size is too small, reserved is not zero), E2BIG, EFAULT.
 */
int mprox_get_connections(int fd, struct mutex_proxy_connections *list);

/*
 * Waits until there is news, or takes EAGAIN of a non-blocking descriptor, and reads one snapshot of it; not
 * NUL-terminated. Returns its length; `size` is the room in `text`. MUTEX_PROXY_SNAPSHOT_MAX always suffices.
 * EINVAL (too little room; the snapshot can still be read), EAGAIN, EINTR, EFAULT, ENOMEM.
 */
ssize_t mprox_snapshot(int fd, char *text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
