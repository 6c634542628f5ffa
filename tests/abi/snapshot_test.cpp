// SPDX-License-Identifier: MIT
// Reading: one whole snapshot, each generation once, at most ten times a second.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/uio.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <mutex>
#include <set>
#include <thread>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

ssize_t read_into(const Fd& fd, std::string& text, std::size_t size = MUTEX_PROXY_SNAPSHOT_MAX) {
    text.assign(size, '\0');
    const ssize_t length = ::read(fd.get(), text.data(), text.size());
    if (length >= 0) text.resize(static_cast<std::size_t>(length));
    return length;
}

TEST(Snapshots, HaveEveryLineInItsOrder) {
    const Fd fd = create();
    configure(fd, "server socks5://10.0.0.1\nserver http://[::1]\n");
    const Snapshot snapshot = read_snapshot(fd);
    const std::vector<std::string> keys = {"state",    "generation", "scope",    "owner",  "members", "strategy",
                                           "on-close", "timeout",    "udp",      "bypass", "servers", "server",
                                           "server",   "flows",      "connects", "bytes",  "error"};
    EXPECT_EQ(snapshot.keys, keys);
    EXPECT_EQ(snapshot["flows"], "active=0 connecting=0");
    EXPECT_EQ(snapshot["connects"], "connected=0 refused=0 failed=0 bypassed=0 blocked=0");
    EXPECT_EQ(snapshot["bytes"], "sent=0 received=0");
    EXPECT_EQ(snapshot.number("generation"), stats_of(fd).generation);
}

TEST(Snapshots, NameTheirOwner) {
    Process child([](const Link& link) {
        if (::prctl(PR_SET_NAME, "an owner") != 0 || ::setresgid(4711, 4711, -1u) != 0 ||
            ::setresuid(4712, 4712, 0) != 0)
            return 101;
        if (::seteuid(0) != 0) return 102;
        const Fd fd(::mprox_create(0));
        link.give(fd.get());
        return stay(link);
    });
    const Fd fd = child.link().take();
    ASSERT_TRUE(fd);
    ASSERT_EQ(child.link().hear(), 1);
    const std::string owner = read_snapshot(fd)["owner"];
    EXPECT_TRUE(owner.starts_with("pid=" + std::to_string(child.pid()) + " uid=")) << owner;
    EXPECT_TRUE(owner.ends_with(" comm=an owner")) << owner;
    EXPECT_NE(owner.find(" gid=4711 "), std::string::npos) << owner;
}

TEST(Snapshots, AreReadOnceForEachGeneration) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    std::string text;
    ASSERT_GT(read_into(fd, text), 0) << "a new descriptor is readable at once";
    for (int i = 0; i < 3; ++i) ASSERT_EQ(error_of(read_into(fd, text)), EAGAIN);
    const std::uint64_t before = stats_of(fd).generation;
    configure(fd, "timeout 9\n");
    EXPECT_GT(stats_of(fd).generation, before);
    EXPECT_GT(read_snapshot(fd).number("generation"), before);
    EXPECT_EQ(error_of(read_into(fd, text)), EAGAIN);
}

TEST(Snapshots, LookingElsewhereReadsNothing) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    std::string text;
    fdinfo_of(fd);
    config_of(fd);
    stats_of(fd);
    ASSERT_GT(read_into(fd, text), 0);
    fdinfo_of(fd);
    config_of(fd);
    stats_of(fd);
    EXPECT_EQ(error_of(read_into(fd, text)), EAGAIN);
}

TEST(Snapshots, TooSmallABufferConsumesNothing) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    configure(fd, "server socks5://10.0.0.1\n");
    std::string text, whole;
    for (const std::size_t size : {1, 7, 64, 200}) EXPECT_EQ(error_of(read_into(fd, text, size)), EINVAL) << size;
    EXPECT_TRUE(is_ready(fd, POLLIN));
    ASSERT_GT(read_into(fd, whole), 0);
    configure(fd, "server socks5://10.0.0.1\n");
    ASSERT_TRUE(await(fd, POLLIN));
    // The generation may have become a digit longer; nothing else is other than before.
    const std::size_t size = Snapshot(whole).text.size() + std::to_string(stats_of(fd).generation).size() -
                             Snapshot(whole)["generation"].size();
    EXPECT_EQ(error_of(read_into(fd, text, size - 1)), EINVAL);
    EXPECT_EQ(read_into(fd, text, size), static_cast<ssize_t>(size)) << "exactly its length suffices";
}

