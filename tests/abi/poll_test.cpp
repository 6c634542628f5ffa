// SPDX-License-Identifier: MIT
// poll, select, epoll: readable exactly when read would not block, writable always.
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

/// An epoll set with one descriptor in it.
class Epoll {
  public:
    Epoll(const Fd& fd, std::uint32_t events) : set_(::epoll_create1(EPOLL_CLOEXEC)), watched_(fd.get()) {
        epoll_event event{.events = events, .data = {.fd = watched_}};
        EXPECT_EQ(::epoll_ctl(set_.get(), EPOLL_CTL_ADD, watched_, &event), 0) << ::strerrorname_np(errno);
    }
    /// What has happened within so many milliseconds; 0: nothing.
    [[nodiscard]] std::uint32_t wait(int timeout) const {
        epoll_event event{};
        const int count = ::epoll_wait(set_.get(), &event, 1, timeout);
        EXPECT_GE(count, 0) << ::strerrorname_np(errno);
        return count > 0 ? event.events : 0;
    }
    void rearm(std::uint32_t events) const {
        epoll_event event{.events = events, .data = {.fd = watched_}};
        EXPECT_EQ(::epoll_ctl(set_.get(), EPOLL_CTL_MOD, watched_, &event), 0);
    }

  private:
    Fd set_;
    int watched_;
};

TEST(Poll, NewDescriptorIsReadableAndWritable) {
    const Fd fd = create();
    pollfd entry{.fd = fd.get(), .events = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM | POLLPRI, .revents = 0};
    ASSERT_EQ(::poll(&entry, 1, 0), 1);
    EXPECT_EQ(entry.revents, POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM);
}

TEST(Poll, WritableOnlyOnceRead) {
    const Fd fd = create();
    drain(fd);
    pollfd entry{.fd = fd.get(), .events = POLLIN | POLLOUT | POLLPRI, .revents = 0};
    ASSERT_EQ(::poll(&entry, 1, 0), 1);
    EXPECT_EQ(entry.revents, POLLOUT);
}

TEST(Poll, Select) {
    const Fd fd = create();
    const auto select_now = [&fd](bool& readable, bool& writable) {
        fd_set in, out, other;
        FD_ZERO(&in);
        FD_ZERO(&out);
        FD_ZERO(&other);
        FD_SET(fd.get(), &in);
        FD_SET(fd.get(), &out);
        FD_SET(fd.get(), &other);
        timeval now{};
        EXPECT_GT(::select(fd.get() + 1, &in, &out, &other, &now), 0);
        readable = FD_ISSET(fd.get(), &in);
        writable = FD_ISSET(fd.get(), &out);
        EXPECT_FALSE(FD_ISSET(fd.get(), &other));
    };
    bool readable = false, writable = false;
    select_now(readable, writable);
    EXPECT_TRUE(readable && writable);
    drain(fd);
    select_now(readable, writable);
    EXPECT_FALSE(readable);
    EXPECT_TRUE(writable);
}

TEST(Poll, WakesWhoWaits) {
    const Fd fd = create();
    drain(fd);
    std::atomic<pid_t> tid = 0;
    std::atomic<bool> woken = false;
    std::jthread waiter([&] {
        tid = ::gettid();
        tid.notify_one();
        EXPECT_TRUE(await(fd, POLLIN));
        woken = true;
    });
    tid.wait(0);
    await_asleep(tid);
    EXPECT_FALSE(woken);
    configure(fd, "timeout 9\n");
    waiter.join();
    EXPECT_TRUE(woken);
}

TEST(Poll, WakesEveryWaiter) {
    const Fd fd = create();
    drain(fd);
    std::atomic<int> woken = 0;
    std::vector<std::jthread> waiters;
    for (int i = 0; i < 8; ++i) waiters.emplace_back([&] { woken += await(fd, POLLIN); });
    configure(fd, "timeout 9\n");
    waiters.clear();
    EXPECT_EQ(woken, 8);
}

TEST(Poll, ReadableMeansThatAReadSucceeds) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    std::jthread writer([&fd](const std::stop_token& stop) {
        for (int i = 0; !stop.stop_requested(); ++i)
            configure(fd, "timeout " + std::to_string(1 + i % 3600) + "\n");
    });
    char text[MUTEX_PROXY_SNAPSHOT_MAX];
    for (int i = 0; i < 8; ++i) {
        ASSERT_TRUE(await(fd, POLLIN));
        ASSERT_GT(::read(fd.get(), text, sizeof text), 0) << ::strerrorname_np(errno);
    }
}

