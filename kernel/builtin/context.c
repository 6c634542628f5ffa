// SPDX-License-Identifier: GPL-2.0-only
/* Contexts: made, enabled, changed, closed, freed. */
#include <linux/cred.h>
#include <linux/nsproxy.h>
#include <linux/poll.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/user_namespace.h>
#include "context.h"
#include "limits.h"

DEFINE_STATIC_KEY_DEFERRED_FALSE(mutex_proxy_alive, HZ);
EXPORT_SYMBOL_GPL(mutex_proxy_alive);

/* ---- readers ---- */

bool mutex_proxy_context_readable(const struct mutex_proxy_context *context)
{
	lockdep_assert_held(&context->lock);
	return context->changes != context->seen && time_after_eq(jiffies, context->next_read);
}

static void wake(struct work_struct *work)
{
	struct mutex_proxy_context *context = container_of(work, struct mutex_proxy_context, wake.work);

	wake_up_poll(&context->wait, EPOLLIN | EPOLLRDNORM);
}

/* Now, or when readers may hear of it. @lock is held. */
static void wake_readers(struct mutex_proxy_context *context)
{
	lockdep_assert_held(&context->lock);
	if (context->closed)
		return;
	if (time_after_eq(jiffies, context->next_read))
		wake_up_poll(&context->wait, EPOLLIN | EPOLLRDNORM);
	else
		mod_delayed_work(system_wq, &context->wake, context->next_read - jiffies);
}

void mutex_proxy_context_changed(struct mutex_proxy_context *context)
{
	spin_lock_bh(&context->lock);
	context->generation++;
	context->changes++;
	wake_readers(context);
	spin_unlock_bh(&context->lock);
}
EXPORT_SYMBOL_GPL(mutex_proxy_context_changed);

void mutex_proxy_context_error(struct mutex_proxy_context *context, const char *format, ...)
{
	va_list arguments;

	spin_lock_bh(&context->lock);
	va_start(arguments, format);
	vscnprintf(context->error, sizeof(context->error), format, arguments);
	va_end(arguments);
	context->changes++;
	wake_readers(context);
	spin_unlock_bh(&context->lock);
}
EXPORT_SYMBOL_GPL(mutex_proxy_context_error);

void mutex_proxy_context_seen(struct mutex_proxy_context *context, u64 changes)
{
	spin_lock_bh(&context->lock);
	context->seen = changes;
	context->next_read = jiffies + MUTEX_PROXY_READ_INTERVAL;
	if (context->changes != changes)
		wake_readers(context);
	spin_unlock_bh(&context->lock);
}

/* ---- on and off ---- */

int mutex_proxy_context_enable(struct mutex_proxy_context *context)
{
	int error = 0;

	if (!mutex_proxy_ops_present())
		return -EOPNOTSUPP;
	mutex_lock(&context->control);
	if (context->flags & MUTEX_PROXY_GLOBAL)
		mutex_proxy_global_add(context);
	else
		error = mutex_proxy_member_join(context, current);
	if (!error && !context->enabled) {
		WRITE_ONCE(context->enabled, true);
		mutex_proxy_context_changed(context);
	}
	mutex_unlock(&context->control);
	return error;
}

static void disable(struct mutex_proxy_context *context)
{
	lockdep_assert_held(&context->control);
	mutex_proxy_global_remove(context);
	if (context->enabled) {
		WRITE_ONCE(context->enabled, false);
		mutex_proxy_context_changed(context);
	}
}

void mutex_proxy_context_disable(struct mutex_proxy_context *context)
{
	mutex_lock(&context->control);
	disable(context);
	mutex_unlock(&context->control);
}

/* ---- life ---- */

/* Charged until it is freed, not until it is closed: what members keep alive costs memory as well. */
static int charge(struct user_struct *user)
{
	if (atomic_inc_return(&mutex_proxy_now.contexts) > READ_ONCE(mutex_proxy_limits.contexts)) {
		atomic_dec(&mutex_proxy_now.contexts);
		return -ENFILE;
	}
	if (atomic_inc_return(&user->mutex_proxies) > READ_ONCE(mutex_proxy_limits.contexts_per_user)) {
		atomic_dec(&user->mutex_proxies);
		atomic_dec(&mutex_proxy_now.contexts);
		return -EMFILE;
	}
	return 0;
}

static void uncharge(struct user_struct *user)
{
	atomic_dec(&user->mutex_proxies);
	atomic_dec(&mutex_proxy_now.contexts);
}

struct mutex_proxy_context *mutex_proxy_context_create(unsigned int flags)
{
	struct mutex_proxy_context *context;
	struct mproto_config_reader reader;
	struct mutex_proxy_config *config;
	int error;

	error = charge(current_user());
	if (error)
		return ERR_PTR(error);
	context = kzalloc(sizeof(*context), GFP_KERNEL_ACCOUNT);
	if (!context) {
		error = -ENOMEM;
		goto err_uncharge;
	}
	config = mutex_proxy_config_parse("", 0, &reader, &error);
	if (!config)
		goto err_free;

	refcount_set(&context->refs, 1);
	context->user = get_current_user();
	context->net = get_net(current->nsproxy->net_ns);
	context->user_ns = get_user_ns(context->net->user_ns);
	context->owner_pid = get_pid(task_tgid(current));
	current_uid_gid(&context->owner_uid, &context->owner_gid);
	get_task_comm(context->comm, current);
	context->flags = flags;
	context->changes = 1;
	context->generation = 1;
	context->next_read = jiffies;
	RCU_INIT_POINTER(context->config, config);
	mutex_init(&context->control);
	spin_lock_init(&context->lock);
	mutex_init(&context->reading);
	init_waitqueue_head(&context->wait);
	INIT_DELAYED_WORK(&context->wake, wake);
	INIT_LIST_HEAD(&context->globals);
	xa_init(&context->flows);
	static_branch_deferred_inc(&mutex_proxy_alive);
	return context;

err_free:
	kfree(context);
err_uncharge:
	uncharge(current_user());
	return ERR_PTR(error);
}

/*
 * The last descriptor is gone: nobody can read or change it any more. What members and flows still hold of it only
 * tells what becomes of their connects.
 */
void mutex_proxy_context_close(struct mutex_proxy_context *context)
{
	struct mutex_proxy_config *config;

	mutex_lock(&context->control);
	config = rcu_dereference_protected(context->config, lockdep_is_held(&context->control));
	context->refuse = context->enabled && config->settings.on_close == MPROTO_ON_CLOSE_REFUSE;
	/* A GLOBAL context that refuses stays in its namespace's list. */
	if (!context->refuse)
		disable(context);
	spin_lock_bh(&context->lock);
	/* Pairs with mutex_proxy_context_closed(). */
	smp_store_release(&context->closed, true);
	RCU_INIT_POINTER(context->config, NULL);
	spin_unlock_bh(&context->lock);
	mutex_unlock(&context->control);

	cancel_delayed_work_sync(&context->wake);
	mutex_proxy_config_put(config);
	put_net(context->net);
	mutex_proxy_context_put(context);
}

void mutex_proxy_context_put(struct mutex_proxy_context *context)
{
	if (!refcount_dec_and_test(&context->refs))
		return;
	uncharge(context->user);
	free_uid(context->user);
	put_user_ns(context->user_ns);
	put_pid(context->owner_pid);
	static_branch_slow_dec_deferred(&mutex_proxy_alive);
	kfree_rcu(context, rcu);
}
EXPORT_SYMBOL_GPL(mutex_proxy_context_put);
