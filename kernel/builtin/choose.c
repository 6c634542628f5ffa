// SPDX-License-Identifier: GPL-2.0-only
/* Which server is next, and what needs none. */
#include <linux/jiffies.h>
#include <linux/random.h>
#include "context.h"
#include "limits.h"

static bool is_up(const struct mutex_proxy_server *server)
{
	unsigned long until = READ_ONCE(server->down_until);

	return !until || time_after_eq(jiffies, until);
}

/* Those to choose from: not tried, of the best priority, and up if any is. */
static u64 candidates(const struct mutex_proxy_config *config, u64 tried)
{
	u64 best = 0;
	bool up = false;
	u32 i, priority = 0;

	for (i = 0; i < config->n_servers; i++) {
		const struct mutex_proxy_server *server = &config->servers[i];
		bool this_up = is_up(server);

		if (tried & BIT_ULL(i))
			continue;
		if (!best || (this_up && !up) || (this_up == up && server->line.priority < priority)) {
			best = BIT_ULL(i);
			up = this_up;
			priority = server->line.priority;
		} else if (this_up == up && server->line.priority == priority) {
			best |= BIT_ULL(i);
		}
	}
	return best;
}

int mutex_proxy_choose(struct mutex_proxy_config *config, u64 tried)
{
	u64 among = candidates(config, tried);
	u32 i, at, total = 0;

	BUILD_BUG_ON(MUTEX_PROXY_SERVERS_MAX > 64); /* the bits of `tried` */
	if (!among)
		return -1;
	for (i = 0; i < config->n_servers; i++)
		if (among & BIT_ULL(i))
			total += config->servers[i].line.weight;
	switch (config->settings.strategy) {
	case MPROTO_ROUND_ROBIN:
		at = (u32)atomic_fetch_inc(&config->turn) % total;
		break;
	case MPROTO_RANDOM:
		at = reciprocal_scale(get_random_u32(), total);
		break;
	default:
		at = 0;
	}
	for (i = 0; i < config->n_servers; i++) {
		if (!(among & BIT_ULL(i)))
			continue;
		if (at < config->servers[i].line.weight)
			return i;
		at -= config->servers[i].line.weight;
	}
	return -1;
}
EXPORT_SYMBOL_GPL(mutex_proxy_choose);

void mutex_proxy_server_failed(struct mutex_proxy_server *server)
{
	atomic64_inc(&server->failed);
	WRITE_ONCE(server->down_until, (jiffies + msecs_to_jiffies(MUTEX_PROXY_DOWN_MS)) ?: 1);
}
EXPORT_SYMBOL_GPL(mutex_proxy_server_failed);

void mutex_proxy_server_works(struct mutex_proxy_server *server)
{
	if (READ_ONCE(server->down_until))
		WRITE_ONCE(server->down_until, 0);
}
EXPORT_SYMBOL_GPL(mutex_proxy_server_works);

bool mutex_proxy_server_is_up(const struct mutex_proxy_server *server)
{
	return is_up(server);
}
EXPORT_SYMBOL_GPL(mutex_proxy_server_is_up);

bool mutex_proxy_bypassed(const struct mutex_proxy_config *config, const struct in6_addr *ip, u16 port)
{
	u32 i;

	for (i = 0; i < config->n_bypass; i++) {
		const struct mproto_prefix *prefix = &config->bypass[i];
		unsigned int bytes = prefix->bits / 8, bits = prefix->bits % 8;

		if (prefix->port && prefix->port != port)
			continue;
		if (memcmp(prefix->ip, ip->s6_addr, bytes))
			continue;
		if (!bits || !((prefix->ip[bytes] ^ ip->s6_addr[bytes]) >> (8 - bits)))
			return true;
	}
	return false;
}
EXPORT_SYMBOL_GPL(mutex_proxy_bypassed);
