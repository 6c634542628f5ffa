/* SPDX-License-Identifier: MIT */
/*
 * behind SERVER PROGRAM [ARGS...]: run a program whose TCP connections go through a proxy, and say what went through.
 * The example of mprox_create(2).
 */
#define _GNU_SOURCE
#include <err.h>
#include <mprox/mprox.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* The last line of a snapshot says what is wrong with a configuration. */
static void explain(int fd)
{
	static char text[MUTEX_PROXY_SNAPSHOT_MAX + 1];
	ssize_t length = read(fd, text, sizeof(text) - 1);
	char *error;

	if (length < 0)
		err(1, "read");
	text[length] = 0;
	error = strstr(text, "\nerror: ");
	if (!error)
		errx(1, "a snapshot without an error line");
	error += strlen("\nerror: ");
	errx(1, "%.*s", (int)strcspn(error, "\n"), error);
}

int main(int argc, char **argv)
{
	struct mutex_proxy_stats stats = { .size = sizeof(stats) };
	int fd, status;
	pid_t child;

	if (argc < 3) {
		fprintf(stderr, "usage: behind SERVER PROGRAM [ARGS...]\n");
		return 2;
	}
	fd = mprox_create(MUTEX_PROXY_CLOEXEC | MUTEX_PROXY_NONBLOCK);
	if (fd < 0)
		err(1, "mprox_create");
	/* When this program dies, connections of the other shall fail rather than go out directly. */
	if (dprintf(fd, "server %s\non-close refuse\n", argv[1]) < 0)
		explain(fd);

	child = fork();
	if (child < 0)
		err(1, "fork");
	if (child == 0) {
		if (ioctl(fd, MUTEX_PROXY_IOC_ENABLE))
			err(1, "MUTEX_PROXY_IOC_ENABLE");
		execvp(argv[2], argv + 2);
		err(127, "%s", argv[2]);
	}
	/* The descriptor stays open here: its context ends with the last one. */
	if (waitpid(child, &status, 0) < 0)
		err(1, "waitpid");
	if (ioctl(fd, MUTEX_PROXY_IOC_GET_STATS, &stats))
		err(1, "MUTEX_PROXY_IOC_GET_STATS");
	fprintf(stderr, "behind: %llu connected, %llu refused, %llu failed, %llu bytes sent, %llu received\n",
		(unsigned long long)stats.connected, (unsigned long long)stats.refused,
		(unsigned long long)stats.failed, (unsigned long long)stats.bytes_sent,
		(unsigned long long)stats.bytes_received);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
