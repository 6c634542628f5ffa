// SPDX-License-Identifier: MIT
#include "engine/poller.hpp"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <asio/executor_work_guard.hpp>
#include <asio/post.hpp>
#include <cerrno>
#include <climits>
#include <system_error>
#include <utility>

namespace mprox {

using namespace std::chrono_literals;

struct Poller::Node {
    Poller* poller;  // null once that is gone
    Fd fd;
    std::uint32_t reported = 0;
    std::uint32_t wanted = 0;
    std::uint64_t received = 0;
    std::uint64_t renewed = 0;  // events of this turn are from before
    unsigned renewals = 0;
    bool shared = false;
    std::size_t place = 0;  // in nodes_
    std::move_only_function<void(bool)> waiter;
    Descriptor::Listener listener;

    void happened(std::uint32_t events) {
        reported |= events;
        if (waiter && (reported & wanted)) {
            std::exchange(waiter, nullptr)(true);
        } else if (listener) {
            listener(events);
        }
    }
};

Poller::Poller() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
    if (!epoll_ || !wake_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0)
        throw std::system_error(errno, std::generic_category(), "cannot make an epoll descriptor");
}

Poller::~Poller() {
    // Whoever waits may own what it waits for, and that what waits.
    std::vector<std::move_only_function<void(bool)>> waiters;
    std::vector<Call> calls;
    for (Node* node : nodes_) {
        node->poller = nullptr;
        if (node->waiter) waiters.push_back(std::exchange(node->waiter, nullptr));
    }
    for (const auto& [when, timer] : timers_) {
        timer->started_ = false;
        calls.push_back(std::move(timer->done_));
    }
    calls.insert(calls.end(), std::make_move_iterator(deferred_.begin()), std::make_move_iterator(deferred_.end()));
    deferred_.clear();
}

void Poller::run() {
    const auto work = asio::make_work_guard(handlers_);  // without any it would be stopped
    std::array<epoll_event, 64> events;
    for (;;) {
        handlers_.poll();
        if (!deferred_.empty()) {
            for (auto& call : std::exchange(deferred_, {})) call();
            handlers_.poll();
        }
        if (stopped_) return;
        int most = rest_ ? rest_() : -1;
        if (most == 0) {
            handlers_.poll();
            most = rest_();  // what has come meanwhile waits until the descriptors have had their turn
        }
        turn_++;
        const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), patience(most));
        if (rise_) rise_();
        dispatch(std::span(events).first(static_cast<std::size_t>(std::max(count, 0))));  // EINTR: none
        expire();
    }
}

void Poller::stop() {
    stopped_ = true;
    wake();
}

void Poller::post(Call call) {
    asio::post(handlers_, std::move(call));
    wake();
}

// Each write is an edge, whether the last one was read or not.
void Poller::wake() { ::eventfd_write(wake_.get(), 1); }

// Milliseconds until something is due, rounded up. -1: for ever.
int Poller::patience(int most) const {
    if (!deferred_.empty()) return 0;
    if (timers_.empty()) return most;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(timers_.begin()->first - Clock::now());
    return static_cast<int>(std::clamp<std::chrono::milliseconds::rep>(left.count(), 0, most < 0 ? INT_MAX : most));
}

void Poller::dispatch(std::span<const epoll_event> events) {
    dispatching_ = true;
    for (const epoll_event& event : events) {
        auto* node = static_cast<Node*>(event.data.ptr);
        if (node && node->fd && node->renewed != turn_) node->happened(event.events);
    }
    dispatching_ = false;
    gone_.clear();
}

void Poller::expire() {
    if (timers_.empty()) return;
    const auto now = Clock::now();
    while (!timers_.empty() && timers_.begin()->first <= now) {
        Timer& timer = *timers_.begin()->second;
        Call done = std::move(timer.done_);
        timer.cancel();  // which it may do itself, or end
        done();
    }
}

void Poller::leave(std::unique_ptr<Node> node) {
    nodes_[node->place] = nodes_.back();
    nodes_[node->place]->place = node->place;
    nodes_.pop_back();
    if (dispatching_) gone_.push_back(std::move(node));
}

void Timer::start(Clock::time_point at, Poller::Call done) {
    cancel();
    done_ = std::move(done);
    place_ = poller_.timers_.emplace(at, this);
    started_ = true;
}

