// SPDX-License-Identifier: GPL-2.0-only
/* The descriptor's ioctls. Their structures begin with their size and grow at the end. */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pid.h>
#include <linux/ptrace.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <net/inet_sock.h>
#include <net/ipv6.h>
#include "context.h"

#define STRUCT_MAX 4096 /* bytes that any structure may ever have */

/* Reads a structure of the caller's size into one of ours. Returns the caller's size. */
static long get_struct(void *to, size_t known, const void __user *from)
{
	u32 size;
	int error;

	if (get_user(size, (const u32 __user *)from))
		return -EFAULT;
	if (size < known)
		return -EINVAL; /* no structure has grown yet: there is no shorter version */
	if (size > STRUCT_MAX)
		return -E2BIG;
	error = copy_struct_from_user(to, known, from, size);
	if (error)
		return error;
	/* The caller may have changed it meanwhile. */
	*(u32 *)to = size;
	return size;
}

static long put_struct(void __user *to, const void *from, size_t known)
{
	return copy_to_user(to, from, known) ? -EFAULT : 0;
}

static long set_config(struct mutex_proxy_context *context, void __user *argument)
{
	struct mutex_proxy_config_text text;
	long result;
	char *copy;

	result = get_struct(&text, sizeof(text), argument);
	if (result < 0)
		return result;
	if (text.length > MUTEX_PROXY_CONFIG_MAX)
		return -E2BIG;
	copy = kvmalloc(text.length ?: 1, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	if (copy_from_user(copy, u64_to_user_ptr(text.text), text.length))
		result = -EFAULT;
	else
		result = mutex_proxy_config_set(context, copy, text.length);
	kvfree_sensitive(copy, text.length);
	return result;
}

static long get_config(struct mutex_proxy_context *context, void __user *argument)
{
	struct mutex_proxy_config_text text;
	struct mutex_proxy_config *config;
	size_t length;
	long result;
	char *copy;

	result = get_struct(&text, sizeof(text), argument);
	if (result < 0)
		return result;
	copy = kvmalloc(MUTEX_PROXY_CANONICAL_MAX, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	config = mutex_proxy_config_get(context);
	length = mutex_proxy_canonical(config, copy);
	mutex_proxy_config_put(config);
	if (length > text.length)
		result = -ENOSPC;
	else
		result = copy_to_user(u64_to_user_ptr(text.text), copy, length) ? -EFAULT : 0;
	kvfree(copy);
	text.length = length;
	if (result != -EFAULT && put_struct(argument, &text, sizeof(text)))
		result = -EFAULT;
	return result;
}

static long get_stats(struct mutex_proxy_context *context, void __user *argument)
{
	struct mutex_proxy_stats stats;
	long result;

	result = get_struct(&stats, sizeof(stats), argument);
	if (result < 0)
		return result;
	stats.enabled = READ_ONCE(context->enabled);
	spin_lock_bh(&context->lock);
	stats.generation = context->generation;
	spin_unlock_bh(&context->lock);
	stats.members = atomic64_read(&context->members);
	stats.active = atomic64_read(&context->active);
	stats.connecting = atomic64_read(&context->connecting);
	stats.connected = atomic64_read(&context->connected);
	stats.refused = atomic64_read(&context->refused);
	stats.failed = atomic64_read(&context->failed);
	stats.bypassed = atomic64_read(&context->bypassed);
	stats.blocked = atomic64_read(&context->blocked);
	mutex_proxy_context_bytes(context, &stats.bytes_sent, &stats.bytes_received);
	return put_struct(argument, &stats, sizeof(stats));
}

static long change_member(struct mutex_proxy_context *context, void __user *argument, bool attach)
{
	struct mutex_proxy_target target;
	struct task_struct *task;
	unsigned int flags;
	long result;

	result = get_struct(&target, sizeof(target), argument);
	if (result < 0)
		return result;
	task = pidfd_get_task(target.pidfd, &flags);
	if (IS_ERR(task))
		return PTR_ERR(task);
	/* Who may turn the context off may let a member go, so leaving asks for nothing more. */
	if (!attach)
		result = mutex_proxy_member_leave(context, task);
	else if (ptrace_may_access(task, PTRACE_MODE_ATTACH_REALCREDS))
		result = mutex_proxy_member_join(context, task);
	else
		result = -EPERM;
	put_task_struct(task);
	return result;
}

static void show_local(const struct sock *sk, struct mutex_proxy_connection *connection)
{
	connection->local_port = ntohs(inet_sk(sk)->inet_sport);
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6) {
		memcpy(connection->local, &sk->sk_v6_rcv_saddr, 16);
		return;
	}
#endif
	ipv6_addr_set_v4mapped(sk->sk_rcv_saddr, (struct in6_addr *)connection->local);
}

static void show_flow(struct mutex_proxy_flow *flow, struct mutex_proxy_connection *connection)
{
	memset(connection, 0, sizeof(*connection));
	mutex_proxy_flow_bytes(flow, &connection->bytes_sent, &connection->bytes_received);
	connection->id = flow->id;
	connection->age_ms = (ktime_get_boottime_ns() - flow->started) / NSEC_PER_MSEC;
	connection->pid = pid_vnr(flow->pid);
	connection->port = flow->port;
	memcpy(connection->destination, &flow->destination, 16);
	spin_lock_bh(&flow->lock);
	connection->state = flow->state;
	connection->server = flow->server;
	if (flow->sk)
		show_local(flow->sk, connection);
	spin_unlock_bh(&flow->lock);
}

static long get_connections(struct mutex_proxy_context *context, void __user *argument)
{
	struct mutex_proxy_connections list;
	struct mutex_proxy_connection connection;
	struct mutex_proxy_flow *flow;
	void __user *to;
	u64 after;
	long result;

	BUILD_BUG_ON(sizeof(connection) != 80);
	result = get_struct(&list, sizeof(list), argument);
	if (result < 0)
		return result;
	if (list.reserved || list.connection_size < sizeof(connection))
		return -EINVAL;
	if (list.connection_size > STRUCT_MAX)
		return -E2BIG;
	to = u64_to_user_ptr(list.connections);
	after = list.after;
	list.count = 0;
	list.more = 0;
	while ((flow = mutex_proxy_flow_after(context, after))) {
		after = flow->id;
		if (list.count == list.capacity) {
			list.more = 1;
			mutex_proxy_flow_put(flow);
			break;
		}
		show_flow(flow, &connection);
		mutex_proxy_flow_put(flow);
		if (copy_to_user(to, &connection, sizeof(connection)) ||
		    clear_user(to + sizeof(connection), list.connection_size - sizeof(connection)))
			return -EFAULT;
		to += list.connection_size;
		list.count++;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return put_struct(argument, &list, sizeof(list));
}

/*
 * Errors of all: ENOTTY unknown command; EFAULT; EINVAL size too small or reserved fields not zero; E2BIG an unknown
 * tail that is not zero. Those of one command stand with it in the UAPI header.
 */
long mutex_proxy_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct mutex_proxy_context *context = file->private_data;
	void __user *to = (void __user *)argument;

	if (_IOC_TYPE(command) != MUTEX_PROXY_IOC_MAGIC)
		return -ENOTTY;
	switch (_IOC_NR(command)) {
	case _IOC_NR(MUTEX_PROXY_IOC_ENABLE):
		return mutex_proxy_context_enable(context);
	case _IOC_NR(MUTEX_PROXY_IOC_DISABLE):
		mutex_proxy_context_disable(context);
		return 0;
	case _IOC_NR(MUTEX_PROXY_IOC_SET_CONFIG):
		return set_config(context, to);
	case _IOC_NR(MUTEX_PROXY_IOC_GET_CONFIG):
		return get_config(context, to);
	case _IOC_NR(MUTEX_PROXY_IOC_GET_STATS):
		return get_stats(context, to);
	case _IOC_NR(MUTEX_PROXY_IOC_ATTACH):
		return change_member(context, to, true);
	case _IOC_NR(MUTEX_PROXY_IOC_DETACH):
		return change_member(context, to, false);
	case _IOC_NR(MUTEX_PROXY_IOC_GET_CONNECTIONS):
		return get_connections(context, to);
	default:
		return -ENOTTY;
	}
}
