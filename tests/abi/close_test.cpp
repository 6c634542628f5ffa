// SPDX-License-Identifier: MIT
// Closing while others read, poll, write and ask; many descriptors; what is left behind.
#include <fcntl.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <functional>
#include <initializer_list>
#include <thread>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

/// Calls `operation` on a number that another thread opens and closes all the while; EBADF is the one more error.
void race(const std::function<int(int)>& operation, std::initializer_list<int> errors,
          unsigned flags = MUTEX_PROXY_NONBLOCK) {
    // Far above the others: nothing else that is opened meanwhile may get it.
    const int number = ::fcntl(create(flags).get(), F_DUPFD_CLOEXEC, 500);
    ASSERT_GE(number, 500);
    std::atomic<bool> end = false;
    std::vector<std::jthread> threads;
    for (int i = 0; i < 3; ++i)
        threads.emplace_back([&] {
            while (!end) {
                const int error = operation(number);
                if (error && error != EBADF && std::find(errors.begin(), errors.end(), error) == errors.end()) {
                    ADD_FAILURE() << ::strerrorname_np(error);
                    return;
                }
            }
        });
    for (int i = 0; i < 1000; ++i) {
        const Fd next = create(flags);
        ::dup2(next.get(), number);  // closes what was there
        if (i % 3 == 0) ::close(number);
        ::dup2(next.get(), number);
    }
    end = true;
    threads.clear();
    ::close(number);
}

TEST(Close, WhileReading) {
    race(
        [](int fd) {
            char text[MUTEX_PROXY_SNAPSHOT_MAX];
            return error_of(::read(fd, text, sizeof text));
        },
        {EAGAIN});
}

TEST(Close, WhilePolling) {
    race(
        [](int fd) {
            pollfd entry{.fd = fd, .events = POLLIN | POLLOUT, .revents = 0};
            return error_of(::poll(&entry, 1, 0));
        },
        {});
}

TEST(Close, WhileWatching) {
    race(
        [](int fd) {
            const Fd set(::epoll_create1(EPOLL_CLOEXEC));
            epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.fd = fd}};
            const int error = error_of(::epoll_ctl(set.get(), EPOLL_CTL_ADD, fd, &event));
            return error ? error : error_of(::epoll_wait(set.get(), &event, 1, 0));
        },
        {});
}

TEST(Close, WhileWriting) {
    race(
        [](int fd) {
            constexpr std::string_view text = "server socks5://u:p@10.0.0.1\nbypass 10.0.0.0/8\n";
            return error_of(::write(fd, text.data(), text.size()));
        },
        {});
}

TEST(Close, WhileAsking) {
    race(
        [](int fd) {
            mutex_proxy_stats stats{};
            stats.size = sizeof stats;
            const int error = error_of(::mprox_get_stats(fd, &stats));
            if (error) return error;
            char text[256];
            return error_of(::mprox_get_config(fd, text, sizeof text, nullptr));
        },
        {});
}

TEST(Close, WhileItsFdinfoIsRead) {
    race([](int fd) { return file_text("/proc/self/fdinfo/" + std::to_string(fd)).empty() ? EBADF : 0; }, {});
}

TEST(Close, WhileMembersComeAndGo) {
    const Fd self = pidfd_of(::getpid());
    race(
        [&self](int fd) {
            const int error = error_of(::mprox_attach(fd, self.get()));
            return error ? error : error_of(::mprox_detach(fd, self.get()));
        },
        {ENOENT});
    const Fd fd = create();
    ASSERT_EQ(::mprox_attach(fd.get(), self.get()), 0);
    EXPECT_EQ(::mprox_detach(fd.get(), self.get()), 0) << "and it is nobody's member";
}

// Blocking readers hold the context: they are woken by the next news and end with the descriptor they have.
TEST(Close, WhileOthersWait) {
    for (int i = 0; i < 20; ++i) {
        Fd fd = create();
        drain(fd);
        const Fd other(::dup(fd.get()));
        std::atomic<int> woken = 0;
        std::vector<std::jthread> waiters;
        waiters.emplace_back([&, number = fd.get()] {
            char text[MUTEX_PROXY_SNAPSHOT_MAX];
            const ssize_t length = ::read(number, text, sizeof text);
            woken += length > 0 || errno == EBADF;
        });
        waiters.emplace_back([&, number = fd.get()] {
            pollfd entry{.fd = number, .events = POLLIN, .revents = 0};
            woken += ::poll(&entry, 1, patience()) == 1;
        });
        fd.reset();
        // The reader may take the news before the other has looked for it: what comes after wakes that one.
        for (int seconds = 1; woken < 2; ++seconds)
            configure(other, "timeout " + std::to_string(1 + seconds % 3600) + "\n");
        waiters.clear();
    }
}

