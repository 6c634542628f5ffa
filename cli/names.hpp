// SPDX-License-Identifier: MIT
#pragma once

#include <sys/socket.h>

#include <asio/awaitable.hpp>
#include <asio/thread_pool.hpp>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/poller.hpp"

namespace mprox {

/// One question under way. Its end is cancel(), or the answer.
struct Lookup {
    explicit Lookup(Poller& owner) : poller(owner) {}
    void cancel();

    Poller& poller;
    Poller::Call waiter;  // none: whoever asked is gone
    std::atomic<bool> wanted = true;
    std::vector<sockaddr_storage>* found = nullptr;
};

/// The system's resolver, which only knows calls that wait: they wait on a thread of their own, that is there once somebody
/// has asked. Used on the Poller's thread, which it does not outlive.
class Names {
  public:
    explicit Names(Poller& poller) : poller_(poller) {}

    /// Every address of a host, in the resolver's order; none when it is unknown, or the lookup was cancelled.
    asio::awaitable<std::vector<sockaddr_storage>> find(std::string name, std::weak_ptr<Lookup>& lookup);

  private:
    Poller& poller_;
    std::optional<asio::thread_pool> thread_;
};

}  // namespace mprox
