// SPDX-License-Identifier: GPL-2.0-only
/*
 * /sys/kernel/mutex_proxy/
 *	syscall_number	of mprox_create()
 *	abi_version	MUTEX_PROXY_ABI_VERSION
 *	module		1 while a module is registered, so that ENABLE can work
 *	contexts	alive now; so are
 *	members		and
 *	flows
 *	limits/		may be written: contexts, contexts_per_user, flows_per_context
 *	totals/		since the start of the machine: contexts, denied (calls, for want of CAP_NET_ADMIN), flows
 */
#include <linux/kobject.h>
#include <linux/sysfs.h>
#include "context.h"
#include "limits.h"

struct mutex_proxy_limits mutex_proxy_limits = {
	.contexts = MUTEX_PROXY_CONTEXTS,
	.contexts_per_user = MUTEX_PROXY_CONTEXTS_PER_USER,
	.flows_per_context = MUTEX_PROXY_FLOWS_PER_CONTEXT,
};

struct mutex_proxy_now mutex_proxy_now;
struct mutex_proxy_totals mutex_proxy_totals;

static ssize_t syscall_number_show(struct kobject *kobject, struct kobj_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", CONFIG_MUTEX_PROXY_SYSCALL);
}
static struct kobj_attribute syscall_number_attribute = __ATTR_RO(syscall_number);

static ssize_t abi_version_show(struct kobject *kobject, struct kobj_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", MUTEX_PROXY_ABI_VERSION);
}
static struct kobj_attribute abi_version_attribute = __ATTR_RO(abi_version);

static ssize_t module_show(struct kobject *kobject, struct kobj_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", mutex_proxy_ops_present());
}
static struct kobj_attribute module_attribute = __ATTR_RO(module);

#define NOW(name) \
	static ssize_t name##_show(struct kobject *kobject, struct kobj_attribute *attribute, char *text) \
	{ \
		return sysfs_emit(text, "%d\n", atomic_read(&mutex_proxy_now.name)); \
	} \
	static struct kobj_attribute name##_attribute = __ATTR_RO(name)

NOW(contexts);
NOW(members);
NOW(flows);

static struct attribute *about[] = {
	&syscall_number_attribute.attr,
	&abi_version_attribute.attr,
	&module_attribute.attr,
	&contexts_attribute.attr,
	&members_attribute.attr,
	&flows_attribute.attr,
	NULL,
};

/**
 * struct limit - a file of limits/
 * @attribute: the file
 * @value: in mutex_proxy_limits
 */
struct limit {
	struct kobj_attribute attribute;
	unsigned int *value;
};

static ssize_t limit_show(struct kobject *kobject, struct kobj_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%u\n", READ_ONCE(*container_of(attribute, struct limit, attribute)->value));
}

static ssize_t limit_store(struct kobject *kobject, struct kobj_attribute *attribute, const char *text, size_t length)
{
	unsigned int value;
	int error = kstrtouint(text, 0, &value);

	if (error)
		return error;
	if (value > INT_MAX)
		return -ERANGE;
	WRITE_ONCE(*container_of(attribute, struct limit, attribute)->value, value);
	return length;
}

#define LIMIT(name) \
	static struct limit name##_limit = { \
		.attribute = __ATTR(name, 0644, limit_show, limit_store), \
		.value = &mutex_proxy_limits.name, \
	}

LIMIT(contexts);
LIMIT(contexts_per_user);
LIMIT(flows_per_context);

static struct attribute *limits[] = {
	&contexts_limit.attribute.attr,
	&contexts_per_user_limit.attribute.attr,
	&flows_per_context_limit.attribute.attr,
	NULL,
};

#define TOTAL(name) \
	static ssize_t name##_total_show(struct kobject *kobject, struct kobj_attribute *attribute, char *text) \
	{ \
		return sysfs_emit(text, "%lld\n", atomic64_read(&mutex_proxy_totals.name)); \
	} \
	static struct kobj_attribute name##_total = __ATTR(name, 0444, name##_total_show, NULL)

TOTAL(contexts);
TOTAL(denied);
TOTAL(flows);

static struct attribute *totals[] = {
	&contexts_total.attr,
	&denied_total.attr,
	&flows_total.attr,
	NULL,
};

static const struct attribute_group about_group = { .attrs = about };
static const struct attribute_group limits_group = { .name = "limits", .attrs = limits };
static const struct attribute_group totals_group = { .name = "totals", .attrs = totals };

static const struct attribute_group *groups[] = {
	&about_group,
	&limits_group,
	&totals_group,
	NULL,
};

static int __init mutex_proxy_sysfs(void)
{
	struct kobject *directory = kobject_create_and_add("mutex_proxy", kernel_kobj);

	if (!directory)
		return -ENOMEM;
	return sysfs_create_groups(directory, groups);
}
late_initcall(mutex_proxy_sysfs);
