// SPDX-License-Identifier: MIT
#pragma once

#include <asio/awaitable.hpp>
#include <atomic>
#include <list>
#include <vector>

#include "cli/serve_session.hpp"

namespace mprox {

/// How many connections there may be, and are, over all shards.
struct ServeLimit {
    std::size_t most = 0;
    std::atomic<std::size_t> now = 0;
};

/// One thread's share of the server: its own listening sockets (SO_REUSEPORT), sessions and relay.
class ServeShard final : ServeSlot::Owner {
  public:
    ServeShard(const ServeSettings& settings, ServeLimit& limit);
    ~ServeShard();

    /// Takes a listening, non-blocking socket.
    void listen(Fd socket);
    /// Returns after stop().
    void run() { poller_.run(); }
    /// From any thread.
    void stop() { poller_.stop(); }

  private:
    struct Listener {
        Listener(Poller& poller, Fd fd) : socket(poller, std::move(fd)), pause(poller) {}
        Descriptor socket;
        Timer pause;
    };

    void slot_freed() override;
    asio::awaitable<void> accept(Listener& listener);

    const ServeSettings& settings_;
    ServeLimit& limit_;
    bool ending_ = false;
    Poller poller_;  // sessions that are cut short give back their slots while it goes: see ~ServeShard
    Relay relay_{poller_};
    Names names_{poller_};
    std::list<Listener> listeners_;
};

}  // namespace mprox