TEST(Close, MembersOfAClosedContextAreFree) {
    Process child(stay);
    ASSERT_EQ(child.link().hear(), 1);
    for (int i = 0; i < 100; ++i) {
        Fd closing = create();
        ASSERT_EQ(::mprox_attach(closing.get(), child.pidfd().get()), 0);
        closing.reset();
        const Fd fd = create();
        EXPECT_EQ(error_of(::mprox_detach(fd.get(), child.pidfd().get())), ENOENT);
        ASSERT_EQ(::mprox_attach(fd.get(), child.pidfd().get()), 0);
        EXPECT_EQ(stats_of(fd).members, 1u);
    }
}

/// KiB that the kernel holds for itself, once what it frees later has been freed.
long kernel_memory() {
    for (int i = 0; i < 3; ++i)
        ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);  // waits for a grace period of RCU
    const std::string text = file_text("/proc/meminfo");
    long sum = 0;
    for (const std::string_view key :
         {"\nSlab:", "\nVmallocUsed:", "\nPercpu:", "\nKernelStack:", "\nPageTables:"}) {
        const std::size_t at = text.find(key);
        if (at != std::string::npos) sum += std::strtol(text.c_str() + at + key.size(), nullptr, 10);
    }
    return sum;
}

/// KASAN keeps what was freed lately, up to a 32nd of all memory. Once that is full of this, it does not grow any
/// more.
void fill_quarantine() {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends), 0);
    const Fd left(ends[0]), right(ends[1]);
    std::string message(7'000, 'm');  // 8 KiB of the slab each
    for (int i = 0; i < 20'000; ++i) {
        ASSERT_EQ(::send(left.get(), message.data(), message.size(), 0), static_cast<ssize_t>(message.size()));
        ASSERT_EQ(::recv(right.get(), message.data(), message.size(), 0), static_cast<ssize_t>(message.size()));
    }
}

/// Runs `round` often, twice; the second time the kernel's memory must not grow by `limit` KiB. Freeing may lag.
void expect_no_leak(int rounds, long limit, const std::function<void()>& round) {
    const std::size_t open = open_descriptors();
    for (int i = 0; i < rounds; ++i) round();
    fill_quarantine();
    const long before = kernel_memory();
    for (int i = 0; i < rounds; ++i) round();
    long grown = kernel_memory() - before;
    for (int i = 0; i < 100 && grown >= limit; ++i) grown = kernel_memory() - before;
    EXPECT_LT(grown, limit) << "KiB after " << rounds << " rounds";
    EXPECT_EQ(open_descriptors(), open);
}

TEST(Leak, TenThousandCreatedAndClosed) {
    expect_no_leak(10'000, 3'000,
                   [] { ASSERT_TRUE(create(MUTEX_PROXY_CLOEXEC)); });  // a context takes more than 0.3 KiB
}

TEST(Leak, Configurations) {
    std::string text;
    for (int i = 0; i < MUTEX_PROXY_SERVERS_MAX; ++i)
        text += "server socks5://someone:something@10.0.0.1\n";  // 64 KiB in the kernel
    expect_no_leak(500, 15'000, [&text] {
        const Fd fd = create();
        configure(fd, text);
        configure(fd, text);
        EXPECT_EQ(write_error(fd, text + "nonsense"), EINVAL);
        config_of(fd);
        read_snapshot(fd);
    });
}

TEST(Leak, Members) {
    const Fd self = pidfd_of(::getpid());
    expect_no_leak(1'000, 3'000, [&self] {
        const Fd fd = create(), other = create();
        for (const Fd* context : {&fd, &other}) ASSERT_EQ(::mprox_attach(context->get(), self.get()), 0);
        const pid_t pid = ::vfork();
        if (pid == 0) ::_exit(0);
        ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
    });
    const Fd fd = create();  // takes this process out of the last one
    ASSERT_EQ(::mprox_attach(fd.get(), self.get()), 0);
    ASSERT_EQ(::mprox_detach(fd.get(), self.get()), 0);
}

long kernel_total(const std::string& name) {
    const std::string text = file_text("/sys/kernel/mutex_proxy/" + name);
    long value = -1;
    std::from_chars(text.data(), text.data() + text.size(), value);
    EXPECT_GE(value, 0) << name << ": '" << text << "'";
    return value;
}

TEST(KernelLeak, TotalsReturn) {
    const long contexts = kernel_total("contexts"), members = kernel_total("members");
    {
        Process child(stay);  // born before, so that it holds none of these
        std::vector<Fd> fds;
        for (int i = 0; i < 100; ++i) fds.push_back(create());
        EXPECT_EQ(kernel_total("contexts"), contexts + 100);
        ASSERT_EQ(::mprox_attach(fds[0].get(), child.pidfd().get()), 0);
        EXPECT_EQ(kernel_total("members"), members + 1);
        const Fd other(::dup(fds[1].get()));
        fds.resize(1);
        EXPECT_EQ(kernel_total("contexts"), contexts + 2) << "one of them as a duplicate";
        child.kill(SIGKILL);
        child.await_end();
        await_members(fds[0], 0);
    }
    EXPECT_EQ(kernel_total("contexts"), contexts);
    EXPECT_EQ(kernel_total("members"), members);
}

}  // namespace
}  // namespace conformance
