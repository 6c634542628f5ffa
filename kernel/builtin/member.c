// SPDX-License-Identifier: GPL-2.0-only
/*
 * Members: which context proxies a thread group.
 *
 * signal_struct::mutex_proxy holds a reference. It is replaced by xchg() only, so whoever gets a context out of it
 * owns that reference and has one member less to account for.
 */
#include <linux/sched/signal.h>
#include <linux/user_namespace.h>
#include "context.h"

static struct mutex_proxy_context *replace(struct signal_struct *signal, struct mutex_proxy_context *context)
{
	return unrcu_pointer(xchg(&signal->mutex_proxy, RCU_INITIALIZER(context)));
}

/* Only if it is `old` that is replaced. */
static bool replace_that(struct signal_struct *signal, struct mutex_proxy_context *old,
			 struct mutex_proxy_context *context)
{
	return unrcu_pointer(cmpxchg(&signal->mutex_proxy, RCU_INITIALIZER(old), RCU_INITIALIZER(context))) == old;
}

/* Referenced; NULL when there is none. */
static struct mutex_proxy_context *context_of(struct signal_struct *signal)
{
	struct mutex_proxy_context *context;

	rcu_read_lock();
	do /* a context that is just being freed has just been replaced as well */
		context = rcu_dereference(signal->mutex_proxy);
	while (context && !refcount_inc_not_zero(&context->refs));
	rcu_read_unlock();
	return context;
}

/* It has freed its members, and is nobody's context any more. */
static bool is_void(const struct mutex_proxy_context *context)
{
	return mutex_proxy_context_closed(context) && !context->refuse;
}

static void count(struct mutex_proxy_context *context, int by)
{
	atomic64_add(by, &context->members);
	atomic_add(by, &mutex_proxy_now.members);
}

/* `context` was taken out of some signal_struct. */
static void forget(struct mutex_proxy_context *context)
{
	if (!context)
		return;
	count(context, -1);
	mutex_proxy_context_changed(context);
	mutex_proxy_context_put(context);
}

/*
 * The last context wins, but the root of a user namespace must not get rid of one that was imposed from outside of it.
 */
static bool may_replace(const struct mutex_proxy_context *old, const struct mutex_proxy_context *context)
{
	return !old || is_void(old) || in_userns(context->user_ns, old->user_ns) ||
	       ns_capable(old->user_ns, CAP_NET_ADMIN);
}

int mutex_proxy_member_join(struct mutex_proxy_context *context, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct mutex_proxy_context *old;
	bool allowed, replaced;

	/*
	 * Otherwise the root of a user namespace could hand a descriptor out of it, to somebody who would then run
	 * a set-user-ID program of the outer namespace behind a proxy of that root's choice.
	 */
	rcu_read_lock();
	allowed = in_userns(context->user_ns, __task_cred(task)->user_ns);
	rcu_read_unlock();
	if (!allowed)
		return -EPERM;
	if (!atomic_read(&signal->live))
		return -ESRCH;

	do {
		old = context_of(signal);
		if (old == context) { /* is a member: nothing changes */
			mutex_proxy_context_put(old);
			return 0;
		}
		if (!may_replace(old, context)) {
			mutex_proxy_context_put(old);
			return -EPERM;
		}
		count(context, 1);
		replaced = replace_that(signal, old, mutex_proxy_context_get(context));
		if (!replaced) {
			count(context, -1);
			mutex_proxy_context_put(context);
		}
		if (old)
			mutex_proxy_context_put(old); /* ours, not the signal_struct's */
	} while (!replaced);
	mutex_proxy_context_changed(context);
	forget(old);
	/* The last thread may have gone meanwhile. Then do_exit() has seen the pointer, or we see it: both are ordered. */
	if (!atomic_read(&signal->live)) {
		forget(replace(signal, NULL));
		return -ESRCH;
	}
	return 0;
}

int mutex_proxy_member_leave(struct mutex_proxy_context *context, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;

	if (!atomic_read(&signal->live))
		return -ESRCH;
	if (!replace_that(signal, context, NULL))
		return -ENOENT;
	forget(context);
	return 0;
}

void __mutex_proxy_fork(struct signal_struct *child)
{
	struct mutex_proxy_context *context = context_of(current->signal);

	if (!context)
		return;
	count(context, 1);
	/* The child does not run yet, but somebody may have found it and made it a member already. */
	if (!is_void(context) && replace_that(child, NULL, context)) {
		mutex_proxy_context_changed(context);
	} else {
		count(context, -1);
		mutex_proxy_context_put(context);
	}
}

void __mutex_proxy_exit(struct signal_struct *signal)
{
	if (rcu_access_pointer(signal->mutex_proxy))
		forget(replace(signal, NULL));
}

static enum mutex_proxy_verdict verdict_of(const struct mutex_proxy_context *context)
{
	if (mutex_proxy_context_closed(context))
		return context->refuse ? MUTEX_PROXY_REFUSE : MUTEX_PROXY_DIRECT;
	return READ_ONCE(context->enabled) ? MUTEX_PROXY_PROXY : MUTEX_PROXY_DIRECT;
}

struct mutex_proxy_context *mutex_proxy_context_of_current(struct net *net, enum mutex_proxy_verdict *verdict)
{
	struct mutex_proxy_context *context = NULL;

	/* What the kernel does for itself, in whosever name, is not proxied. */
	if (!(current->flags & PF_KTHREAD))
		context = context_of(current->signal);
	/*
	 * One that a user namespace has made for itself says nothing of sockets that are not its own: else it would be a
	 * way out of a GLOBAL context for whoever has been given such a socket.
	 */
	if (context && (is_void(context) || !in_userns(context->user_ns, net->user_ns))) {
		mutex_proxy_context_put(context);
		context = NULL;
	}
	if (!context && !(current->flags & PF_KTHREAD)) {
		rcu_read_lock();
		context = mutex_proxy_global_of(net);
		rcu_read_unlock();
	}
	*verdict = context ? verdict_of(context) : MUTEX_PROXY_DIRECT;
	if (*verdict == MUTEX_PROXY_DIRECT && context) {
		mutex_proxy_context_put(context);
		context = NULL;
	}
	return context;
}
EXPORT_SYMBOL_GPL(mutex_proxy_context_of_current);
