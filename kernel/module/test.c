// SPDX-License-Identifier: GPL-2.0-only
/* KUnit: what the module reads in packets, and how it goes through servers. Runs when the module has been loaded. */
#include <kunit/test.h>
#include <linux/etherdevice.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/skbuff.h>
#include "module.h"

/* ---- where a packet goes ---- */

struct packet {
	const char *what;
	u8 family;
	u8 bytes[96];
	size_t length;
	const char *destination; /* v4-mapped for IPv4 */
	u16 port;
};

/* An IPv6 header to 2001:db8::1 and what it says comes next. */
#define IP6(next, length) 0x60, 0, 0, 0, 0, length, next, 64, 0xfd, [23] = 1, 0x20, 0x01, 0x0d, 0xb8, [39] = 1
#define UDP_TO_53 0x30, 0x39, 0, 53, 0, 8, 0, 0

static const struct packet packets[] = {
	{ "IPv4, UDP", NFPROTO_IPV4,
	  { 0x45, 0, 0, 28, 0, 0, 0, 0, 64, IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, UDP_TO_53 }, 28,
	  "::ffff:192.0.2.1", 53 },
	{ "IPv4 with options, UDP", NFPROTO_IPV4,
	  { 0x46, 0, 0, 32, 0, 0, 0, 0, 64, IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, 1, 1, 1, 0, UDP_TO_53 }, 32,
	  "::ffff:192.0.2.1", 53 },
	{ "IPv4, UDP cut short", NFPROTO_IPV4,
	  { 0x45, 0, 0, 24, 0, 0, 0, 0, 64, IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, 0x30, 0x39, 0, 53 }, 24,
	  "::ffff:192.0.2.1", 0 },
	{ "IPv4, ICMP", NFPROTO_IPV4,
	  { 0x45, 0, 0, 28, 0, 0, 0, 0, 64, IPPROTO_ICMP, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1, 8, 0, 0, 53 }, 28,
	  "::ffff:192.0.2.1", 0 },
	{ "IPv6, UDP", NFPROTO_IPV6, { IP6(IPPROTO_UDP, 8), UDP_TO_53 }, 48, "2001:db8::1", 53 },
	{ "IPv6, destination options, UDP", NFPROTO_IPV6,
	  { IP6(IPPROTO_DSTOPTS, 16), IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0, UDP_TO_53 }, 56, "2001:db8::1", 53 },
	{ "IPv6, options that go beyond the end", NFPROTO_IPV6,
	  { IP6(IPPROTO_DSTOPTS, 8), IPPROTO_UDP, 255, 1, 4, 0, 0, 0, 0 }, 48, "2001:db8::1", 0 },
	{ "IPv6, nothing behind the header", NFPROTO_IPV6, { IP6(IPPROTO_UDP, 0) }, 40, "2001:db8::1", 0 },
	{ "IPv6, routing header, UDP", NFPROTO_IPV6,
	  { IP6(IPPROTO_ROUTING, 32), IPPROTO_UDP, 2, 4, 0, 0, 0, 0, 0, [63] = 1, UDP_TO_53 }, 72, "::", 53 },
	{ "IPv6, options, routing header, ICMP", NFPROTO_IPV6,
	  { IP6(IPPROTO_DSTOPTS, 40), IPPROTO_ROUTING, 0, 1, 4, 0, 0, 0, 0, IPPROTO_ICMPV6, 2, 4, 0, 0, 0, 0, 0, [71] = 1, 128 },
	  80, "::", 0 },
};

static void where_packets_go(struct kunit *test)
{
	struct mproto_endpoint endpoint;
	struct in6_addr destination;
	struct sk_buff *skb;
	u16 port;
	int i;

	for (i = 0; i < ARRAY_SIZE(packets); i++) {
		const struct packet *packet = &packets[i];

		skb = alloc_skb(sizeof(packet->bytes), GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, skb);
		skb_put_data(skb, packet->bytes, packet->length);
		skb_reset_network_header(skb);
		netfilter_destination(skb, packet->family, &destination, &port);
		kfree_skb(skb);
		KUNIT_ASSERT_TRUE(test, mproto_ip_parse(packet->destination, strlen(packet->destination), &endpoint));
		KUNIT_EXPECT_EQ_MSG(test, memcmp(&destination, endpoint.ip, sizeof(destination)), 0, "%s: %pI6c", packet->what,
				    &destination);
		KUNIT_EXPECT_EQ_MSG(test, port, packet->port, "%s", packet->what);
	}
}

/* ---- one server after the other ---- */

static void servers_are_tried_once(struct kunit *test)
{
	static const u16 priorities[] = { 2, 0, 1 };
	struct mutex_proxy_config *config;
	struct policy policy = {};
	int i;

	config = kunit_kzalloc(test, struct_size(config, servers, ARRAY_SIZE(priorities)), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, config);
	config->n_servers = ARRAY_SIZE(priorities);
	for (i = 0; i < ARRAY_SIZE(priorities); i++) {
		config->servers[i].line.weight = 1;
		config->servers[i].line.priority = priorities[i];
	}
	policy.config = config;
	KUNIT_EXPECT_EQ(test, policy_left(&policy), 3);
	KUNIT_EXPECT_EQ(test, policy_next(&policy), 1);
	KUNIT_EXPECT_EQ(test, policy_left(&policy), 2);
	KUNIT_EXPECT_EQ(test, policy_next(&policy), 2);
	KUNIT_EXPECT_EQ(test, policy_next(&policy), 0);
	KUNIT_EXPECT_EQ(test, policy_left(&policy), 0);
	KUNIT_EXPECT_EQ(test, policy_next(&policy), -1);
}

static struct kunit_case cases[] = {
	KUNIT_CASE(where_packets_go),
	KUNIT_CASE(servers_are_tried_once),
	{}
};

static struct kunit_suite suite = {
	.name = "mutex_proxy_module",
	.test_cases = cases,
};
kunit_test_suite(suite);
