// SPDX-License-Identifier: GPL-2.0-only
/* Which server is tried next, and what its answer means for those that come later. */
#include "module.h"

int policy_next(struct policy *policy)
{
	int server = mutex_proxy_choose(policy->config, policy->tried);

	if (server >= 0)
		policy->tried |= BIT_ULL(server);
	return server;
}

unsigned int policy_left(const struct policy *policy)
{
	return policy->config->n_servers - hweight64(policy->tried);
}

void policy_tell(struct mutex_proxy_context *context, const struct policy *policy, int server, const char *why)
{
	char text[MPROTO_TEXT_MAX];

	mproto_server_format(&policy->config->servers[server].line.server, text);
	mutex_proxy_context_error(context, "%s: %s", text, why);
}

void policy_failed(struct mutex_proxy_context *context, struct policy *policy, int server, const char *why)
{
	mutex_proxy_server_failed(&policy->config->servers[server]);
	policy_tell(context, policy, server, why);
}

void policy_connected(struct policy *policy, int server)
{
	mutex_proxy_server_works(&policy->config->servers[server]);
	atomic64_inc(&policy->config->servers[server].connected);
}

void policy_refused(struct mutex_proxy_context *context, struct policy *policy, int server, const char *why)
{
	mutex_proxy_server_works(&policy->config->servers[server]);
	atomic64_inc(&policy->config->servers[server].refused);
	policy_tell(context, policy, server, why);
}
