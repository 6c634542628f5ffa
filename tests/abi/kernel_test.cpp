// SPDX-License-Identifier: MIT
// What only the kernel's provider shows: /sys/kernel/mutex_proxy/, the kernel's log, the system call itself.
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>

#include <cerrno>
#include <filesystem>
#include <functional>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

/// Follows the kernel's log from now on.
class Log {
  public:
    Log() : fd_(::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
        EXPECT_TRUE(fd_) << ::strerrorname_np(errno);
        EXPECT_EQ(::lseek(fd_.get(), 0, SEEK_END), 0);
    }
    /// Does `action` again and again until there is such a line: lines are limited to so many in a time.
    bool tells(const std::string& line, const std::function<void()>& action) {
        for (int waited = 0; waited < patience(); waited += step) {
            action();
            pollfd entry{.fd = fd_.get(), .events = POLLIN, .revents = 0};
            if (::poll(&entry, 1, step) == 0) continue;
            char record[8192];
            for (ssize_t length; (length = ::read(fd_.get(), record, sizeof record)) >= 0 || errno == EPIPE;)
                if (length > 0 &&
                    std::string_view(record, static_cast<std::size_t>(length)).find(line) != std::string_view::npos)
                    return true;
        }
        return false;
    }

  private:
    static constexpr int step = 100;
    Fd fd_;
};

TEST(Kernel, DescriptorHasItsName) {
    const Fd fd = create();
    EXPECT_EQ(std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd.get())),
              "anon_inode:[mutex_proxy]");
}

TEST(Kernel, AnnouncesItself) {
    const std::string directory = "/sys/kernel/mutex_proxy/";
    EXPECT_EQ(file_text(directory + "syscall_number"), std::to_string(::mprox_syscall_number()) + "\n");
    EXPECT_EQ(file_text(directory + "abi_version"), std::to_string(MUTEX_PROXY_ABI_VERSION) + "\n");
    const int status = in_child([&directory] {
        if (!become(65534)) return 101;
        return file_text(directory + "syscall_number").empty() ? 102 : 0;
    });
    EXPECT_EQ(status, 0) << "everybody may know";
}

TEST(Kernel, FlagsAreOfThirtyTwoBits) {
    const Fd fd(static_cast<int>(::syscall(::mprox_syscall_number(), 0xFFFFFFFF00000001)));
    ASSERT_TRUE(fd) << ::strerrorname_np(errno);
    EXPECT_EQ(::fcntl(fd.get(), F_GETFD), FD_CLOEXEC);
}

TEST(Kernel, SeeksNowhere) {
    const Fd fd = create();
    char text[MUTEX_PROXY_SNAPSHOT_MAX];
    EXPECT_EQ(error_of(::lseek(fd.get(), 0, SEEK_SET)), ESPIPE);
    EXPECT_EQ(error_of(::pread(fd.get(), text, sizeof text, 0)), ESPIPE);
    EXPECT_EQ(error_of(::pwrite(fd.get(), "", 1, 0)), ESPIPE);
    EXPECT_GT(::read(fd.get(), text, sizeof text), 0);
}

TEST(KernelLog, TellsWhoHasMadeADescriptor) {
    Log log;
    const std::string who = std::to_string(::getpid()) + " (abi_test)";
    int number = -1;
    const auto make = [&number](unsigned flags) { return [&number, flags] { number = create(flags).get(); }; };
    make(0)();
    EXPECT_TRUE(log.tells(
        "mutex_proxy: Created fd " + std::to_string(number) + " for process " + who + " with flags 0x0", make(0)));
    EXPECT_TRUE(log.tells(
        "mutex_proxy: Created fd " + std::to_string(number) + " for process " + who + " with flags 0x7", make(7)));
}

TEST(KernelLog, TellsWhoWasNotPermitted) {
    Log log;
    EXPECT_TRUE(log.tells("(abi_test) of uid 65534",
                          [] { in_child([] { return become(65534) ? error_of(::mprox_create(0)) : 101; }); }));
}

}  // namespace
}  // namespace conformance
