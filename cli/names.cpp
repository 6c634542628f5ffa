// SPDX-License-Identifier: MIT
#include "cli/names.hpp"

#include <netdb.h>

#include <asio/post.hpp>
#include <cstring>
#include <utility>

namespace mprox {
namespace {

std::vector<sockaddr_storage> resolve(const std::string& name) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    std::vector<sockaddr_storage> found;
    if (::getaddrinfo(name.c_str(), nullptr, &hints, &list) != 0) return found;
    for (const addrinfo* entry = list; entry; entry = entry->ai_next)
        std::memcpy(&found.emplace_back(), entry->ai_addr, entry->ai_addrlen);
    ::freeaddrinfo(list);
    return found;
}

}  // namespace

void Lookup::cancel() {
    wanted = false;
    if (waiter) poller.defer(std::exchange(waiter, nullptr));
}

asio::awaitable<std::vector<sockaddr_storage>> Names::find(std::string name, std::weak_ptr<Lookup>& lookup) {
    std::vector<sockaddr_storage> found;
    if (!thread_) thread_.emplace(1);
    co_await asio::async_initiate<decltype(asio::use_awaitable), void()>(
        [this, &found, &name, &lookup](auto handler) {
            // Only the question owns this: it owns who asked, and ends with whatever the question was left in.
            auto asked = std::make_shared<Lookup>(poller_);
            lookup = asked;
            asked->found = &found;
            asked->waiter = [handler = std::move(handler)]() mutable { std::move(handler)(); };
            asio::post(*thread_, [asked = std::move(asked), name] {
                Poller& poller = asked->poller;
                if (!asked->wanted) return;
                poller.post([asked, answer = resolve(name)]() mutable {
                    if (!asked->waiter) return;
                    *asked->found = std::move(answer);
                    std::exchange(asked->waiter, nullptr)();
                });
            });
        },
        asio::use_awaitable);
    co_return found;
}

}  // namespace mprox
