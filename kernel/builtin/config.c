// SPDX-License-Identifier: GPL-2.0-only
/* Configurations: read from text, published, wiped. */
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include "context.h"

static const struct mproto_config_limits limits = {
	.servers = MUTEX_PROXY_SERVERS_MAX,
	.bypass = MUTEX_PROXY_BYPASS_MAX,
};

static struct mutex_proxy_config *config_alloc(u32 n_servers, u32 n_bypass)
{
	struct mutex_proxy_config *config;
	size_t servers = struct_size(config, servers, n_servers);

	config = kvzalloc(size_add(servers, array_size(n_bypass, sizeof(*config->bypass))), GFP_KERNEL_ACCOUNT);
	if (!config)
		return NULL;
	refcount_set(&config->users, 1);
	config->bypass = (void *)config + servers;
	return config;
}

static size_t config_size(const struct mutex_proxy_config *config)
{
	return struct_size(config, servers, config->n_servers) + config->n_bypass * sizeof(*config->bypass);
}

/*
 * The text is read twice: once to see that it is good and what it needs, and once to fill. Nothing between can
 * change it, so the second time cannot fail.
 */
struct mutex_proxy_config *mutex_proxy_config_parse(const char *text, size_t length,
						    struct mproto_config_reader *reader, int *error)
{
	struct mproto_config_server *server;
	struct mutex_proxy_config *config;
	enum mproto_config_item item;
	struct mproto_prefix bypass;

	*error = -ENOMEM;
	server = kmalloc(sizeof(*server), GFP_KERNEL);
	if (!server)
		return NULL;
	mproto_config_start(reader, &limits, text, length);
	do
		item = mproto_config_next(reader, server, &bypass);
	while (item == MPROTO_CONFIG_SERVER || item == MPROTO_CONFIG_BYPASS);
	kfree_sensitive(server);
	if (item == MPROTO_CONFIG_ERROR) {
		*error = -EINVAL;
		return NULL;
	}

	config = config_alloc(reader->servers, reader->bypass);
	if (!config)
		return NULL;
	config->settings = reader->settings;
	config->n_servers = reader->servers;
	config->n_bypass = reader->bypass;
	mproto_config_start(reader, &limits, text, length);
	do
		item = mproto_config_next(reader, &config->servers[min(reader->servers, config->n_servers - 1)].line,
					  &config->bypass[min(reader->bypass, config->n_bypass - 1)]);
	while (item != MPROTO_CONFIG_END);
	return config;
}

int mutex_proxy_config_set(struct mutex_proxy_context *context, const char *text, size_t length)
{
	struct mproto_config_reader reader;
	struct mutex_proxy_config *config, *old;
	int error;

	if (length > MUTEX_PROXY_CONFIG_MAX)
		return -E2BIG;
	config = mutex_proxy_config_parse(text, length, &reader, &error);
	if (!config) {
		if (error == -EINVAL)
			mutex_proxy_context_error(context, "line %u, column %zu: %s", reader.line,
						  reader.error.column + 1, reader.error.reason);
		return error;
	}
	spin_lock_bh(&context->lock);
	old = rcu_replace_pointer(context->config, config, lockdep_is_held(&context->lock));
	context->error[0] = 0;
	spin_unlock_bh(&context->lock);
	mutex_proxy_context_changed(context);
	mutex_proxy_config_put(old);
	return 0;
}

struct mutex_proxy_config *mutex_proxy_config_get(struct mutex_proxy_context *context)
{
	struct mutex_proxy_config *config;

	rcu_read_lock();
	do /* one that is just being freed has just been replaced as well */
		config = rcu_dereference(context->config);
	while (config && !refcount_inc_not_zero(&config->users));
	rcu_read_unlock();
	return config;
}
EXPORT_SYMBOL_GPL(mutex_proxy_config_get);

static void config_free(struct rcu_head *rcu)
{
	struct mutex_proxy_config *config = container_of(rcu, struct mutex_proxy_config, rcu);

	kvfree_sensitive(config, config_size(config));
}

void mutex_proxy_config_put(struct mutex_proxy_config *config)
{
	if (config && refcount_dec_and_test(&config->users))
		call_rcu(&config->rcu, config_free);
}
EXPORT_SYMBOL_GPL(mutex_proxy_config_put);
