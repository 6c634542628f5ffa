// SPDX-License-Identifier: GPL-2.0-only
/* mprox_create(): who may, and what it returns. */
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/nsproxy.h>
#include <linux/ratelimit.h>
#include <linux/syscalls.h>
#include "context.h"

/* One line for whoever watches: the audit log where there is one, the kernel's log otherwise. */
static void denied(void)
{
	char comm[TASK_COMM_LEN];

	atomic64_inc(&mutex_proxy_totals.denied);
	get_task_comm(comm, current);
	if (audit_enabled) {
		struct audit_buffer *buffer = audit_log_start(audit_context(), GFP_KERNEL, AUDIT_KERNEL_OTHER);

		if (!buffer)
			return;
		audit_log_format(buffer, "mutex_proxy op=create pid=%d uid=%u auid=%u ses=%u comm=",
				 task_tgid_nr(current), from_kuid(&init_user_ns, current_uid()),
				 from_kuid(&init_user_ns, audit_get_loginuid(current)), audit_get_sessionid(current));
		audit_log_untrustedstring(buffer, comm);
		audit_log_format(buffer, " cap=%d res=0", CAP_NET_ADMIN);
		audit_log_end(buffer);
	} else {
		pr_notice_ratelimited("Denied a fd to process %d (%*pE) of uid %u: no CAP_NET_ADMIN\n",
				      task_tgid_nr(current), (int)strlen(comm), comm,
				      from_kuid(&init_user_ns, current_uid()));
	}
}

/**
 * sys_mprox_create - make a proxy descriptor
 * @flags: MUTEX_PROXY_CLOEXEC, MUTEX_PROXY_NONBLOCK, MUTEX_PROXY_GLOBAL
 *
 * Return: the descriptor, or
 * - %-EPERM: no CAP_NET_ADMIN over the caller's network namespace; looked at before anything else
 * - %-EINVAL: unknown flags
 * - %-EMFILE: no descriptor left to the process, or no context left to the user
 * - %-ENFILE: no open file, or no context, left to the system
 * - %-ENOMEM: no memory
 */
SYSCALL_DEFINE1(mprox_create, unsigned int, flags)
{
	struct mutex_proxy_context *context;
	char comm[TASK_COMM_LEN];
	struct file *file;
	int fd;

	if (!ns_capable(current->nsproxy->net_ns->user_ns, CAP_NET_ADMIN)) {
		denied();
		return -EPERM;
	}
	if (flags & ~MUTEX_PROXY_FLAGS)
		return -EINVAL;

	fd = get_unused_fd_flags(flags & MUTEX_PROXY_CLOEXEC ? O_CLOEXEC : 0);
	if (fd < 0)
		return fd;
	context = mutex_proxy_context_create(flags);
	if (IS_ERR(context)) {
		put_unused_fd(fd);
		return PTR_ERR(context);
	}
	file = mutex_proxy_descriptor(context);
	if (IS_ERR(file)) {
		mutex_proxy_context_close(context);
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	atomic64_inc(&mutex_proxy_totals.contexts);
	get_task_comm(comm, current);
	pr_info_ratelimited("Created fd %d for process %d (%*pE) with flags 0x%x\n", fd, task_tgid_nr(current),
			    (int)strlen(comm), comm, flags);
	fd_install(fd, file);
	return fd;
}
