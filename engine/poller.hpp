// SPDX-License-Identifier: MIT
#pragma once

#include <sys/epoll.h>

#include <asio/async_result.hpp>
#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/use_awaitable.hpp>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/fd.hpp"

namespace mprox {

class Timer;

/// What a thread waits for: descriptors, timers, and words from other threads. The kernel is told of each descriptor once,
/// and a turn of the loop is one system call. Asio's own loop makes one more for every wait, as it arms its descriptors
/// anew, and what waits here waits often and for little; Asio's coroutines run on this one.
class Poller {
  public:
    using Call = std::move_only_function<void()>;
    using Clock = std::chrono::steady_clock;

    Poller();
    Poller(const Poller&) = delete;
    /// Whoever waits is given up. Descriptors and timers may outlive this.
    ~Poller();

    /// Runs until stop(), on one thread.
    void run();
    /// Thread-safe.
    void stop();
    /// Has `call` run by run(). Thread-safe.
    void post(Call call);
    /// The same, after all that has happened by now. On the thread of run().
    void defer(Call call) { deferred_.push_back(std::move(call)); }
    /// Has `rest` called before each wait, which is for no longer than so many milliseconds as it returns, or -1. 0: it has found
    /// something to do. Before run().
    void before_wait(std::move_only_function<int()> rest) { rest_ = std::move(rest); }
    /// And `rise` after each.
    void after_wait(Call rise) { rise_ = std::move(rise); }

    /// To spawn coroutines on. Not to be waited with: run() would not know.
    [[nodiscard]] asio::io_context& handlers() { return handlers_; }

  private:
    friend class Descriptor;
    friend class Timer;
    struct Node;

    [[nodiscard]] int patience(int most) const;
    void dispatch(std::span<const epoll_event> events);
    void expire();
    void leave(std::unique_ptr<Node> node);
    void wake();

    asio::io_context handlers_{1};
    Fd epoll_, wake_;
    std::vector<Node*> nodes_;
    std::uint64_t turn_ = 0;
    std::vector<std::unique_ptr<Node>> gone_;  // while events are dispatched: some may name them
    bool dispatching_ = false;
    std::multimap<Clock::time_point, Timer*> timers_;
    std::vector<Call> deferred_;
    std::move_only_function<int()> rest_;
    Call rise_;
    std::atomic<bool> stopped_ = false;
};

/// A call at a later time. Used on the thread of its Poller.
class Timer {
  public:
    using Clock = Poller::Clock;

    explicit Timer(Poller& poller) : poller_(poller) {}
    Timer(const Timer&) = delete;
    ~Timer() { cancel(); }

    /// Has `done` called, no sooner and not much later, unless it is cancelled or started again before.
    void start(Clock::time_point at, Poller::Call done);
    void start(Clock::duration after, Poller::Call done) { start(Clock::now() + after, std::move(done)); }
    void cancel();
    /// Makes it due now, if it was started.
    void hasten();
    [[nodiscard]] bool started() const { return started_; }
    /// When it is due; of one that was started.
    [[nodiscard]] Clock::time_point due() const { return place_->first; }

  private:
    friend Poller;
    Poller& poller_;
    Poller::Call done_;
    std::multimap<Clock::time_point, Timer*>::iterator place_;
    bool started_ = false;
};

/// Waits so long, or, on a timer of the caller's, until that is due.
asio::awaitable<void> sleep(Poller& poller, Timer::Clock::duration time);
asio::awaitable<void> sleep(Timer& timer, Timer::Clock::duration time);
/// Waits until all that has happened by now has been seen to.
asio::awaitable<void> yield(Poller& poller);

/// A descriptor that a Poller watches, closed with this. Nothing here is thread-safe.
class Descriptor {
  public:
    /// What lets read(2) and write(2) say something else than EAGAIN.
    static constexpr std::uint32_t reading = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
    static constexpr std::uint32_t writing = EPOLLOUT | EPOLLHUP | EPOLLERR;
    using Listener = std::move_only_function<void(std::uint32_t events)>;

    Descriptor();
    /// Takes a non-blocking descriptor. A socket that is to be connected: after connect(2). Is empty, with errno, when the
    /// kernel has no room for one more. `level`: every turn of the loop reports what there is, not only what is new.
    Descriptor(Poller& poller, Fd fd, bool level = false);
    Descriptor(Descriptor&&) noexcept;
    Descriptor& operator=(Descriptor&&) noexcept;
    ~Descriptor();

    [[nodiscard]] int get() const;
    [[nodiscard]] explicit operator bool() const { return node_ != nullptr; }
    void close();
    /// The socket connects once more, now: what was reported of its last connection is forgotten, and what is still to be.
    void renew();
    /// How often.
    [[nodiscard]] unsigned renewals() const;
    /// Says that others will have it, too: descriptors of this process in a table of their own, or of another process.
    void share();

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
