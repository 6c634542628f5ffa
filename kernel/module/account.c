// SPDX-License-Identifier: GPL-2.0-only
/*
 * Packets of each network namespace that no TCP socket counts, in /proc/net/mutex_proxy:
 *
 *     out 12 1440          sent by processes here: packets, bytes
 *     in 10 1200           received, before it is known for whom
 *     leaving 12 1440      on their way out, also those passed on for others
 *     blocked 3            not let out
 */
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <net/net_namespace.h>
#include <net/netns/generic.h>
#include "module.h"

struct counters {
	u64 packets[ACCOUNT_POINTS];
	u64 bytes[ACCOUNT_POINTS];
	u64 blocked;
};

struct account {
	struct counters __percpu *counters;
};

static unsigned int account_id;

void account_packet(struct net *net, enum account_point point, unsigned int bytes)
{
	struct account *account = net_generic(net, account_id);

	this_cpu_inc(account->counters->packets[point]);
	this_cpu_add(account->counters->bytes[point], bytes);
}

void account_blocked(struct net *net)
{
	struct account *account = net_generic(net, account_id);

	this_cpu_inc(account->counters->blocked);
}

static int show(struct seq_file *file, void *unused)
{
	static const char *const names[] = { "out", "in", "leaving" };
	struct account *account = net_generic(seq_file_single_net(file), account_id);
	struct counters sum = {};
	int cpu, i;

	for_each_possible_cpu(cpu) {
		const struct counters *one = per_cpu_ptr(account->counters, cpu);

		for (i = 0; i < ACCOUNT_POINTS; i++) {
			sum.packets[i] += one->packets[i];
			sum.bytes[i] += one->bytes[i];
		}
		sum.blocked += one->blocked;
	}
	for (i = 0; i < ACCOUNT_POINTS; i++)
		seq_printf(file, "%s %llu %llu\n", names[i], sum.packets[i], sum.bytes[i]);
	seq_printf(file, "blocked %llu\n", sum.blocked);
	return 0;
}

static int __net_init account_net_init(struct net *net)
{
	struct account *account = net_generic(net, account_id);

	account->counters = alloc_percpu(struct counters);
	if (!account->counters)
		return -ENOMEM;
	if (!proc_create_net_single("mutex_proxy", 0444, net->proc_net, show, NULL)) {
		free_percpu(account->counters);
		return -ENOMEM;
	}
	return 0;
}

static void __net_exit account_net_exit(struct net *net)
{
	struct account *account = net_generic(net, account_id);

	remove_proc_entry("mutex_proxy", net->proc_net);
	free_percpu(account->counters);
}

static struct pernet_operations account_net_ops = {
	.init = account_net_init,
	.exit = account_net_exit,
	.id = &account_id,
	.size = sizeof(struct account),
};

int account_init(void)
{
	return register_pernet_subsys(&account_net_ops);
}

void account_exit(void)
{
	unregister_pernet_subsys(&account_net_ops);
}
