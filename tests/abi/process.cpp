// SPDX-License-Identifier: MIT
#include "tests/abi/process.hpp"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

std::pair<Link, Link> make_links() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0) << ::strerrorname_np(errno);
    return {Link(Fd(ends[0])), Link(Fd(ends[1]))};
}

int reap(pid_t pid) {
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : killed + WTERMSIG(status);
}

struct Message {
    int number = 0;
    iovec data{.iov_base = &number, .iov_len = sizeof number};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
    msghdr header{.msg_name = nullptr,
                  .msg_namelen = 0,
                  .msg_iov = &data,
                  .msg_iovlen = 1,
                  .msg_control = control,
                  .msg_controllen = sizeof control,
                  .msg_flags = 0};
};

bool audible(int fd) {
    pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&entry, 1, patience()) == 1;
}

}  // namespace

void Link::say(int number) const {
    EXPECT_EQ(::send(fd_.get(), &number, sizeof number, MSG_NOSIGNAL), ssize_t{sizeof number});
}

int Link::hear() const {
    int number = -1;
    if (!audible(fd_.get()) || ::recv(fd_.get(), &number, sizeof number, 0) != sizeof number) return -1;
    return number;
}

void Link::give(int fd) const {
    Message message;
    cmsghdr* const part = CMSG_FIRSTHDR(&message.header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(part), &fd, sizeof fd);
    EXPECT_EQ(::sendmsg(fd_.get(), &message.header, MSG_NOSIGNAL), ssize_t{sizeof message.number});
}

Fd Link::take() const {
    Message message;
    if (!audible(fd_.get()) || ::recvmsg(fd_.get(), &message.header, MSG_CMSG_CLOEXEC) <= 0) return {};
    const cmsghdr* const part = CMSG_FIRSTHDR(&message.header);
    if (!part || part->cmsg_type != SCM_RIGHTS) return {};
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(part), sizeof fd);
    return Fd(fd);
}

int in_child(const std::function<int()>& body) {
    const pid_t pid = ::fork();
    if (pid == 0) ::_exit(body());
    EXPECT_GT(pid, 0) << ::strerrorname_np(errno);
    return pid > 0 ? reap(pid) : -1;
}

Process::Process(const std::function<int(const Link&)>& body) : pid_(-1), link_(Fd()) {
    auto [ours, theirs] = make_links();
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    EXPECT_GE(pid_, 0) << ::strerrorname_np(errno);
    if (pid_ == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != parent) ::_exit(1);
        ours.hang_up();
        ::_exit(body(theirs));
    }
    link_ = std::move(ours);
}

Process Process::executed() {
    auto [ours, theirs] = make_links();
    const Fd inherited(::dup(theirs.get()));  // without CLOEXEC
    std::string program = "/proc/self/exe", word = "--stay", number = std::to_string(inherited.get());
    char* const arguments[] = {program.data(), word.data(), number.data(), nullptr};
    pid_t pid = -1;
    EXPECT_EQ(::posix_spawn(&pid, program.c_str(), nullptr, nullptr, arguments, environ), 0);
    return {pid, std::move(ours)};
}

Process::Process(Process&& other) noexcept : pid_(std::exchange(other.pid_, -1)), link_(std::move(other.link_)) {}

Process::~Process() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    reap(pid_);
}

Fd Process::pidfd() const { return pidfd_of(pid_); }

void Process::kill(int signal) const { EXPECT_EQ(::kill(pid_, signal), 0); }

void Process::await_end() const {
    siginfo_t info{};
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT), 0);
}

int Process::wait() { return reap(std::exchange(pid_, -1)); }

int stay(const Link& link) {
    link.say(1);
    pollfd entry{.fd = link.get(), .events = POLLIN, .revents = 0};
    while (::poll(&entry, 1, -1) < 0 && errno == EINTR) continue;
    return 0;
}

int stay_on(int fd) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    return stay(Link(Fd(fd)));
}

Fd pidfd_of(pid_t pid) {
    Fd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    EXPECT_TRUE(fd) << ::strerrorname_np(errno);
    return fd;
}

bool drop_capability(int number) {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct data[2]{};
    if (::syscall(SYS_capget, &header, data) != 0) return false;
    data[number / 32].effective &= ~(1u << (number % 32));
    data[number / 32].permitted &= ~(1u << (number % 32));
    data[number / 32].inheritable &= ~(1u << (number % 32));
    return ::syscall(SYS_capset, &header, data) == 0;
}

bool become(uid_t uid) { return ::setresgid(uid, uid, uid) == 0 && ::setresuid(uid, uid, uid) == 0; }

void fill_descriptor_table() {
    const int lowest = ::dup(STDERR_FILENO);
    ::close(lowest);
    rlimit limit{};
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = static_cast<rlim_t>(lowest);
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
}

}  // namespace conformance
