// SPDX-License-Identifier: MIT
// Other processes of a test: they do one thing and end, or follow orders.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "engine/fd.hpp"

namespace conformance {

using mprox::Fd;

/// One end of a conversation of numbers between two processes.
class Link {
  public:
    explicit Link(Fd fd) : fd_(std::move(fd)) {}
    void say(int number) const;
    /// The other's next number; -1 when it is gone or stays silent.
    int hear() const;
    /// A descriptor rides along.
    void give(int fd) const;
    [[nodiscard]] Fd take() const;
    [[nodiscard]] int get() const { return fd_.get(); }
    void hang_up() { fd_.reset(); }

  private:
    Fd fd_;
};

constexpr int killed = 1000;  // an exit status that says: by signal number status - killed

/// Runs `body` in a child of its own and returns its result (0..255), or killed + signal.
int in_child(const std::function<int()>& body);

/// A child that runs `body` with a link to us. When it goes, the child is killed and reaped, unless it was waited
/// for.
class Process {
  public:
    explicit Process(const std::function<int(const Link&)>& body);
    /// This very program, executed anew: it behaves as stay() does (see main.cpp).
    static Process executed();
    Process(Process&& other) noexcept;
    ~Process();

    [[nodiscard]] pid_t pid() const { return pid_; }
    [[nodiscard]] Fd pidfd() const;
    [[nodiscard]] Link& link() { return link_; }
    void kill(int signal) const;
    /// Waits until it has ended, without reaping it.
    void await_end() const;
    /// As in_child(); once.
    int wait();

  private:
    Process(pid_t pid, Link link) : pid_(pid), link_(std::move(link)) {}
    pid_t pid_;
    Link link_;
};

/// The body of a Process that says 1 when it runs, and stays until it is told anything.
int stay(const Link& link);
/// What the program does when it is executed as `abi_test --stay FD`.
int stay_on(int fd);

Fd pidfd_of(pid_t pid);
/// Takes a capability out of this process's sets. True when it worked.
bool drop_capability(int number);
/// Becomes another user without any capability. True when it worked.
bool become(uid_t uid);
/// Leaves no descriptor free below the limit.
void fill_descriptor_table();

}  // namespace conformance
