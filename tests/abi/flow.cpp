// SPDX-License-Identifier: MIT
#include "tests/abi/flow.hpp"

#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>

namespace conformance {

Address::Address(const char* ip, std::uint16_t port) {
    auto* const v4 = reinterpret_cast<sockaddr_in*>(&storage);
    auto* const v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    if (::inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        size = sizeof *v4;
    } else {
        EXPECT_EQ(::inet_pton(AF_INET6, ip, &v6->sin6_addr), 1) << ip;
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        size = sizeof *v6;
    }
}

bool Address::operator==(const Address& other) const {
    return size == other.size && std::memcmp(&storage, &other.storage, size) == 0;
}

std::pair<Fd, int> connect_to(const char* ip, std::uint16_t port) {
    const Address to(ip, port);
    Fd socket(::socket(to.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int error = error_of(::connect(socket.get(), to.get(), to.size));
    return {std::move(socket), error};
}

std::pair<Fd, int> connect_to_later(const char* ip, std::uint16_t port) {
    const Address to(ip, port);
    Fd socket(::socket(to.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int error = error_of(::connect(socket.get(), to.get(), to.size));
    if (error != EINPROGRESS) return {std::move(socket), error ? error : -1};
    if (!await(socket, POLLOUT)) return {std::move(socket), -1};
    int result = -1;
    socklen_t size = sizeof result;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &result, &size);
    return {std::move(socket), result};
}

bool echoes(const Fd& socket, std::size_t bytes) {
    const std::string sent(bytes, 'e');
    std::string got;
    if (::send(socket.get(), sent.data(), sent.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(sent.size()))
        return false;
    while (got.size() < bytes && await(socket, POLLIN)) {
        char buffer[4096];
        const ssize_t length = ::recv(socket.get(), buffer, sizeof buffer, 0);
        if (length <= 0) break;
        got.append(buffer, static_cast<std::size_t>(length));
    }
    return got == sent;
}

int in_member(const Fd& fd, const std::function<int()>& body) {
    return in_child([&] { return ::mprox_enable(fd.get()) == 0 ? body() : 250; });
}

Listener::Listener() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    Address at("127.0.0.1", 0);
    EXPECT_EQ(::bind(fd_.get(), at.get(), at.size), 0);
    EXPECT_EQ(::listen(fd_.get(), 1024), 0);
    EXPECT_EQ(::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&at.storage), &at.size), 0);
    port_ = ntohs(reinterpret_cast<const sockaddr_in*>(&at.storage)->sin_port);
}

bool await_stats(const Fd& fd, const std::function<bool(const mutex_proxy_stats&)>& fulfilled) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience());
    while (!fulfilled(stats_of(fd))) {
        if (std::chrono::steady_clock::now() > end) return false;
        ::sched_yield();
    }
    return true;
}

}  // namespace conformance
