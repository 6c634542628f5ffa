// SPDX-License-Identifier: MIT
// Members that connect.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "tests/abi/descriptor.hpp"
#include "tests/abi/process.hpp"

namespace conformance {

/// Where nothing is, and no route leads: only a proxy gets there.
inline constexpr const char* nowhere = "192.0.2.7";
inline constexpr const char* nowhere6 = "2001:db8::7";

struct Address {
    Address(const char* ip, std::uint16_t port);
    [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
    bool operator==(const Address& other) const;

    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
};

/// connect(2): the socket when it has succeeded, and its errno.
std::pair<Fd, int> connect_to(const char* ip, std::uint16_t port);
/// The same without waiting in connect(2): for its completion poll(2) waits, and SO_ERROR tells. -1: no end to it.
std::pair<Fd, int> connect_to_later(const char* ip, std::uint16_t port);
/// Sends so many bytes and gets them back.
bool echoes(const Fd& socket, std::size_t bytes = 5);

/// in_child(), as a member of the context, which is enabled. 250 + n when that fails.
int in_member(const Fd& fd, const std::function<int()>& body);

/// A listener of this process's on 127.0.0.1, that takes no part but by the kernel's completing connections to it.
class Listener {
  public:
    Listener();
    [[nodiscard]] std::uint16_t port() const { return port_; }

  private:
    Fd fd_;
    std::uint16_t port_ = 0;
};

/// Waits until the context's counters are as they should be; flows end a moment after their sockets.
bool await_stats(const Fd& fd, const std::function<bool(const mutex_proxy_stats&)>& fulfilled);

}  // namespace conformance
