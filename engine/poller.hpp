// SPDX-License-Identifier: MIT
#pragma once

#include <sys/epoll.h>

#include <array>
#include <asio/async_result.hpp>
#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/use_awaitable.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/fd.hpp"

namespace mprox {

/// Readiness of descriptors, edge by edge, for an io_context and on its thread. The kernel is told of each descriptor once;
/// Asio's own are armed anew, with a system call, for every wait, and what waits here waits often and for little.
class Poller {
  public:
    explicit Poller(asio::io_context& io);
    Poller(const Poller&) = delete;
    /// Whoever waits is given up. Descriptors may outlive this.
    ~Poller();

    [[nodiscard]] asio::io_context& io() const { return io_; }

  private:
    friend class Descriptor;
    struct Node;

    void wait();
    void dispatch();
    void leave(std::unique_ptr<Node> node);

    asio::io_context& io_;
    Fd epoll_;
    asio::posix::stream_descriptor ready_;
    std::vector<Node*> nodes_;
    std::vector<std::unique_ptr<Node>> gone_;  // while events are dispatched: some may name them
    bool dispatching_ = false;
};

/// A descriptor that a Poller watches, closed with this. Nothing here is thread-safe.
class Descriptor {
  public:
    /// What lets read(2) and write(2) say something else than EAGAIN.
    static constexpr std::uint32_t reading = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
    static constexpr std::uint32_t writing = EPOLLOUT | EPOLLHUP | EPOLLERR;
    using Listener = std::move_only_function<void(std::uint32_t events)>;

    Descriptor();
    /// Takes a non-blocking descriptor. A socket that is to be connected: after connect(2). Is empty, with errno, when the
    /// kernel has no room for one more.
    Descriptor(Poller& poller, Fd fd);
    Descriptor(Descriptor&&) noexcept;
    Descriptor& operator=(Descriptor&&) noexcept;
    ~Descriptor();

    [[nodiscard]] int get() const;
    [[nodiscard]] explicit operator bool() const { return node_ != nullptr; }
    void close();

    /// Has one of these been reported, and not been used up by would_block() or receive()?
    [[nodiscard]] bool is(std::uint32_t events) const;
    /// A call has failed with EAGAIN: from now on is() tells of what comes.
    void would_block(std::uint32_t events);
    /// As recv(2), which is only called when there may be something.
    [[nodiscard]] ssize_t receive(std::span<std::uint8_t> into);
    /// Bytes that receive() has returned so far.
    [[nodiscard]] std::uint64_t received() const;
    /// As send(2).
    [[nodiscard]] ssize_t send(std::span<const std::uint8_t> bytes);

    /// Waits for one of the events, of which none is(). False when cancelled. One wait at a time.
    [[nodiscard]] asio::awaitable<bool> wait(std::uint32_t events);
    /// Ends the wait.
    void cancel();
    /// Has every report from now on given to `listener`, which may close this. Null: no more.
    void listen(Listener listener);

  private:
    std::unique_ptr<Poller::Node> node_;
};

}  // namespace mprox
