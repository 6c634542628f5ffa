// SPDX-License-Identifier: MIT
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

namespace mprox {

/// Owns one file descriptor; closes it when it goes. Empty (-1) after release() or a move.
class Fd {
  public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        if (this != &other) {
            reset();
            fd_ = std::exchange(other.fd_, -1);
        }
        return *this;
    }
    ~Fd() { reset(); }

    [[nodiscard]] int get() const { return fd_; }
    [[nodiscard]] explicit operator bool() const { return fd_ >= 0; }
    [[nodiscard]] int release() { return std::exchange(fd_, -1); }
    void reset() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }

  private:
    int fd_ = -1;
};

/// What a TCP socket sends when it is closed: a reset, at once, or its data and a FIN.
inline void reset_on_close(int fd, bool reset = true) {
    const linger value{.l_onoff = reset, .l_linger = 0};
    ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, sizeof value);
}

/// Takes the socket's pending error (SO_ERROR): an errno, or 0.
inline int pending_error(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
}

/// A TCP socket sends what it is given at once from now on (TCP_NODELAY).
inline void send_without_delay(int fd) {
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/// Closes what the caller's starter left open for its program: every descriptor past the standard ones that an exec would
/// pass on. Ours are all close-on-exec.
void close_inherited();

/// Gives the calling thread a descriptor table of its own, a copy: the limit on open files holds for a table, not for
/// a process, and a table of one's own is one lock less. What was opened before is reached from either table.
inline void own_descriptor_table() {
#ifndef __SANITIZE_THREAD__  // which takes equal numbers in two tables for the same file
    ::unshare(CLONE_FILES);
#endif
}

}  // namespace mprox