TEST(Snapshots, BadPointerConsumesNothing) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    const Edge edge;
    EXPECT_EQ(error_of(::read(fd.get(), edge.beyond(), MUTEX_PROXY_SNAPSHOT_MAX)), EFAULT);
    EXPECT_EQ(error_of(::read(fd.get(), edge.last(16), MUTEX_PROXY_SNAPSHOT_MAX)), EFAULT);
    EXPECT_TRUE(is_ready(fd, POLLIN));
    EXPECT_EQ(read_snapshot(fd)["state"], "disabled");
}

TEST(Snapshots, ReadvIsOneRead) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK);
    std::string first(40, '\0'), second(MUTEX_PROXY_SNAPSHOT_MAX, '\0');
    const iovec pieces[] = {{first.data(), first.size()}, {second.data(), second.size()}};
    const ssize_t length = ::readv(fd.get(), pieces, 2);
    ASSERT_GT(length, static_cast<ssize_t>(first.size())) << ::strerrorname_np(errno);
    second.resize(static_cast<std::size_t>(length) - first.size());
    EXPECT_EQ(Snapshot(first + second)["error"], "none");
    EXPECT_FALSE(is_ready(fd, POLLIN));
}

TEST(Snapshots, NonblockCanBeChanged) {
    const Fd fd = create();
    std::string text;
    ASSERT_GT(read_into(fd, text), 0);
    ASSERT_EQ(::fcntl(fd.get(), F_SETFL, O_NONBLOCK), 0);
    EXPECT_EQ(error_of(read_into(fd, text)), EAGAIN);
}

/// A thread that reads once; the descriptor has been drained before.
class Reader {
  public:
    explicit Reader(const Fd& fd)
        : thread_([this, &fd] {
              tid = ::gettid();
              tid.notify_one();
              result = read_into(fd, text);
              error = error_of(result);
              done = true;
          }) {
        tid.wait(0);
        await_asleep(tid);
    }
    void join() { thread_.join(); }
    [[nodiscard]] pthread_t handle() { return thread_.native_handle(); }

    std::atomic<pid_t> tid = 0;
    std::atomic<bool> done = false;
    std::string text;
    ssize_t result = -1;
    int error = -1;

  private:
    std::jthread thread_;  // last: it uses the others
};

TEST(Snapshots, ReadWaitsForTheNextGeneration) {
    const Fd fd = create();
    drain(fd);
    Reader reader(fd);
    EXPECT_FALSE(reader.done);
    fdinfo_of(fd);
    stats_of(fd);
    await_asleep(reader.tid);
    EXPECT_FALSE(reader.done) << "looking is no news";
    configure(fd, "timeout 9\n");
    reader.join();
    ASSERT_GT(reader.result, 0);
    EXPECT_EQ(Snapshot(reader.text)["timeout"], "9");
}

TEST(Snapshots, ReadIsWokenByARefusedConfiguration) {
    const Fd fd = create();
    drain(fd);
    Reader reader(fd);
    EXPECT_EQ(write_error(fd, "nonsense\n"), EINVAL);
    reader.join();
    ASSERT_GT(reader.result, 0);
    EXPECT_TRUE(Snapshot(reader.text)["error"].starts_with("line 1, column 1: "));
}

TEST(Snapshots, ReadIsInterruptedBySignals) {
    struct sigaction action {
    }, before{};
    action.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
    const Fd fd = create();
    drain(fd);
    {
        Reader reader(fd);
        ::pthread_kill(reader.handle(), SIGUSR1);
        reader.join();
        EXPECT_EQ(reader.error, EINTR);
    }
    action.sa_flags = SA_RESTART;
    ASSERT_EQ(::sigaction(SIGUSR1, &action, nullptr), 0);
    Reader reader(fd);
    ::pthread_kill(reader.handle(), SIGUSR1);
    configure(fd, "timeout 9\n");
    reader.join();
    EXPECT_GT(reader.result, 0) << "restarted";
    ::sigaction(SIGUSR1, &before, nullptr);
}

