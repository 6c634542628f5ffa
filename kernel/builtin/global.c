// SPDX-License-Identifier: GPL-2.0-only
/*
 * GLOBAL contexts: for each network namespace a list of those that are enabled, the one enabled last first.
 *
 * A context that closes with on-close refuse stays in the list, and refuses, until another one is enabled in front of
 * it or the namespace ends.
 */
#include <linux/rculist.h>
#include <net/netns/generic.h>
#include "context.h"

struct globals {
	struct list_head contexts; /* read under RCU */
};

static unsigned int globals_id __read_mostly;
static DEFINE_SPINLOCK(globals_lock);

static void unlist(struct mutex_proxy_context *context)
{
	list_del_rcu(&context->globals);
	context->listed = false;
	mutex_proxy_context_put(context);
}

void mutex_proxy_global_add(struct mutex_proxy_context *context)
{
	struct globals *globals = net_generic(context->net, globals_id);
	struct mutex_proxy_context *other, *next;

	spin_lock(&globals_lock);
	if (!context->listed || !list_is_first(&context->globals, &globals->contexts)) {
		/* Readers in the gap see the contexts behind; there is none to miss when it is the only one. */
		if (context->listed)
			unlist(context);
		list_add_rcu(&mutex_proxy_context_get(context)->globals, &globals->contexts);
		context->listed = true;
	}
	list_for_each_entry_safe(other, next, &globals->contexts, globals)
		if (mutex_proxy_context_closed(other))
			unlist(other);
	spin_unlock(&globals_lock);
}

void mutex_proxy_global_remove(struct mutex_proxy_context *context)
{
	spin_lock(&globals_lock);
	if (context->listed)
		unlist(context);
	spin_unlock(&globals_lock);
}

struct mutex_proxy_context *mutex_proxy_global_of(struct net *net)
{
	struct globals *globals = net_generic(net, globals_id);
	struct mutex_proxy_context *context;

	list_for_each_entry_rcu(context, &globals->contexts, globals)
		if (refcount_inc_not_zero(&context->refs))
			return context;
	return NULL;
}

static int __net_init globals_init(struct net *net)
{
	struct globals *globals = net_generic(net, globals_id);

	INIT_LIST_HEAD(&globals->contexts);
	return 0;
}

/* Open contexts hold the namespace, so only closed ones are left. */
static void __net_exit globals_exit(struct net *net)
{
	struct globals *globals = net_generic(net, globals_id);
	struct mutex_proxy_context *context, *next;

	spin_lock(&globals_lock);
	list_for_each_entry_safe(context, next, &globals->contexts, globals)
		unlist(context);
	spin_unlock(&globals_lock);
}

static struct pernet_operations globals_operations = {
	.init = globals_init,
	.exit = globals_exit,
	.id = &globals_id,
	.size = sizeof(struct globals),
};

static int __init globals_register(void)
{
	return register_pernet_subsys(&globals_operations);
}
core_initcall(globals_register);
