// SPDX-License-Identifier: MIT
#include "tests/abi/socks5_fake.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>

#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

std::string take(int connection, std::size_t count) {
    std::string bytes(count, '\0');
    return ::recv(connection, bytes.data(), count, MSG_WAITALL) == static_cast<ssize_t>(count) ? bytes : "";
}

bool put(int connection, std::string_view bytes) {
    return ::send(connection, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

}  // namespace

Socks5Fake::Socks5Fake(std::string password)
    : password_(std::move(password)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
    EXPECT_EQ(::listen(listener_.get(), 1024), 0);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
    acceptor_ = std::jthread([this] { accept_all(); });
}

Socks5Fake::~Socks5Fake() {
    ::shutdown(listener_.get(), SHUT_RDWR);  // wakes accept(), which a close would not
    acceptor_.join();
    {
        const std::lock_guard lock(mutex_);
        for (const int connection : open_) ::shutdown(connection, SHUT_RDWR);
    }
    threads_.clear();
}

std::string Socks5Fake::line() const {
    const std::string user = password_.empty() ? "" : "member:" + password_ + "@";
    return "server socks5://" + user + "127.0.0.1:" + std::to_string(port_) + "\n";
}

std::vector<std::string> Socks5Fake::requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
}

bool Socks5Fake::await_requests(std::size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(patience()),
                             [&] { return requests_.size() >= count; });
}

void Socks5Fake::accept_all() {
    for (;;) {
        const int connection = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
        if (connection < 0) return;
        const std::lock_guard lock(mutex_);
        open_.insert(connection);
        threads_.emplace_back([this, connection] {
            serve(connection);
            // Children may hold copies of the descriptor: shutdown() is what the other side sees.
            ::shutdown(connection, SHUT_RDWR);
            const std::lock_guard guard(mutex_);
            open_.erase(connection);
            ::close(connection);
        });
    }
}

bool Socks5Fake::greet(int connection) const {
    const std::string head = take(connection, 2);
    if (head.empty() || head[0] != 5) return false;
    const std::string methods = take(connection, static_cast<unsigned char>(head[1]));
    const char method = password_.empty() ? 0 : 2;
    if (methods.find(method) == std::string::npos) {
        put(connection, "\x05\xff");
        return false;
    }
    put(connection, {"\x05" + std::string(1, method)});
    if (!method) return true;
    const std::string user = take(connection, 2);
    if (user.empty()) return false;
    const std::string name = take(connection, static_cast<unsigned char>(user[1])), size = take(connection, 1);
    if (size.empty()) return false;
    const bool right = take(connection, static_cast<unsigned char>(size[0])) == password_ && name == "member";
    put(connection, {"\x01" + std::string(1, right ? '\0' : '\1')});
    return right;
}

void Socks5Fake::serve(int connection) {
    if (!greet(connection)) return;
    const std::string head = take(connection, 4);
    if (head.empty() || head[1] != 1) return;
    const bool v6 = head[3] == 4;
    const std::string address = take(connection, v6 ? 16 : 4), number = take(connection, 2);
    if (address.empty() || number.empty()) return;
    char text[INET6_ADDRSTRLEN];
    ::inet_ntop(v6 ? AF_INET6 : AF_INET, address.data(), text, sizeof text);
    std::uint16_t port = 0;
    std::memcpy(&port, number.data(), sizeof port);
    port = ntohs(port);
    {
        const std::lock_guard lock(mutex_);
        requests_.push_back((v6 ? "[" + std::string(text) + "]" : text) + ":" + std::to_string(port));
    }
    changed_.notify_all();
    char buffer[65536];
    if (port == silent) {
        while (::recv(connection, buffer, sizeof buffer, 0) > 0) continue;
        return;
    }
    if (port == hanging_up) return;
    if (port == gibberish) {
        put(connection, "HTTP/1.1 200 OK\r\n\r\n");
        return;
    }
    std::string reply("\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00", 10);
    if (port >= 1 && port <= 8) reply[1] = static_cast<char>(port);
    if (!put(connection, reply) || reply[1]) return;
    for (;;) {
        const ssize_t length = ::recv(connection, buffer, sizeof buffer, 0);
        if (length <= 0 || !put(connection, {buffer, static_cast<std::size_t>(length)})) return;
    }
}

}  // namespace conformance
