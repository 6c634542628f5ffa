// SPDX-License-Identifier: GPL-2.0-only
/* KUnit: what needs no process and no socket. */
#include <kunit/test.h>
#include <linux/bitmap.h>
#include <linux/jiffies.h>
#include <linux/slab.h>
#include "context.h"
#include "limits.h"

static struct mutex_proxy_config *config_of(struct kunit *test, const char *text)
{
	struct mproto_config_reader reader;
	struct mutex_proxy_config *config;
	int error;

	config = mutex_proxy_config_parse(text, strlen(text), &reader, &error);
	KUNIT_ASSERT_NOT_NULL_MSG(test, config, "error %d, line %u: %s", error, reader.line, reader.error.reason);
	return config;
}

/* ---- configurations ---- */

static void config_empty(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test, "");

	KUNIT_EXPECT_EQ(test, config->n_servers, 0);
	KUNIT_EXPECT_EQ(test, config->n_bypass, 0);
	KUNIT_EXPECT_EQ(test, config->settings.timeout, MUTEX_PROXY_TIMEOUT_DEFAULT);
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, 0), -1);
	mutex_proxy_config_put(config);
}

static void config_whole(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test,
		"server socks5://user:pw@10.0.0.1 weight=3\n"
		"bypass 10.0.0.0/8\n"
		"server http://[::1]:3128 priority=9\n"
		"bypass ::1\n"
		"strategy random\non-close refuse\nudp block\ntimeout 7\n");

	KUNIT_ASSERT_EQ(test, config->n_servers, 2);
	KUNIT_EXPECT_EQ(test, config->servers[0].line.weight, 3);
	KUNIT_EXPECT_EQ(test, config->servers[0].line.line, 1);
	KUNIT_EXPECT_STREQ(test, config->servers[0].line.server.credentials.password, "pw");
	KUNIT_EXPECT_EQ(test, config->servers[1].line.priority, 9);
	KUNIT_EXPECT_EQ(test, config->servers[1].line.line, 3);
	KUNIT_ASSERT_EQ(test, config->n_bypass, 2);
	KUNIT_EXPECT_EQ(test, config->bypass[0].bits, 96 + 8);
	KUNIT_EXPECT_EQ(test, config->bypass[1].bits, 128);
	KUNIT_EXPECT_EQ(test, config->settings.strategy, MPROTO_RANDOM);
	KUNIT_EXPECT_EQ(test, config->settings.on_close, MPROTO_ON_CLOSE_REFUSE);
	KUNIT_EXPECT_EQ(test, config->settings.udp, MPROTO_UDP_BLOCK);
	KUNIT_EXPECT_EQ(test, config->settings.timeout, 7);
	mutex_proxy_config_put(config);
}

static void config_refused(struct kunit *test)
{
	static const char text[] = "server socks5://h\nstrategy none\n";
	struct mproto_config_reader reader;
	int error = 0;

	KUNIT_EXPECT_NULL(test, mutex_proxy_config_parse(text, strlen(text), &reader, &error));
	KUNIT_EXPECT_EQ(test, error, -EINVAL);
	KUNIT_EXPECT_EQ(test, reader.line, 2);
	KUNIT_EXPECT_EQ(test, reader.error.column, 9);
}

/* As many lines as the contract allows, and one more. */
static void config_limit(struct kunit *test, const char *line, unsigned int most)
{
	struct mproto_config_reader reader;
	struct mutex_proxy_config *config;
	size_t length = strlen(line), i;
	int error = 0;
	char *text = kunit_kzalloc(test, (most + 1) * length + 1, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, text);
	for (i = 0; i <= most; i++)
		memcpy(text + i * length, line, length);
	config = mutex_proxy_config_parse(text, most * length, &reader, &error);
	KUNIT_EXPECT_NOT_NULL(test, config);
	mutex_proxy_config_put(config);
	KUNIT_EXPECT_NULL(test, mutex_proxy_config_parse(text, (most + 1) * length, &reader, &error));
	KUNIT_EXPECT_EQ(test, error, -EINVAL);
	KUNIT_EXPECT_EQ(test, reader.line, most + 1);
}

static void config_limits(struct kunit *test)
{
	config_limit(test, "server h\n", MUTEX_PROXY_SERVERS_MAX);
	config_limit(test, "bypass ::1\n", MUTEX_PROXY_BYPASS_MAX);
}

/* The longest configuration there is fits where it is shown, and comes back as it was. */
static void config_canonical(struct kunit *test)
{
	char *text = kunit_kzalloc(test, MUTEX_PROXY_CANONICAL_MAX, GFP_KERNEL);
	char *again = kunit_kzalloc(test, MUTEX_PROXY_CANONICAL_MAX, GFP_KERNEL);
	char *name = kunit_kzalloc(test, MPROTO_NAME_MAX + 1, GFP_KERNEL);
	struct mutex_proxy_config *config;
	size_t length = 0;
	int i;

	KUNIT_ASSERT_NOT_NULL(test, text);
	KUNIT_ASSERT_NOT_NULL(test, again);
	KUNIT_ASSERT_NOT_NULL(test, name);
	for (i = 0; i < MPROTO_NAME_MAX; i++)
		name[i] = i % 64 == 63 ? '.' : 'n';
	for (i = 0; i < MUTEX_PROXY_SERVERS_MAX; i++)
		length += scnprintf(text + length, MUTEX_PROXY_CANONICAL_MAX - length,
				    "server socks5h://%s:65535 weight=1000 priority=1000\n", name);
	length += scnprintf(text + length, MUTEX_PROXY_CANONICAL_MAX - length,
			    "strategy round-robin\non-close direct\ntimeout 3600\nudp direct\n");
	for (i = 0; i < 700; i++) /* what still fits in 64 KiB of text */
		length += scnprintf(text + length, MUTEX_PROXY_CANONICAL_MAX - length,
				    "bypass [1111:2222:3333:4444:5555:6666:7777:8888]/128:65535\n");
	config = config_of(test, text);
	KUNIT_EXPECT_EQ(test, mutex_proxy_canonical(config, again), length);
	KUNIT_EXPECT_STREQ(test, again, text);
	mutex_proxy_config_put(config);
}

