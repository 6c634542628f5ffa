// SPDX-License-Identifier: MIT
#include "engine/poller.hpp"

#include <sys/socket.h>

#include <asio/post.hpp>
#include <cerrno>
#include <system_error>
#include <utility>

namespace mprox {

struct Poller::Node {
    Poller* poller;  // null once that is gone
    Fd fd;
    std::uint32_t reported = 0;
    std::uint32_t wanted = 0;
    std::uint64_t received = 0;
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

Poller::Poller(asio::io_context& io) : io_(io), epoll_(::epoll_create1(EPOLL_CLOEXEC)), ready_(io) {
    if (!epoll_) throw std::system_error(errno, std::generic_category(), "cannot make an epoll descriptor");
    ready_.assign(epoll_.get());
    wait();
}

Poller::~Poller() {
    ready_.release();
    std::vector<std::move_only_function<void(bool)>> waiters;
    for (Node* node : nodes_) {
        node->poller = nullptr;
        if (node->waiter) waiters.push_back(std::exchange(node->waiter, nullptr));
    }
}

void Poller::wait() {
    ready_.async_wait(asio::posix::descriptor_base::wait_read, [this](std::error_code error) {
        if (error) return;
        dispatch();
        wait();
    });
}

void Poller::dispatch() {
    std::array<epoll_event, 64> events;
    const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), 0);
    dispatching_ = true;
    for (int at = 0; at < count; at++) {
        auto* node = static_cast<Node*>(events[at].data.ptr);
        if (node->fd) node->happened(events[at].events);
    }
    dispatching_ = false;
    gone_.clear();
}

void Poller::leave(std::unique_ptr<Node> node) {
    nodes_[node->place] = nodes_.back();
    nodes_[node->place]->place = node->place;
    nodes_.pop_back();
    if (dispatching_) gone_.push_back(std::move(node));
}

Descriptor::Descriptor() = default;
Descriptor::Descriptor(Descriptor&&) noexcept = default;
Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
    close();
    node_ = std::move(other.node_);
    return *this;
}
Descriptor::~Descriptor() { close(); }

Descriptor::Descriptor(Poller& poller, Fd fd) : node_(std::make_unique<Poller::Node>()) {
    epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET, .data = {.ptr = node_.get()}};
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

// The kernel forgets a descriptor that is closed: nobody else has it.
void Descriptor::close() {
    if (!node_) return;
    node_->fd.reset();
    if (Poller* poller = node_->poller) poller->leave(std::move(node_));
    node_ = nullptr;
}

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
    asio::post(node_->poller->io_, [waiter = std::exchange(node_->waiter, nullptr)]() mutable { waiter(false); });
}

void Descriptor::listen(Listener listener) { node_->listener = std::move(listener); }

}  // namespace mprox