void Timer::cancel() {
    if (!std::exchange(started_, false)) return;
    poller_.timers_.erase(place_);
    done_ = nullptr;
}

void Timer::hasten() {
    if (started_) start(Clock::now(), std::move(done_));
}

asio::awaitable<void> sleep(Poller& poller, Timer::Clock::duration time) {
    Timer timer(poller);
    co_await sleep(timer, time);
}

asio::awaitable<void> sleep(Timer& timer, Timer::Clock::duration time) {
    return asio::async_initiate<decltype(asio::use_awaitable), void()>(
        [&timer, time](auto handler) {
            timer.start(time, [handler = std::move(handler)]() mutable { std::move(handler)(); });
        },
        asio::use_awaitable);
}

asio::awaitable<void> yield(Poller& poller) {
    return asio::async_initiate<decltype(asio::use_awaitable), void()>(
        [&poller](auto handler) { poller.defer([handler = std::move(handler)]() mutable { std::move(handler)(); }); },
        asio::use_awaitable);
}

Descriptor::Descriptor() = default;
Descriptor::Descriptor(Descriptor&&) noexcept = default;
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    close();
    node_ = std::move(other.node_);
    return *this;
}
Descriptor::~Descriptor() { close(); }

Descriptor::Descriptor(Poller& poller, Fd fd, bool level) : node_(std::make_unique<Poller::Node>()) {
    constexpr std::uint32_t edges = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET;
    epoll_event event{.events = level ? std::uint32_t{EPOLLIN} : edges, .data = {.ptr = node_.get()}};
    if (::epoll_ctl(poller.epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) {
        node_ = nullptr;
        return;
    }
    node_->poller = &poller;
    node_->fd = std::move(fd);
    node_->place = poller.nodes_.size();
    poller.nodes_.push_back(node_.get());
}

int Descriptor::get() const { return node_ ? node_->fd.get() : -1; }

void Descriptor::close() {
    if (!node_) return;
    // The kernel forgets a descriptor that is closed, unless somebody else has it, too: another thread with a table of its own.
    if (node_->shared && node_->poller) ::epoll_ctl(node_->poller->epoll_.get(), EPOLL_CTL_DEL, node_->fd.get(), nullptr);
    node_->fd.reset();
    if (Poller* poller = node_->poller) poller->leave(std::move(node_));
    node_ = nullptr;
}

void Descriptor::renew() {
    node_->reported = 0;
    node_->received = 0;
    node_->renewed = node_->poller->turn_;
    node_->renewals++;
}

unsigned Descriptor::renewals() const { return node_->renewals; }

void Descriptor::share() { node_->shared = true; }

bool Descriptor::is(std::uint32_t events) const { return node_->reported & events; }

void Descriptor::would_block(std::uint32_t events) { node_->reported &= ~events; }

ssize_t Descriptor::receive(std::span<std::uint8_t> into) {
    if (!is(reading)) {
        errno = EAGAIN;
        return -1;
    }
    const ssize_t n = ::recv(node_->fd.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) would_block(reading);
    if (n > 0) node_->received += static_cast<std::uint64_t>(n);
    // Less than there was room for is all there was, and more will be reported; unless recv stopped in front of an urgent
    // byte, or an end that has been reported follows.
    if (n > 0 && static_cast<std::size_t>(n) < into.size() && !is(reading & ~EPOLLIN)) would_block(EPOLLIN);
    return n;
}

std::uint64_t Descriptor::received() const { return node_->received; }

ssize_t Descriptor::send(std::span<const std::uint8_t> bytes) {
    const ssize_t n = ::send(node_->fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) would_block(EPOLLOUT);
    return n;
}

asio::awaitable<bool> Descriptor::wait(std::uint32_t events) {
    return asio::async_initiate<decltype(asio::use_awaitable), void(bool)>(
        [node = node_.get(), events](auto handler) {
            node->wanted = events;
            node->waiter = [handler = std::move(handler)](bool happened) mutable { std::move(handler)(happened); };
        },
        asio::use_awaitable);
}

void Descriptor::cancel() {
    if (!node_ || !node_->waiter) return;
    node_->poller->defer([waiter = std::exchange(node_->waiter, nullptr)]() mutable { waiter(false); });
}

void Descriptor::listen(Listener listener) { node_->listener = std::move(listener); }

}  // namespace mprox
