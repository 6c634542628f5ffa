// SPDX-License-Identifier: GPL-2.0-only
/* The registration point of the module. */
#include <linux/export.h>
#include <linux/srcu.h>
#include "context.h"

static const struct mutex_proxy_ops __rcu *registered;
static DEFINE_MUTEX(register_lock);
DEFINE_STATIC_SRCU(inside); /* sleeps: a connect() may wait in the module */

int mutex_proxy_register(const struct mutex_proxy_ops *ops)
{
	int error = -EBUSY;

	mutex_lock(&register_lock);
	if (!rcu_access_pointer(registered)) {
		rcu_assign_pointer(registered, ops);
		error = 0;
	}
	mutex_unlock(&register_lock);
	return error;
}
EXPORT_SYMBOL_GPL(mutex_proxy_register);

void mutex_proxy_unregister(const struct mutex_proxy_ops *ops)
{
	mutex_lock(&register_lock);
	if (!WARN_ON(rcu_access_pointer(registered) != ops))
		RCU_INIT_POINTER(registered, NULL);
	mutex_unlock(&register_lock);
	synchronize_srcu(&inside);
}
EXPORT_SYMBOL_GPL(mutex_proxy_unregister);

const struct mutex_proxy_ops *mutex_proxy_ops_enter(int *index)
{
	const struct mutex_proxy_ops *ops;

	*index = srcu_read_lock(&inside);
	ops = srcu_dereference(registered, &inside);
	if (!ops)
		srcu_read_unlock(&inside, *index);
	return ops;
}

void mutex_proxy_ops_leave(int index)
{
	srcu_read_unlock(&inside, index);
}

bool mutex_proxy_ops_present(void)
{
	return rcu_access_pointer(registered);
}
