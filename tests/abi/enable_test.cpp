// SPDX-License-Identifier: MIT
// ENABLE and DISABLE, where connections can be caught; Bare: where they cannot.
#include <sched.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

/// A process that enables every descriptor it is given (their numbers, inherited); it says the error.
Process enabler() {
    return Process([](const Link& link) {
        for (int fd = link.hear(); fd > 0; fd = link.hear()) link.say(error_of(::mprox_enable(fd)));
        return 0;
    });
}

void enable(Process& process, const Fd& fd) {
    process.link().say(fd.get());
    ASSERT_EQ(process.link().hear(), 0);
}

TEST(Bare, EnableIsNotSupported) {
    const Fd fd = create();
    const std::uint64_t before = stats_of(fd).generation;
    EXPECT_EQ(error_of(::mprox_enable(fd.get())), EOPNOTSUPP);
    const auto stats = stats_of(fd);
    EXPECT_EQ(stats.enabled, 0u);
    EXPECT_EQ(stats.members, 0u);
    EXPECT_EQ(stats.generation, before);
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
}

TEST(Bare, EnableOfAGlobalContextIsNotSupported) {
    EXPECT_EQ(error_of(::mprox_enable(create(MUTEX_PROXY_GLOBAL).get())), EOPNOTSUPP);
}

TEST(Enable, TurnsOnAndMakesTheCallerAMember) {
    const Fd fd = create();
    Process child = enabler();
    drain(fd);
    enable(child, fd);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_EQ(snapshot["state"], "enabled");
    EXPECT_EQ(snapshot["members"], "1") << "the caller, not who holds the descriptor";
    EXPECT_EQ(stats_of(fd).enabled, 1u);
    EXPECT_EQ(::mprox_detach(fd.get(), child.pidfd().get()), 0);
    EXPECT_EQ(stats_of(fd).enabled, 1u) << "a member leaves, the context stays on";
}

TEST(Enable, TwiceIsOnce) {
    const Fd fd = create();
    Process child = enabler();
    enable(child, fd);
    drain(fd);
    enable(child, fd);
    EXPECT_EQ(stats_of(fd).members, 1u);
}

TEST(Enable, NeedsNoConfiguration) {
    const Fd fd = create();
    Process child = enabler();
    enable(child, fd);
    configure(fd, "server socks5://10.0.0.1\n");
    EXPECT_EQ(stats_of(fd).enabled, 1u);
}

TEST(Enable, ByAThreadIsForTheProcess) {
    const Fd fd = create();
    Process child([&fd](const Link& link) {
        int error = -1;
        std::thread([&] { error = error_of(::mprox_enable(fd.get())); }).join();
        link.say(error);
        return stay(link);
    });
    ASSERT_EQ(child.link().hear(), 0);
    EXPECT_EQ(stats_of(fd).members, 1u);
    EXPECT_EQ(::mprox_detach(fd.get(), child.pidfd().get()), 0);
}

TEST(Enable, TheLastOneWins) {
    const Fd one = create(), other = create();
    Process child = enabler();
    enable(child, one);
    enable(child, other);
    EXPECT_EQ(stats_of(one).members, 0u);
    EXPECT_EQ(stats_of(other).members, 1u);
    EXPECT_EQ(stats_of(one).enabled, 1u) << "it has lost a member, no more";
    enable(child, one);
    EXPECT_EQ(stats_of(one).members, 1u);
    EXPECT_EQ(stats_of(other).members, 0u);
}

TEST(Enable, DisableTurnsOffAndKeepsTheMembers) {
    const Fd fd = create();
    Process child = enabler();
    enable(child, fd);
    drain(fd);
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_EQ(snapshot["state"], "disabled");
    EXPECT_EQ(snapshot["members"], "1");
    EXPECT_EQ(stats_of(fd).enabled, 0u);
    EXPECT_EQ(::mprox_disable(fd.get()), 0) << "twice is no error";
    enable(child, fd);
    EXPECT_EQ(stats_of(fd).enabled, 1u);
    EXPECT_EQ(stats_of(fd).members, 1u);
}

TEST(Enable, GlobalDoesNotMakeMembers) {
    const Fd fd = create(MUTEX_PROXY_GLOBAL);
    Process child = enabler();
    enable(child, fd);
    EXPECT_EQ(stats_of(fd).enabled, 1u);
    EXPECT_EQ(stats_of(fd).members, 0u);
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
    EXPECT_EQ(stats_of(fd).enabled, 0u);
}

TEST(Enable, NeedsNoCapability) {
    const Fd fd = create();
    EXPECT_EQ(in_child([&fd] { return become(65534) ? error_of(::mprox_enable(fd.get())) : 101; }), 0);
    EXPECT_EQ(in_child([&fd] { return become(65534) ? error_of(::mprox_disable(fd.get())) : 101; }), 0);
}

TEST(Enable, OutsideTheUserNamespace) {
    Process child([](const Link& link) {
        if (!become(65534) || ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 101;
        const Fd fd(::mprox_create(0));
        if (!fd) return 102;
        link.give(fd.get());
        return stay(link);
    });
    const Fd fd = child.link().take();
    ASSERT_TRUE(fd);
    EXPECT_EQ(in_child([&fd] { return error_of(::mprox_enable(fd.get())); }), EPERM);
    EXPECT_EQ(stats_of(fd).members, 0u);
}

// Nobody gets out of a context by making a user namespace and one of his own in it.
TEST(Enable, DoesNotReplaceAnOuterUserNamespaces) {
    const Fd fd = create();
    EXPECT_EQ(in_child([&fd] {
                  if (::mprox_enable(fd.get()) != 0 || !become(65534)) return 101;
                  if (::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 102;
                  const Fd own(::mprox_create(0));
                  if (!own) return 103;
                  if (error_of(::mprox_attach(own.get(), pidfd_of(::getpid()).get())) != EPERM) return 104;
                  if (stats_of(fd).members != 1) return 105;
                  return error_of(::mprox_enable(own.get()));
              }),
              EPERM);
}

TEST(Enable, ManyAtOnce) {
    const Fd fds[] = {create(), create(), create()};
    EXPECT_EQ(
        in_child([&fds] {
            std::atomic<int> failed = 0;
            {
                std::vector<std::jthread> threads;
                for (const Fd& fd : fds)
                    threads.emplace_back([&failed, &fd] {
                        for (int i = 0; i < 500; ++i)
                            if (::mprox_enable(fd.get()) != 0 || (i % 3 == 0 && ::mprox_disable(fd.get()) != 0))
                                failed = 1;
                    });
            }
            std::uint64_t members = 0;
            for (const Fd& fd : fds) members += stats_of(fd).members;
            return failed ? 101 : static_cast<int>(members);
        }),
        1);
    for (const Fd& fd : fds) await_members(fd, 0);
}

}  // namespace
}  // namespace conformance