/* ---- server choice ---- */

static void choose_failover(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test, "server a priority=2\nserver b priority=1\n"
							    "server c priority=1\n");

	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, 0), 1);
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, BIT(1)), 2);
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, BIT(1) | BIT(2)), 0);
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, BIT(0) | BIT(1) | BIT(2)), -1);
	mutex_proxy_config_put(config);
}

static void choose_down(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test, "server a\nserver b\nserver c priority=1\n");

	mutex_proxy_server_failed(&config->servers[0]);
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, 0), 1);
	mutex_proxy_server_failed(&config->servers[1]);
	/* an up one of worse priority comes before a down one of better */
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, 0), 2);
	/* and a down one before none */
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, BIT(2)), 0);
	mutex_proxy_server_works(&config->servers[1]);
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, 0), 1);
	/* the time it was down for is over */
	config->servers[0].down_until = jiffies - 1;
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, 0), 0);
	mutex_proxy_config_put(config);
}

static void choose_weighted(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test, "strategy round-robin\nserver a weight=1\n"
							    "server b weight=3\nserver c priority=1\n");
	int i, count[3] = {};

	for (i = 0; i < 400; i++)
		count[mutex_proxy_choose(config, 0)]++;
	KUNIT_EXPECT_EQ(test, count[0], 100);
	KUNIT_EXPECT_EQ(test, count[1], 300);
	KUNIT_EXPECT_EQ(test, count[2], 0);
	mutex_proxy_config_put(config);
}

static void choose_random(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test, "strategy random\nserver a weight=1\nserver b weight=1\n");
	int i, count[2] = {};

	for (i = 0; i < 1000; i++)
		count[mutex_proxy_choose(config, 0)]++;
	/* one side short of 300 is less likely than 10^-36 */
	KUNIT_EXPECT_GE(test, count[0], 300);
	KUNIT_EXPECT_GE(test, count[1], 300);
	mutex_proxy_config_put(config);
}

static void choose_every(struct kunit *test)
{
	char *text = kunit_kzalloc(test, MUTEX_PROXY_SERVERS_MAX * 10, GFP_KERNEL);
	struct mutex_proxy_config *config;
	u64 tried = 0;
	int i;

	KUNIT_ASSERT_NOT_NULL(test, text);
	for (i = 0; i < MUTEX_PROXY_SERVERS_MAX; i++)
		strcat(text, "server h\n");
	config = config_of(test, text);
	for (i = 0; i < MUTEX_PROXY_SERVERS_MAX; i++) {
		int server = mutex_proxy_choose(config, tried);

		KUNIT_ASSERT_GE(test, server, 0);
		KUNIT_EXPECT_FALSE(test, tried & BIT_ULL(server));
		tried |= BIT_ULL(server);
	}
	KUNIT_EXPECT_EQ(test, mutex_proxy_choose(config, tried), -1);
	mutex_proxy_config_put(config);
}

/* ---- what needs no server ---- */

static void bypass(struct kunit *test)
{
	struct mutex_proxy_config *config = config_of(test, "bypass 10.1.2.0/23\nbypass 192.168.0.1:80\n"
							    "bypass 2001:db8:8000::/33\nbypass ::1\n");
	static const struct {
		const char *ip;
		u16 port;
		bool is;
	} rows[] = {
		{ "::ffff:10.1.2.0", 1, true },
		{ "::ffff:10.1.3.255", 65535, true },
		{ "::ffff:10.1.4.0", 1, false },
		{ "::ffff:10.1.1.255", 1, false },
		{ "::10.1.2.0", 1, false },
		{ "::ffff:192.168.0.1", 80, true },
		{ "::ffff:192.168.0.1", 81, false },
		{ "::ffff:192.168.0.2", 80, false },
		{ "2001:db8:8000::", 1, true },
		{ "2001:db8:ffff:ffff::", 1, true },
		{ "2001:db8:7fff::", 1, false },
		{ "::1", 9, true },
		{ "::2", 9, false },
	};
	struct mproto_endpoint endpoint;
	struct in6_addr ip;
	int i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		KUNIT_ASSERT_TRUE(test, mproto_ip_parse(rows[i].ip, strlen(rows[i].ip), &endpoint));
		memcpy(&ip, endpoint.ip, sizeof(ip));
		KUNIT_EXPECT_EQ_MSG(test, mutex_proxy_bypassed(config, &ip, rows[i].port), rows[i].is, "%s port %u",
				    rows[i].ip, rows[i].port);
	}
	mutex_proxy_config_put(config);
}

static struct kunit_case cases[] = {
	KUNIT_CASE(config_empty),
	KUNIT_CASE(config_whole),
	KUNIT_CASE(config_refused),
	KUNIT_CASE(config_limits),
	KUNIT_CASE(config_canonical),
	KUNIT_CASE(choose_failover),
	KUNIT_CASE(choose_down),
	KUNIT_CASE(choose_weighted),
	KUNIT_CASE(choose_random),
	KUNIT_CASE(choose_every),
	KUNIT_CASE(bypass),
	{}
};

static struct kunit_suite suite = {
	.name = "mutex_proxy",
	.test_cases = cases,
};
kunit_test_suite(suite);
