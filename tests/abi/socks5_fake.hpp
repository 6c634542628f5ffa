// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/fd.hpp"

namespace conformance {

using mprox::Fd;

/// A SOCKS5 server on a port of 127.0.0.1 that dials nobody. What it answers is in the destination's port:
/// 1 to 8 that reply, 9 none at all, 10 hanging up, 11 something else than SOCKS5; any other success, and then it
/// sends back what it gets. With a password it wants that one of a user "member".
class Socks5Fake {
  public:
    explicit Socks5Fake(std::string password = {});
    /// Hangs up on everybody.
    ~Socks5Fake();
    Socks5Fake(const Socks5Fake&) = delete;

    static constexpr std::uint16_t silent = 9, hanging_up = 10, gibberish = 11;

    /// "server socks5://127.0.0.1:PORT" with a newline.
    [[nodiscard]] std::string line() const;
    [[nodiscard]] std::uint16_t port() const { return port_; }
    /// The destinations asked for so far, "192.0.2.7:80", "[2001:db8::7]:80".
    [[nodiscard]] std::vector<std::string> requests();
    /// Waits until there were so many; false when patience is at its end.
    bool await_requests(std::size_t count);

  private:
    void accept_all();
    void serve(int connection);
    bool greet(int connection) const;

    std::string password_;
    Fd listener_;
    std::uint16_t port_ = 0;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::string> requests_;
    std::set<int> open_;
    std::vector<std::jthread> threads_;
    std::jthread acceptor_;
};

}  // namespace conformance
