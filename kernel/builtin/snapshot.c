// SPDX-License-Identifier: GPL-2.0-only
/* What a reader gets to see: the snapshot, and the configuration in canonical form. Never a user or password. */
#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/string_helpers.h>
#include "context.h"

struct text {
	char *at;
	size_t room;
};

static __printf(2, 3) void put(struct text *text, const char *format, ...)
{
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	length = vscnprintf(text->at, text->room, format, arguments);
	va_end(arguments);
	text->at += length;
	text->room -= length;
}

static void put_settings(struct text *text, const struct mproto_config_settings *settings, const char *colon)
{
	put(text, "strategy%s %s\n", colon, mproto_strategy_text(settings->strategy));
	put(text, "on-close%s %s\n", colon, mproto_on_close_text(settings->on_close));
	put(text, "timeout%s %u\n", colon, settings->timeout);
	put(text, "udp%s %s\n", colon, mproto_udp_text(settings->udp));
}

static void put_server(struct text *text, const struct mutex_proxy_server *server)
{
	char uri[MPROTO_TEXT_MAX];

	mproto_server_format(&server->line.server, uri);
	put(text, "%s weight=%u priority=%u", uri, server->line.weight, server->line.priority);
}

static void put_servers(struct text *text, const struct mutex_proxy_config *config)
{
	u32 i;

	for (i = 0; i < config->n_servers; i++) {
		const struct mutex_proxy_server *server = &config->servers[i];

		put(text, "server: %u ", i);
		put_server(text, server);
		put(text, " state=%s connected=%lld refused=%lld failed=%lld\n",
		    mutex_proxy_server_is_up(server) ? "up" : "down", atomic64_read(&server->connected),
		    atomic64_read(&server->refused), atomic64_read(&server->failed));
	}
}

static void put_head(struct text *text, const struct mutex_proxy_context *context, u64 generation)
{
	struct user_namespace *ns = current_user_ns();
	char comm[4 * TASK_COMM_LEN + 1];

	/* A process chooses its name: it must not be able to add a line. */
	comm[string_escape_mem(context->comm, strlen(context->comm), comm, sizeof(comm) - 1,
			       ESCAPE_SPECIAL | ESCAPE_OCTAL | ESCAPE_NP, NULL)] = 0;
	put(text, "state: %s\n", READ_ONCE(context->enabled) ? "enabled" : "disabled");
	put(text, "generation: %llu\n", generation);
	put(text, "scope: %s\n", context->flags & MUTEX_PROXY_GLOBAL ? "global" : "members");
	put(text, "owner: pid=%d uid=%u gid=%u comm=%s\n", pid_vnr(context->owner_pid),
	    from_kuid_munged(ns, context->owner_uid), from_kgid_munged(ns, context->owner_gid), comm);
	put(text, "members: %lld\n", atomic64_read(&context->members));
}

static void put_counters(struct text *text, struct mutex_proxy_context *context)
{
	u64 sent, received;

	mutex_proxy_context_bytes(context, &sent, &received);
	put(text, "flows: active=%lld connecting=%lld\n", atomic64_read(&context->active),
	    atomic64_read(&context->connecting));
	put(text, "connects: connected=%lld refused=%lld failed=%lld bypassed=%lld blocked=%lld\n",
	    atomic64_read(&context->connected), atomic64_read(&context->refused), atomic64_read(&context->failed),
	    atomic64_read(&context->bypassed), atomic64_read(&context->blocked));
	put(text, "bytes: sent=%llu received=%llu\n", sent, received);
}

size_t mutex_proxy_snapshot(struct mutex_proxy_context *context, char *start, size_t room)
{
	struct text text = { .at = start, .room = room };
	struct mutex_proxy_config *config = mutex_proxy_config_get(context);
	bool whole = room >= MUTEX_PROXY_SNAPSHOT_MAX;
	char error[sizeof(context->error)];
	u64 generation;

	spin_lock_bh(&context->lock);
	generation = context->generation;
	memcpy(error, context->error, sizeof(error));
	spin_unlock_bh(&context->lock);

	put_head(&text, context, generation);
	put_settings(&text, &config->settings, ":");
	put(&text, "bypass: %u\n", config->n_bypass);
	put(&text, "servers: %u\n", config->n_servers);
	if (whole)
		put_servers(&text, config);
	put_counters(&text, context);
	if (whole)
		put(&text, "error: %s\n", error[0] ? error : "none");
	mutex_proxy_config_put(config);
	/* 64 server lines take less than 420 bytes each, all the rest less than MUTEX_PROXY_SUMMARY_MAX. */
	WARN_ON_ONCE(text.room <= 1);
	return text.at - start;
}

size_t mutex_proxy_canonical(const struct mutex_proxy_config *config, char *start)
{
	struct text text = { .at = start, .room = MUTEX_PROXY_CANONICAL_MAX };
	u32 i;

	for (i = 0; i < config->n_servers; i++) {
		put(&text, "server ");
		put_server(&text, &config->servers[i]);
		put(&text, "\n");
	}
	put_settings(&text, &config->settings, "");
	for (i = 0; i < config->n_bypass; i++) {
		char prefix[MPROTO_PREFIX_TEXT_MAX];

		mproto_prefix_format(&config->bypass[i], prefix);
		put(&text, "bypass %s\n", prefix);
	}
	WARN_ON_ONCE(text.room <= 1);
	return text.at - start;
}
