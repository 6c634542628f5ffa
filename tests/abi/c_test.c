/* SPDX-License-Identifier: MIT */
/* The library and the header from C: a whole life of a descriptor. */
#include "tests/abi/c_test.h"

#include <errno.h>
#include <mprox/mprox.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUIRE(condition)                          \
	do {                                        \
		if (!(condition)) {                 \
			failed = #condition;        \
			goto out;                   \
		}                                   \
	} while (0)

static char text[MUTEX_PROXY_SNAPSHOT_MAX];

const char *c_conversation(void)
{
	static const char config[] = "server socks5://me:secret@10.0.0.1\ntimeout 9\n";
	struct mutex_proxy_connections list = {
		.size = sizeof(list),
		.connection_size = sizeof(struct mutex_proxy_connection),
	};
	struct mutex_proxy_stats stats = {.size = sizeof(stats)};
	const char *failed = NULL;
	size_t needed = 0;
	ssize_t length;
	int fd, self;

	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	fd = mprox_create(MUTEX_PROXY_CLOEXEC | MUTEX_PROXY_NONBLOCK);
	REQUIRE(fd >= 0 && self >= 0);
	REQUIRE(mprox_find_provider() != MPROX_PROVIDER_NONE);
	REQUIRE(mprox_set_config(fd, config, strlen(config)) == 0);
	REQUIRE(mprox_get_config(fd, NULL, 0, &needed) == -1 && errno == ENOSPC && needed > 0);
	length = mprox_get_config(fd, text, sizeof(text) - 1, NULL);
	REQUIRE(length == (ssize_t)needed);
	text[length] = '\0';
	REQUIRE(strstr(text, "server socks5://10.0.0.1:1080") && !strstr(text, "secret"));
	REQUIRE(mprox_attach(fd, self) == 0);
	REQUIRE(mprox_get_stats(fd, &stats) == 0 && stats.members == 1 && stats.size == sizeof(stats));
	REQUIRE(mprox_detach(fd, self) == 0);
	REQUIRE(mprox_detach(fd, self) == -1 && errno == ENOENT);
	REQUIRE(mprox_disable(fd) == 0);
	REQUIRE(mprox_get_connections(fd, &list) == 0 && list.count == 0);
	length = mprox_snapshot(fd, text, sizeof(text) - 1);
	REQUIRE(length > 0);
	text[length] = '\0';
	REQUIRE(strstr(text, "\ntimeout: 9\n"));
	REQUIRE(mprox_snapshot(fd, text, sizeof(text)) == -1 && errno == EAGAIN);
	REQUIRE(mprox_set_config(fd, "nonsense", 8) == -1 && errno == EINVAL);
	REQUIRE(mprox_create(~MUTEX_PROXY_FLAGS) == -1 && errno == EINVAL);
out:
	close(fd);
	close(self);
	return failed;
}
