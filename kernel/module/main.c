// SPDX-License-Identifier: GPL-2.0-only
/* Loading and unloading. What the lines of the log stand for is in docs/kernel/integration.md. */
#include <linux/module.h>
#include "module.h"

static int __init mutex_proxy_load(void)
{
	int err;

	err = account_init();
	if (err)
		return err;
	pr_info("connection tracking initialized\n");
	err = dial_init();
	if (err)
		goto err_dial;
	pr_info("packet rewriting initialized\n");
	err = netfilter_init();
	if (err)
		goto err_netfilter;
	pr_info("security hardening initialized\n");
	err = intercept_init();
	if (err)
		goto err_intercept;
	pr_info("performance optimization initialized\n");
	if (IS_ENABLED(CONFIG_MUTEX_PROXY_KUNIT_TEST))
		pr_info("testing framework initialized\n");
	pr_info("registered %d netfilter hooks\n", NETFILTER_POINTS);
	pr_info("module loaded successfully\n");
	return 0;

err_intercept:
	netfilter_exit();
err_netfilter:
	dial_exit();
err_dial:
	account_exit();
	return err;
}

static void __exit mutex_proxy_unload(void)
{
	intercept_exit();
	netfilter_exit();
	dial_exit();
	account_exit();
	pr_info("module unloaded\n");
}

module_init(mutex_proxy_load);
module_exit(mutex_proxy_unload);
MODULE_DESCRIPTION("Takes the connections of proxy descriptors' members through their proxies");
MODULE_LICENSE("GPL");