TEST(Epoll, LevelTriggered) {
    const Fd fd = create();
    const Epoll epoll(fd, EPOLLIN);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(epoll.wait(0), EPOLLIN) << "until it is read";
    drain(fd);
    EXPECT_EQ(epoll.wait(0), 0u);
    configure(fd, "timeout 9\n");
    for (int i = 0; i < 3; ++i) EXPECT_EQ(epoll.wait(patience()), EPOLLIN);
    drain(fd);
    EXPECT_EQ(epoll.wait(0), 0u);
}

TEST(Epoll, EdgeTriggered) {
    const Fd fd = create();
    const Epoll epoll(fd, EPOLLIN | EPOLLET);
    EXPECT_EQ(epoll.wait(0), EPOLLIN);
    EXPECT_EQ(epoll.wait(0), 0u) << "once for one change, though unread";
    drain(fd);
    EXPECT_EQ(epoll.wait(0), 0u);
    for (int i = 1; i <= 5; ++i) {
        configure(fd, "timeout " + std::to_string(i) + "\n");
        ASSERT_EQ(epoll.wait(patience()), EPOLLIN) << "change " << i << " in the pause after a read";
        drain(fd);
        EXPECT_EQ(epoll.wait(0), 0u);
    }
    EXPECT_EQ(write_error(fd, "nonsense\n"), EINVAL);
    EXPECT_EQ(epoll.wait(patience()), EPOLLIN) << "a refused configuration is news";
}

TEST(Epoll, EdgeTriggeredSeesAChangeOfWhatWasNotRead) {
    const Fd fd = create();
    const Epoll epoll(fd, EPOLLIN | EPOLLET);
    EXPECT_EQ(epoll.wait(0), EPOLLIN);
    configure(fd, "timeout 9\n");
    EXPECT_EQ(epoll.wait(patience()), EPOLLIN);
}

TEST(Epoll, WritableAlways) {
    const Fd fd = create();
    const Epoll epoll(fd, EPOLLOUT);
    EXPECT_EQ(epoll.wait(0), EPOLLOUT);
    drain(fd);
    EXPECT_EQ(epoll.wait(0), EPOLLOUT);
}

TEST(Epoll, OneShot) {
    const Fd fd = create();
    const Epoll epoll(fd, EPOLLIN | EPOLLONESHOT);
    EXPECT_EQ(epoll.wait(0), EPOLLIN);
    configure(fd, "timeout 9\n");
    EXPECT_EQ(epoll.wait(0), 0u);
    epoll.rearm(EPOLLIN | EPOLLONESHOT);
    EXPECT_EQ(epoll.wait(0), EPOLLIN);
}

// Threads that wait on one edge-triggered set; each event goes to one of them, who reads. None is lost.
TEST(Epoll, EdgeTriggeredWithThreads) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    const Epoll epoll(fd, EPOLLIN | EPOLLET);
    std::atomic<std::uint64_t> read_up_to = 0;
    std::atomic<bool> end = false;
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            char text[MUTEX_PROXY_SNAPSHOT_MAX];
            while (!end) {
                if (!epoll.wait(patience())) break;
                const ssize_t length = ::read(fd.get(), text, sizeof text);
                if (length <= 0) continue;  // another was quicker
                std::uint64_t mine =
                    Snapshot(std::string(text, static_cast<std::size_t>(length))).number("generation");
                for (std::uint64_t now = read_up_to; now < mine && !read_up_to.compare_exchange_weak(now, mine);)
                    continue;
                read_up_to.notify_all();
            }
        });
    const auto change = [&](int i) {
        configure(fd, "timeout " + std::to_string(i) + "\n");
        const std::uint64_t target = stats_of(fd).generation;
        for (std::uint64_t now = read_up_to; now < target; now = read_up_to) read_up_to.wait(now);
    };
    for (int i = 1; i <= 8; ++i) change(i);
    end = true;
    // A set that stays ready lets every thread out, however many have waited.
    epoll.rearm(EPOLLIN | EPOLLOUT);
    threads.clear();
}

TEST(Epoll, SurvivesTheDescriptor) {
    Fd fd = create();
    const Epoll epoll(fd, EPOLLIN);
    fd.reset();
    EXPECT_EQ(epoll.wait(0), 0u) << "the set forgets what is closed";
}

}  // namespace
}  // namespace conformance
