// SPDX-License-Identifier: MIT
// Makes one proxy descriptor and says what came of it; or hands it to a command.
#include <mprox/mprox.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string_view>

namespace {

constexpr int failed = 1, misused = 2, no_command = 127;

constexpr const char* usage =
    "usage: test_syscall [FLAGS [COMMAND [ARGS...]]]\n"
    "Calls mprox_create(FLAGS) and prints what came of it. FLAGS is decimal, 0x hexadecimal or 0 octal; 0 when "
    "left out:\n"
    "  0x1  CLOEXEC   close the descriptor on exec\n"
    "  0x2  NONBLOCK  read() gives EAGAIN rather than wait\n"
    "  0x4  GLOBAL    every process of the network namespace that is in no other context\n"
    "With a COMMAND, that is executed next, and prints instead; the descriptor stays open for it unless FLAGS say "
    "CLOEXEC:\n"
    "  test_syscall 0 sh -c 'echo server socks5://10.0.0.1:1080 >&3; dd bs=32768 count=1 <&3'\n"
    "Exit status: 0 made (then the command's), 1 not made, 2 bad arguments, 127 the command cannot be executed.\n";

std::optional<unsigned> parse(std::string_view text) {
    int base = 10;
    if (text.starts_with("0x") || text.starts_with("0X")) {
        base = 16;
        text.remove_prefix(2);
    } else if (text.size() > 1 && text.starts_with('0')) {
        base = 8;
        text.remove_prefix(1);
    }
    unsigned value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{} || end != text.data() + text.size()) return {};
    return value;
}

void explain(int error, unsigned flags) {
    switch (error) {
        case EPERM:
            std::fprintf(
                stderr,
                "mprox_create: permission denied (EPERM): CAP_NET_ADMIN over the network namespace is needed; "
                "run it as root.\n");
            break;
        case EINVAL:
            std::fprintf(stderr, "mprox_create: invalid flags 0x%x (EINVAL): 0x%x is not known.\n", flags,
                         flags & ~MUTEX_PROXY_FLAGS);
            break;
        case ENOSYS:
            std::fprintf(
                stderr,
                "mprox_create: not available (ENOSYS): this kernel shows no /sys/kernel/mutex_proxy/; boot one "
                "built with CONFIG_MUTEX_PROXY=y.\n");
            break;
        default:
            std::fprintf(stderr, "mprox_create: %s (%s).\n", std::strerror(error), ::strerrorname_np(error));
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && (std::string_view(argv[1]) == "--help" || std::string_view(argv[1]) == "-h")) {
        std::fputs(usage, stdout);
        return 0;
    }
    const auto flags = argc > 1 ? parse(argv[1]) : 0u;
    if (!flags) {
        std::fprintf(stderr, "test_syscall: '%s' is not a number of 32 bits\n%s", argv[1], usage);
        return misused;
    }
    const bool with_command = argc > 2;
    if (!with_command) {
        std::printf("MUTEX_PROXY mprox_create Syscall Test Program\n============================\n\n");
        std::fflush(stdout);
    }
    const int fd = ::mprox_create(*flags);
    if (fd < 0) {
        explain(errno, *flags);
        return failed;
    }
    if (with_command) {
        ::execvp(argv[2], argv + 2);
        std::fprintf(stderr, "test_syscall: cannot execute '%s': %s\n", argv[2], std::strerror(errno));
        return no_command;
    }
    std::printf("Created fd %d\n  Syscall Number: %ld (mprox_create)\n  Flags:          0x%x\n", fd,
                ::mprox_syscall_number(), *flags);
    ::close(fd);
    return std::fflush(stdout) == 0 ? 0 : failed;
}
