// SPDX-License-Identifier: MIT
// Members: joining by ATTACH, leaving, what children, threads and executed programs are. (Joining by ENABLE:
// enable_test.)
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {
namespace {

void attach(const Fd& fd, const Process& process) {
    ASSERT_EQ(error_of(::mprox_attach(fd.get(), process.pidfd().get())), 0);
}

/// A child that stays, and forks a further one each time it is told 1; it says the pid. 0 ends it and them.
int breed(const Link& link) {
    link.say(1);
    while (link.hear() == 1) {
        const pid_t pid = ::fork();
        if (pid == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) ::pause();
        }
        link.say(pid);
    }
    return 0;
}

TEST(Member, AttachMakesAMember) {
    const Fd fd = create();
    Process child(stay);
    ASSERT_EQ(child.link().hear(), 1);
    const std::uint64_t before = stats_of(fd).generation;
    drain(fd);
    attach(fd, child);
    EXPECT_EQ(stats_of(fd).members, 1u);
    EXPECT_EQ(stats_of(fd).enabled, 0u) << "ATTACH does not turn the context on";
    EXPECT_GT(stats_of(fd).generation, before);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_EQ(snapshot["members"], "1");
    EXPECT_EQ(snapshot["state"], "disabled");
    attach(fd, child);
    EXPECT_EQ(stats_of(fd).members, 1u) << "twice is once";
}

TEST(Member, DetachMakesItNone) {
    const Fd fd = create();
    Process child(stay);
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    drain(fd);
    EXPECT_EQ(::mprox_detach(fd.get(), child.pidfd().get()), 0);
    EXPECT_EQ(read_snapshot(fd)["members"], "0");
    EXPECT_EQ(error_of(::mprox_detach(fd.get(), child.pidfd().get())), ENOENT);
    attach(fd, child);
    EXPECT_EQ(stats_of(fd).members, 1u) << "and back";
}

TEST(Member, EndsWithTheProcess) {
    const Fd fd = create();
    {
        Process child(stay);
        ASSERT_EQ(child.link().hear(), 1);
        attach(fd, child);
        child.link().say(0);
        child.await_end();
        await_members(fd, 0);
        EXPECT_EQ(child.wait(), 0);
    }
    Process child(stay);
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    child.kill(SIGKILL);
    child.await_end();
    await_members(fd, 0);
}

TEST(Member, ChildrenAreBornMembers) {
    const Fd fd = create();
    Process child(breed);
    ASSERT_EQ(child.link().hear(), 1);
    child.link().say(1);
    ASSERT_GT(child.link().hear(), 0);
    attach(fd, child);
    EXPECT_EQ(stats_of(fd).members, 1u) << "a child from before is none";
    drain(fd);
    for (std::uint64_t members = 2; members <= 5; ++members) {
        child.link().say(1);
        ASSERT_GT(child.link().hear(), 0);
        EXPECT_EQ(read_snapshot(fd).number("members"), members);
    }
}

TEST(Member, ChildrenStayWhenTheParentLeavesOrEnds) {
    const Fd fd = create();
    Process child([](const Link& link) {
        link.say(1);
        link.hear();
        const pid_t pid = ::fork();
        if (pid == 0) {
            char byte = 0;
            while (::recv(link.get(), &byte, 1, MSG_PEEK) > 0)
                ::sched_yield();  // never heard: it stays until hung up
            ::_exit(0);
        }
        link.say(pid);
        link.hear();
        return 0;
    });
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    child.link().say(1);
    ASSERT_GT(child.link().hear(), 0);
    await_members(fd, 2);
    EXPECT_EQ(::mprox_detach(fd.get(), child.pidfd().get()), 0);
    EXPECT_EQ(stats_of(fd).members, 1u);
    child.kill(SIGKILL);
    child.await_end();
    EXPECT_EQ(stats_of(fd).members, 1u);
    child.link().hang_up();
    await_members(fd, 0);
}

TEST(Member, VforkedChildrenAreMembers) {
    const Fd fd = create();
    ASSERT_EQ(::mprox_attach(fd.get(), pidfd_of(::getpid()).get()), 0);
    {
        Process child = Process::executed();  // posix_spawn: vfork and exec
        ASSERT_EQ(child.link().hear(), 1);
        EXPECT_EQ(stats_of(fd).members, 2u);
    }
    await_members(fd, 1);
    ASSERT_EQ(::mprox_detach(fd.get(), pidfd_of(::getpid()).get()), 0);
}

TEST(Member, ExecChangesNothing) {
    const Fd fd = create(MUTEX_PROXY_CLOEXEC);
    Process child([](const Link& link) {
        link.say(1);
        if (link.hear() != 2) return 101;
        const Fd inherited(::dup(link.get()));  // without CLOEXEC
        const std::string number = std::to_string(inherited.get());
        ::execl("/proc/self/exe", "abi_test", "--stay", number.c_str(), nullptr);
        return 102;
    });
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    child.link().say(2);
    ASSERT_EQ(child.link().hear(), 1) << "executed anew";
    EXPECT_EQ(stats_of(fd).members, 1u);
    EXPECT_EQ(::mprox_detach(fd.get(), child.pidfd().get()), 0) << "the same process";
}

TEST(Member, ExecByAThreadChangesNothing) {
    const Fd fd = create(MUTEX_PROXY_CLOEXEC);
    Process child([](const Link& link) {
        link.say(1);
        if (link.hear() != 2) return 101;
        const Fd inherited(::dup(link.get()));
        std::thread([number = std::to_string(inherited.get())] {  // it becomes the process, and the leader ends
            ::execl("/proc/self/exe", "abi_test", "--stay", number.c_str(), nullptr);
        })
            .join();
        return 102;
    });
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    child.link().say(2);
    ASSERT_EQ(child.link().hear(), 1);
    EXPECT_EQ(stats_of(fd).members, 1u);
    EXPECT_EQ(::mprox_detach(fd.get(), child.pidfd().get()), 0);
}

TEST(Member, ThreadsAreOneMember) {
    const Fd fd = create();
    Process child([](const Link& link) {
        const std::jthread first([] {
            for (;;) ::pause();
        });
        const std::jthread second([] {
            for (;;) ::pause();
        });
        return stay(link) + 1;
    });
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    EXPECT_EQ(stats_of(fd).members, 1u);
    child.kill(SIGKILL);
    await_members(fd, 0);
}

TEST(Member, LivesWhileAnyThreadDoes) {
    const Fd fd = create();
    Process child([](const Link& link) {
        const pid_t leader = ::gettid();
        std::thread([&link, leader] {
            const std::string path = "/proc/self/task/" + std::to_string(leader) + "/stat";
            while (file_text(path).find(") Z ") == std::string::npos) ::sched_yield();
            ::_exit(stay(link));
        }).detach();
        ::syscall(SYS_exit, 0);  // the leader alone, and without unwinding: it becomes a zombie
        return 101;
    });
    ASSERT_EQ(child.link().hear(), 1) << "the leader is gone";
    EXPECT_EQ(error_of(::mprox_attach(fd.get(), child.pidfd().get())), 0) << "the process lives";
    EXPECT_EQ(stats_of(fd).members, 1u);
    child.link().say(0);
    await_members(fd, 0);
    EXPECT_EQ(child.wait(), 0);
}

TEST(Member, IsInOneContextOnly) {
    const Fd one = create(), other = create();
    Process child(stay);
    ASSERT_EQ(child.link().hear(), 1);
    attach(one, child);
    drain(one);
    attach(other, child);
    EXPECT_EQ(read_snapshot(one)["members"], "0") << "the last one wins";
    EXPECT_EQ(stats_of(other).members, 1u);
    EXPECT_EQ(error_of(::mprox_detach(one.get(), child.pidfd().get())), ENOENT) << "a member of another";
    EXPECT_EQ(stats_of(other).members, 1u);
    attach(one, child);
    EXPECT_EQ(stats_of(one).members, 1u);
    EXPECT_EQ(stats_of(other).members, 0u);
}

TEST(Member, ForkBomb) {
    const Fd fd = create();
    constexpr int depth = 7;  // 2^7 - 1 descendants
    Process child([](const Link& link) {
        link.say(1);
        link.hear();
        // Every process holds the pipe's one end; the other sees when the last has been born (or has ended).
        int born[2], end[2];
        if (::pipe(born) != 0 || ::pipe(end) != 0) return 101;
        int children = 0;
        bool descendant = false;
        for (int level = 0; level < depth; ++level) {
            const pid_t pid = ::fork();
            if (pid < 0) return 102;
            if (pid == 0) {
                descendant = true;
                children = 0;
            } else {
                ++children;
            }
        }
        if (descendant) {
            ::close(end[1]);
            if (::write(born[1], "", 1) != 1) ::_exit(103);
            char byte;
            while (::read(end[0], &byte, 1) > 0) continue;
            int failed = 0;
            for (; children > 0; --children) {
                int status = 0;
                ::wait(&status);
                failed |= status;
            }
            ::_exit(failed ? 104 : 0);
        }
        char bytes[1 << depth];
        for (int seen = 0; seen < (1 << depth) - 1;) {
            const ssize_t n = ::read(born[0], bytes, sizeof bytes);
            if (n <= 0) return 105;
            seen += static_cast<int>(n);
        }
        link.say(2);
        link.hear();
        ::close(end[1]);
        int failed = 0;
        for (; children > 0; --children) {
            int status = 0;
            ::wait(&status);
            failed |= status;
        }
        link.say(failed ? 106 : 3);
        return stay(link);
    });
    ASSERT_EQ(child.link().hear(), 1);
    attach(fd, child);
    child.link().say(1);
    ASSERT_EQ(child.link().hear(), 2);
    EXPECT_EQ(stats_of(fd).members, 1u << depth);
    child.link().say(1);
    ASSERT_EQ(child.link().hear(), 3);
    await_members(fd, 1);
}

// Births and deaths while the context changes hands: every member is counted out again.
TEST(Member, ForkBombBetweenContexts) {
    const Fd fds[] = {create(), create()};
    Process child([](const Link& link) {
        link.say(1);
        pollfd entry{.fd = link.get(), .events = POLLIN, .revents = 0};
        while (::poll(&entry, 1, 0) == 0) {
            for (int i = 0; i < 16; ++i)
                if (::fork() == 0) {
                    if (::fork() == 0) ::_exit(0);
                    ::_exit(0);
                }
            while (::wait(nullptr) > 0) continue;
        }
        return 0;
    });
    ASSERT_EQ(child.link().hear(), 1);
    const Fd pidfd = child.pidfd();
    for (int i = 0; i < 2000; ++i) {
        ASSERT_EQ(error_of(::mprox_attach(fds[i % 2].get(), pidfd.get())), 0);
        if (i % 7 == 0) {
            ASSERT_EQ(error_of(::mprox_detach(fds[i % 2].get(), pidfd.get())), 0);
        }
    }
    child.link().say(0);
    EXPECT_EQ(child.wait(), 0);
    await_members(fds[0], 0);
    await_members(fds[1], 0);
}

TEST(Member, AttachWhileItEnds) {
    const Fd fd = create();
    for (int i = 0; i < 200; ++i) {
        Process child([](const Link&) { return 0; });
        const Fd pidfd = child.pidfd();
        int error = 0;
        while (!error) error = error_of(::mprox_attach(fd.get(), pidfd.get()));
        ASSERT_EQ(error, ESRCH);
    }
    await_members(fd, 0);
}

TEST(MemberErrors, NotAPidfd) {
    const Fd fd = create();
    const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    for (const int bad : {-1, -100, 0x7FFFFFFF, null.get(), fd.get()}) {
        EXPECT_EQ(error_of(::mprox_attach(fd.get(), bad)), EBADF) << bad;
        EXPECT_EQ(error_of(::mprox_detach(fd.get(), bad)), EBADF) << bad;
    }
    EXPECT_EQ(stats_of(fd).members, 0u);
}

TEST(MemberErrors, EndedProcess) {
    const Fd fd = create();
    Process child([](const Link&) { return 0; });
    const Fd pidfd = child.pidfd();
    child.await_end();
    EXPECT_EQ(error_of(::mprox_attach(fd.get(), pidfd.get())), ESRCH) << "a zombie";
    EXPECT_EQ(error_of(::mprox_detach(fd.get(), pidfd.get())), ESRCH) << "a zombie";
    EXPECT_EQ(child.wait(), 0);
    EXPECT_EQ(error_of(::mprox_attach(fd.get(), pidfd.get())), ESRCH) << "reaped";
    EXPECT_EQ(error_of(::mprox_detach(fd.get(), pidfd.get())), ESRCH) << "reaped";
}

TEST(MemberErrors, AnotherUsersProcess) {
    const Fd fd = create();
    Process victim(stay);
    ASSERT_EQ(victim.link().hear(), 1);
    const Fd pidfd = victim.pidfd();
    EXPECT_EQ(in_child([&] { return become(65534) ? error_of(::mprox_attach(fd.get(), pidfd.get())) : 101; }),
              EPERM);
    EXPECT_EQ(stats_of(fd).members, 0u);
    attach(fd, victim);
    EXPECT_EQ(in_child([&] { return become(65534) ? error_of(::mprox_detach(fd.get(), pidfd.get())) : 101; }), 0)
        << "who may turn the context off may let members go";
    EXPECT_EQ(stats_of(fd).members, 0u);
}

TEST(MemberErrors, OnesOwnProcessesNeedNoCapability) {
    const Fd fd = create();
    EXPECT_EQ(in_child([&] {
                  if (!become(65534) || ::prctl(PR_SET_DUMPABLE, 1) != 0) return 101;
                  const Process child(stay);
                  if (::mprox_attach(fd.get(), child.pidfd().get()) != 0) return 102;
                  if (stats_of(fd).members != 1) return 103;
                  if (::mprox_detach(fd.get(), child.pidfd().get()) != 0) return 104;
                  return error_of(::mprox_attach(fd.get(), pidfd_of(::getpid()).get()));
              }),
              0);
    await_members(fd, 0);
}

// The root of a user namespace must not rule the connections of those outside.
TEST(MemberErrors, OutsideTheUserNamespace) {
    Process child([](const Link& link) {
        if (!become(65534) || ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 101;
        const Fd fd(::mprox_create(0));
        if (!fd) return 102;
        if (::mprox_attach(fd.get(), pidfd_of(::getpid()).get()) != 0) return 103;
        link.give(fd.get());
        return stay(link);
    });
    const Fd fd = child.link().take();
    ASSERT_TRUE(fd);
    EXPECT_EQ(stats_of(fd).members, 1u);
    Process outside(stay);
    EXPECT_EQ(error_of(::mprox_attach(fd.get(), outside.pidfd().get())), EPERM);
    EXPECT_EQ(stats_of(fd).members, 1u);
}

}  // namespace
}  // namespace conformance