TEST(Snapshots, AtMostTenInASecond) {
    const Fd fd = create();
    drain(fd);
    const auto start = std::chrono::steady_clock::now();
    constexpr int reads = 12;
    for (int i = 0; i < reads; ++i) {
        configure(fd, "timeout " + std::to_string(i + 1) + "\n");
        EXPECT_EQ(read_snapshot(fd)["timeout"], std::to_string(i + 1));
    }
    const auto took = std::chrono::steady_clock::now() - start;
    // The first may come at once; each of the others a tenth of a second after the one before, timer ticks aside.
    EXPECT_GE(took, (reads - 1) * std::chrono::milliseconds(90));
}

// The change falls into the pause after a read; the writer is then silent, so somebody else must end the pause.
TEST(Snapshots, NothingIsLostInThePause) {
    const Fd fd = create();
    drain(fd);
    for (int i = 1; i <= 5; ++i) {
        configure(fd, "timeout 3000\n");
        configure(fd, "timeout " + std::to_string(i) + "\n");
        EXPECT_EQ(read_snapshot(fd)["timeout"], std::to_string(i));
    }
}

TEST(Snapshots, SeveralReadersShareTheGenerations) {
    const Fd fd = create();
    std::mutex mutex;
    std::multiset<std::uint64_t> seen;
    std::atomic<std::uint64_t> latest = 0;
    std::atomic<bool> end = false;
    std::atomic<int> alive = 4;
    const auto follow = [&] {
        std::string text;
        for (std::uint64_t last = 0; !end && read_into(fd, text) > 0;) {
            const std::uint64_t generation = Snapshot(text).number("generation");
            EXPECT_GT(generation, last) << "a reader goes back";
            last = latest = generation;
            const std::lock_guard lock(mutex);
            seen.insert(generation);
        }
        --alive;
    };
    std::vector<std::jthread> readers;
    for (int i = 0; i < 4; ++i) readers.emplace_back(follow);
    for (int i = 1; alive > 0; ++i) {  // after the eighth round whoever reads once more ends
        end = i > 8;
        const std::uint64_t before = stats_of(fd).generation;
        configure(fd, "timeout " + std::to_string(i) + "\n");
        while (latest <= before && alive > 0) ::sched_yield();
    }
    readers.clear();
    std::uint64_t last = 0;
    for (const std::uint64_t generation : seen) {
        EXPECT_NE(generation, last) << "read twice";
        last = generation;
    }
}

TEST(Snapshots, DuplicatesAreOneDescriptor) {
    const Fd fd = create(MUTEX_PROXY_NONBLOCK), other(::dup(fd.get()));
    std::string text;
    ASSERT_GT(read_into(other, text), 0);
    EXPECT_EQ(error_of(read_into(fd, text)), EAGAIN);
    EXPECT_FALSE(is_ready(other, POLLIN));
    configure(other, "timeout 9\n");
    EXPECT_EQ(read_snapshot(fd)["timeout"], "9");
    EXPECT_EQ(error_of(read_into(other, text)), EAGAIN);
}

TEST(Fdinfo, HasTheMainLines) {
    const Fd fd = create();
    configure(fd, "server socks5://u:sesame@10.0.0.1\ntimeout 9\n");
    const Snapshot snapshot = read_snapshot(fd);
    const std::string info = fdinfo_of(fd);
    for (const auto& [key, value] : snapshot.values)
        EXPECT_EQ(has_line(info, key + ": " + value), key != "error") << key << ": " << value << " in:\n" << info;
    EXPECT_EQ(info.find("10.0.0.1"), std::string::npos);
    EXPECT_TRUE(info.starts_with("pos:")) << "the kernel's own lines are there";
}

}  // namespace
}  // namespace conformance
