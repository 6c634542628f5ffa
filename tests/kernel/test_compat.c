/* SPDX-License-Identifier: MIT */
/*
 * The call and its descriptor as programs of the other two x86 ABIs have them: built with -m32 it calls by int 0x80,
 * otherwise by x32 numbers. No libc: a 64-bit machine need not have one for them. Exit status: 0, or the step that failed.
 */
#include <linux/mutex_proxy.h>

#define NUMBER 471 /* the default of CONFIG_MUTEX_PROXY_SYSCALL: test_syscall looks it up, this is about the ABI */

#ifdef __i386__
#define NR_exit 1
#define NR_read 3
#define NR_write 4
#define NR_ioctl 54
static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}
#else
#define X32 0x40000000
#define NR_exit (X32 + 60)
#define NR_read (X32 + 0)
#define NR_write (X32 + 1)
#define NR_ioctl (X32 + 514)
static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}
#endif

#ifdef __i386__
#define CREATE NUMBER
#else
#define CREATE (X32 + NUMBER)
#endif

/* Not on the stack: with x32 numbers a pointer has 32 bits, and the stack of this 64-bit program is beyond them. */
static char snapshot[MUTEX_PROXY_SNAPSHOT_MAX];
static const char config[] = "server socks5://10.0.0.1\n";
static struct mutex_proxy_stats stats = {.size = sizeof(stats), .generation = 7};
static struct mutex_proxy_config_text text = {.size = sizeof(text), .length = sizeof(config) - 1};

static int run(void)
{
	long fd = call(CREATE, MUTEX_PROXY_CLOEXEC | MUTEX_PROXY_NONBLOCK, 0, 0);

	if (fd < 0)
		return 1;
	if (call(CREATE, 8, 0, 0) != -22)
		return 2;
	if (call(NR_write, fd, (long)config, sizeof(config) - 1) != sizeof(config) - 1)
		return 3;
	if (call(NR_read, fd, (long)snapshot, sizeof(snapshot)) <= 0)
		return 4;
	if (call(NR_read, fd, (long)snapshot, sizeof(snapshot)) != -11)
		return 5;
	if (call(NR_ioctl, fd, (long)MUTEX_PROXY_IOC_GET_STATS, (long)&stats) != 0)
		return 6;
	if (stats.generation != 2 || stats.enabled || stats.members)
		return 7;
	text.text = (unsigned long)config;
	if (call(NR_ioctl, fd, (long)MUTEX_PROXY_IOC_SET_CONFIG, (long)&text) != 0)
		return 8;
	if (call(NR_ioctl, fd, (long)MUTEX_PROXY_IOC_GET_STATS, 0) != -14)
		return 9;
	return 0;
}

__attribute__((noreturn, force_align_arg_pointer)) void _start(void)
{
	call(NR_exit, run(), 0, 0);
	__builtin_trap(); /* the kernel does not have this ABI */
}
