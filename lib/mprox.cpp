// SPDX-License-Identifier: MIT
#include <mprox/mprox.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "lib/announcement.hpp"

namespace {

constexpr const char* kernel_directory = "/sys/kernel/mutex_proxy";

// A full descriptor table must not hide a provider already seen, so what was announced once is kept. 0: not yet
// seen.
std::atomic<long> known_number = 0;
static_assert(std::atomic<long>::is_always_lock_free);

int fail(int error) {
    errno = error;
    return -1;
}

int target(int fd, unsigned long request, int pidfd) {
    mutex_proxy_target target{.size = sizeof target, .pidfd = pidfd};
    return ::ioctl(fd, request, &target);
}

}  // namespace

long mprox_syscall_number() {
    if (const long known = known_number.load(std::memory_order_relaxed)) return known;
    const auto number = mprox::announced_number(kernel_directory);
    if (!number) return fail(number.error());
    known_number.store(*number, std::memory_order_relaxed);
    return *number;
}

mprox_provider mprox_find_provider() {
    return mprox_syscall_number() < 0 ? MPROX_PROVIDER_NONE : MPROX_PROVIDER_KERNEL;
}

const char* mprox_provider_name(mprox_provider provider) {
    switch (provider) {
        case MPROX_PROVIDER_NONE:
            return "none";
        case MPROX_PROVIDER_KERNEL:
            return "kernel";
    }
    return "unknown";
}

int mprox_create(unsigned flags) {
    const long number = mprox_syscall_number();
    return number < 0 ? -1 : static_cast<int>(::syscall(number, flags));
}

int mprox_set_config(int fd, const char* text, size_t length) {
    if (length > MUTEX_PROXY_CONFIG_MAX) return fail(E2BIG);  // a length past 32 bits would not fit the structure
    mutex_proxy_config_text config{.size = sizeof config,
                                   .length = static_cast<std::uint32_t>(length),
                                   .text = reinterpret_cast<std::uintptr_t>(text)};
    return ::ioctl(fd, MUTEX_PROXY_IOC_SET_CONFIG, &config);
}

ssize_t mprox_get_config(int fd, char* text, size_t size, size_t* needed) {
    mutex_proxy_config_text config{.size = sizeof config,
                                   .length = size < UINT32_MAX ? static_cast<std::uint32_t>(size) : UINT32_MAX,
                                   .text = reinterpret_cast<std::uintptr_t>(text)};
    const int status = ::ioctl(fd, MUTEX_PROXY_IOC_GET_CONFIG, &config);
    if (needed && (status == 0 || errno == ENOSPC)) *needed = config.length;
    return status < 0 ? -1 : static_cast<ssize_t>(config.length);
}

int mprox_enable(int fd) { return ::ioctl(fd, MUTEX_PROXY_IOC_ENABLE); }

int mprox_disable(int fd) { return ::ioctl(fd, MUTEX_PROXY_IOC_DISABLE); }

int mprox_attach(int fd, int pidfd) { return target(fd, MUTEX_PROXY_IOC_ATTACH, pidfd); }

int mprox_detach(int fd, int pidfd) { return target(fd, MUTEX_PROXY_IOC_DETACH, pidfd); }

int mprox_get_stats(int fd, mutex_proxy_stats* stats) { return ::ioctl(fd, MUTEX_PROXY_IOC_GET_STATS, stats); }

int mprox_get_connections(int fd, mutex_proxy_connections* list) {
    return ::ioctl(fd, MUTEX_PROXY_IOC_GET_CONNECTIONS, list);
}

ssize_t mprox_snapshot(int fd, char* text, size_t size) { return ::read(fd, text, size); }
