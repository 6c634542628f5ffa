/* SPDX-License-Identifier: MIT */
#include "tests/unit/mprox_c.h"

#include <errno.h>
#include <mprox/mprox.h>
#include <stdint.h>

#define REQUIRE(call)                                     \
	do {                                              \
		errno = 0;                                \
		if ((call) != -1 || errno != error)       \
			return #call;                     \
	} while (0)

const char *mprox_c_errors(int fd, int error)
{
	struct mutex_proxy_connection connection;
	struct mutex_proxy_connections list = {
		.size = sizeof(list),
		.connection_size = sizeof(connection),
		.capacity = 1,
		.connections = (uintptr_t)&connection,
	};
	struct mutex_proxy_stats stats = {.size = sizeof(stats)};
	char text[16];

	REQUIRE(mprox_set_config(fd, "", 0));
	REQUIRE(mprox_get_config(fd, text, sizeof(text), NULL));
	REQUIRE(mprox_enable(fd));
	REQUIRE(mprox_disable(fd));
	REQUIRE(mprox_attach(fd, 0));
	REQUIRE(mprox_detach(fd, 0));
	REQUIRE(mprox_get_stats(fd, &stats));
	REQUIRE(mprox_get_connections(fd, &list));
	if (error == EBADF)
		REQUIRE(mprox_snapshot(fd, text, sizeof(text)));
	return "";
}
