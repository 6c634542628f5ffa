// SPDX-License-Identifier: MIT
#include "lib/announcement.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <limits>
#include <system_error>

namespace mprox {
namespace {

// A kernel without the call has no such file; a sandbox may hide /sys or forbid it. All that means: not announced.
int unannounced(int error) {
    const bool absent = error == ENOENT || error == ENOTDIR || error == EACCES || error == EPERM || error == ELOOP;
    return absent ? ENOSYS : error;
}

std::expected<long, int> read_number(int directory, const char* name) {
    const int fd = ::openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return std::unexpected(unannounced(errno));
    char text[32];
    const ssize_t length = ::read(fd, text, sizeof text);
    const int error = errno;
    ::close(fd);
    if (length < 0) return std::unexpected(unannounced(error));
    long number = 0;
    const char* end = text + length;
    const auto [rest, problem] = std::from_chars(text, end, number);
    if (problem != std::errc{} || end - rest != 1 || *rest != '\n') return std::unexpected(ENOSYS);
    return number;
}

}  // namespace

std::expected<long, int> announced_number(const char* directory) {
    const int fd = ::open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return std::unexpected(unannounced(errno));
    const auto version = read_number(fd, "abi_version");
    const auto number = version ? read_number(fd, "syscall_number") : version;
    ::close(fd);
    if (!number) return number;
    if (*version < 1 || *number < 1 || *number > std::numeric_limits<int>::max()) return std::unexpected(ENOSYS);
    return number;
}

}  // namespace mprox
