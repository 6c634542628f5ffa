// SPDX-License-Identifier: MIT
/*
 * Connects through io_uring, as programs without a single socket system call do:
 *   uring_connect HOST PORT CLOSED_PORT
 * A chain connect -> send -> recv on PORT, the names, then a connect to CLOSED_PORT and one more on the same socket.
 * Prints what each completion said.
 */
#include <arpa/inet.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct address {
	struct sockaddr_storage name;
	socklen_t length;
};

static struct address address_of(const char *host, int port)
{
	struct address to = {0};
	struct sockaddr_in *v4 = (void *)&to.name;
	struct sockaddr_in6 *v6 = (void *)&to.name;

	if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		to.length = sizeof(*v4);
	} else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		to.length = sizeof(*v6);
	} else {
		fprintf(stderr, "not an address: %s\n", host);
		exit(2);
	}
	return to;
}

static void print_completion(struct io_uring *ring)
{
	struct io_uring_cqe *done;
	int error = io_uring_wait_cqe(ring, &done);

	if (error) {
		fprintf(stderr, "wait: %s\n", strerror(-error));
		exit(2);
	}
	printf("%s %d %s\n", (const char *)io_uring_cqe_get_data(done), done->res,
	       done->res < 0 ? strerror(-done->res) : "");
	io_uring_cqe_seen(ring, done);
}

/* The prep functions of liburing clear the whole entry, so name and flags come after them. */
static void label(struct io_uring_sqe *entry, const char *name, unsigned flags)
{
	io_uring_sqe_set_data(entry, (void *)name);
	entry->flags = flags;
}

static void queue_connect(struct io_uring *ring, const char *name, int fd, const struct address *to, unsigned flags)
{
	struct io_uring_sqe *entry = io_uring_get_sqe(ring);

	io_uring_prep_connect(entry, fd, (const void *)&to->name, to->length);
	label(entry, name, flags);
}

static void chain(struct io_uring *ring, const struct address *to)
{
	static const char line[] = "echo\nround";
	char back[16] = "";
	int fd = socket(to->name.ss_family, SOCK_STREAM, 0);
	struct address peer = {.length = sizeof(peer.name)};
	struct io_uring_sqe *entry;

	queue_connect(ring, "connect", fd, to, IOSQE_IO_LINK);
	entry = io_uring_get_sqe(ring);
	io_uring_prep_send(entry, fd, line, sizeof(line) - 1, 0);
	label(entry, "send", IOSQE_IO_LINK);
	entry = io_uring_get_sqe(ring);
	io_uring_prep_recv(entry, fd, back, 5, MSG_WAITALL);
	label(entry, "receive", 0);
	io_uring_submit(ring);
	for (int i = 0; i < 3; i++)
		print_completion(ring);
	getpeername(fd, (void *)&peer.name, &peer.length);
	printf("%s peer %s\n", back, memcmp(&peer.name, &to->name, 24) ? "differs" : "as asked");
}

static void refused(struct io_uring *ring, const struct address *closed, const struct address *open)
{
	int fd = socket(open->name.ss_family, SOCK_STREAM, 0);

	queue_connect(ring, "closed", fd, closed, 0);
	io_uring_submit(ring);
	print_completion(ring);
	queue_connect(ring, "then open", fd, open, 0);
	io_uring_submit(ring);
	print_completion(ring);
}

int main(int argc, char **argv)
{
	struct io_uring ring;
	struct address open, closed;

	if (argc != 4)
		return 2;
	open = address_of(argv[1], atoi(argv[2]));
	closed = address_of(argv[1], atoi(argv[3]));
	if (io_uring_queue_init(8, &ring, 0)) {
		perror("io_uring");
		return 2;
	}
	chain(&ring, &open);
	refused(&ring, &closed, &open);
	io_uring_queue_exit(&ring);
	return 0;
}
