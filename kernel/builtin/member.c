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

int mutex_proxy_member_join(struct mutex_proxy_context *context, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct mutex_proxy_context *old;
	bool allowed;

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

	count(context, 1);
	old = replace(signal, mutex_proxy_context_get(context));
	if (old == context) { /* was a member before: nothing has changed */
		count(context, -1);
		mutex_proxy_context_put(old);
		old = NULL;
	} else {
		mutex_proxy_context_changed(context);
	}
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
	if (unrcu_pointer(cmpxchg(&signal->mutex_proxy, RCU_INITIALIZER(context), RCU_INITIALIZER(NULL))) != context)
		return -ENOENT;
	forget(context);
	return 0;
}

/* The context of current's thread group, referenced; NULL when there is none. */
static struct mutex_proxy_context *own_context(void)
{
	struct mutex_proxy_context *context;

	rcu_read_lock();
	do /* a context that is just being freed has just been replaced as well */
		context = rcu_dereference(current->signal->mutex_proxy);
	while (context && !refcount_inc_not_zero(&context->refs));
	rcu_read_unlock();
	return context;
}

void __mutex_proxy_fork(struct signal_struct *child)
{
	struct mutex_proxy_context *context = own_context();

	if (!context)
		return;
	if (mutex_proxy_context_closed(context) && !context->refuse) { /* it has freed its members */
		mutex_proxy_context_put(context);
		return;
	}
	RCU_INIT_POINTER(child->mutex_proxy, context);
	count(context, 1);
	mutex_proxy_context_changed(context);
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
	struct mutex_proxy_context *context = own_context();

	if (context && mutex_proxy_context_closed(context) && !context->refuse) {
		mutex_proxy_context_put(context);
		context = NULL;
	}
	if (!context) {
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
