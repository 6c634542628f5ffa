// SPDX-License-Identifier: MIT
// One context behind several descriptors and in several hands; two contexts that stay apart.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

TEST(Share, ADuplicateIsTheSameContext) {
    Fd fd = create();
    const Fd other(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    configure(fd, "timeout 9\n");
    EXPECT_EQ(config_of(other), config_of(fd));
    EXPECT_EQ(stats_of(other).generation, stats_of(fd).generation);
    fd.reset();
    configure(other, "timeout 10\n");
    EXPECT_EQ(read_snapshot(other)["timeout"], "10") << "it lives while any descriptor does";
}

TEST(Share, AForkedDescriptorIsTheSameContext) {
    const Fd fd = create();
    drain(fd);
    EXPECT_EQ(in_child([&fd] { return write_error(fd, "timeout 9\n"); }), 0);
    EXPECT_EQ(read_snapshot(fd)["timeout"], "9");
}

TEST(Share, ExecClosesOnlyWhatIsMarked) {
    const Fd kept = create(0), closed = create(MUTEX_PROXY_CLOEXEC);
    const std::string script = "test -e /proc/self/fd/" + std::to_string(kept.get()) +
                               " || exit 1; test -e /proc/self/fd/" + std::to_string(closed.get()) +
                               " && exit 2; echo timeout 9 >&" + std::to_string(kept.get());
    EXPECT_EQ(in_child([&script] {
                  ::execl("/bin/sh", "sh", "-c", script.c_str(), nullptr);
                  return 127;
              }),
              0);
    EXPECT_EQ(read_snapshot(kept)["timeout"], "9");
}

TEST(Share, AnotherUserWhoIsGivenItMayUseIt) {
    const Fd fd = create();
    configure(fd, "server socks5://u:sesame@10.0.0.1\n");
    const std::string owner = read_snapshot(fd)["owner"];
    Process child([](const Link& link) {
        if (!become(65534)) return 101;
        link.say(1);
        const Fd given = link.take();
        if (!given) return 102;
        if (error_of(::mprox_create(0)) != EPERM) return 103;
        if (!await(given, POLLOUT) || stats_of(given).generation == 0) return 104;
        if (config_of(given).find("sesame") != std::string::npos) return 105;
        if (write_error(given, "server http://10.0.0.2\n") != 0) return 106;
        if (read_snapshot(given).servers.size() != 1) return 107;
        if (!has_line(fdinfo_of(given), "servers: 1")) return 108;
        if (::mprox_disable(given.get()) != 0) return 109;
        link.say(2);
        return stay(link);
    });
    ASSERT_EQ(child.link().hear(), 1);
    child.link().give(fd.get());
    ASSERT_EQ(child.link().hear(), 2) << child.wait();
    configure(fd, "timeout 9\n");
    EXPECT_EQ(read_snapshot(fd)["owner"], owner) << "the owner stays who made it";
}

TEST(Share, InFlightItLives) {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const Link left{Fd(ends[0])}, right{Fd(ends[1])};
    {
        const Fd fd = create();
        configure(fd, "timeout 9\n");
        left.give(fd.get());
    }
    const Fd fd = right.take();
    ASSERT_TRUE(fd);
    EXPECT_EQ(read_snapshot(fd)["timeout"], "9");
}

TEST(Share, AReaderKeepsItWhenItsNumberIsClosed) {
    const Fd fd = create();
    drain(fd);
    const int number = ::dup(fd.get());
    std::atomic<pid_t> tid = 0;
    ssize_t length = -1;
    std::jthread reader([&] {
        tid = ::gettid();
        tid.notify_one();
        char text[MUTEX_PROXY_SNAPSHOT_MAX];
        length = ::read(number, text, sizeof text);
    });
    tid.wait(0);
    await_asleep(tid);
    ::close(number);
    configure(fd, "timeout 9\n");
    reader.join();
    EXPECT_GT(length, 0);
}

TEST(Apart, WhatHappensToOneIsNoNewsToTheOther) {
    const Fd one = create(), other = create(MUTEX_PROXY_NONBLOCK);
    drain(one);
    drain(other);
    const auto before = stats_of(other);
    configure(one, "server socks5://10.0.0.1\n");
    EXPECT_EQ(write_error(one, "nonsense\n"), EINVAL);
    ASSERT_EQ(::mprox_attach(one.get(), pidfd_of(::getpid()).get()), 0);
    EXPECT_EQ(read_snapshot(one)["members"], "1");
    EXPECT_FALSE(is_ready(other, POLLIN));
    const auto after = stats_of(other);
    EXPECT_EQ(std::memcmp(&before, &after, sizeof before), 0);
    EXPECT_EQ(config_of(other).find("10.0.0.1"), std::string::npos);
    ASSERT_EQ(::mprox_detach(one.get(), pidfd_of(::getpid()).get()), 0);
}

TEST(Apart, ManyAtOnce) {
    std::vector<Fd> fds;
    for (int i = 0; i < 200; ++i) fds.push_back(create());
    for (int i = 0; i < 200; ++i) configure(fds[i], "timeout " + std::to_string(i + 1) + "\n");
    for (int i = 0; i < 200; ++i) EXPECT_EQ(read_snapshot(fds[i])["timeout"], std::to_string(i + 1));
}

}  // namespace
}  // namespace conformance
