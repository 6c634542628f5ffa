// SPDX-License-Identifier: GPL-2.0-only
/* A member's connect(): bypassed, impossible, or a flow that is dialled. */
#include <linux/tcp.h>
#include "module.h"

static int intercept_connect(struct mutex_proxy_context *context, struct sock *sk, const struct in6_addr *destination,
			     u16 port);

static const struct mutex_proxy_ops intercept_ops = {
	.owner = THIS_MODULE,
	.connect = intercept_connect,
	.event = dial_event,
	.proceed = dial_proceed,
	.abandoned = dial_abandoned,
};

static int intercept_connect(struct mutex_proxy_context *context, struct sock *sk, const struct in6_addr *destination,
			     u16 port)
{
	struct mutex_proxy_config *config = mutex_proxy_config_get(context);
	struct mutex_proxy_flow *flow;
	int err = 1;

	if (!config) /* closed this very moment: what that means is known at the next connect() */
		return -ENETUNREACH;
	if (mutex_proxy_bypassed(config, destination, port)) {
		atomic64_inc(&context->bypassed);
		goto put_config;
	}
	err = -ENETUNREACH;
	if (sk->sk_protocol != IPPROTO_TCP || tcp_sk(sk)->repair) {
		atomic64_inc(&context->blocked);
		goto put_config;
	}
	flow = mutex_proxy_flow_create(context, config, sk, destination, port);
	if (IS_ERR(flow)) {
		atomic64_inc(&context->failed);
		mutex_proxy_context_error(context, PTR_ERR(flow) == -ENOMEM ? "out of memory" : "too many flows");
		goto put_config;
	}
	err = dial_begin(flow, &intercept_ops);

put_config:
	mutex_proxy_config_put(config);
	return err;
}

int intercept_init(void)
{
	return mutex_proxy_register(&intercept_ops);
}

void intercept_exit(void)
{
	mutex_proxy_unregister(&intercept_ops);
}
