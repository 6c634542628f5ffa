// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "engine/address.hpp"
#include "proto/mproto.h"

namespace mprox {

/// One upstream proxy at one address.
struct Server {
    mproto_server uri;
    Address address;
    std::string text;  ///< for people; without user and password
};

/// Which servers a flow tries, and in what order: as they were given, those that failed a moment ago last.
/// Thread-safe.
class Policy {
  public:
    using Clock = std::chrono::steady_clock;
    /// How long a server that failed is tried last.
    static constexpr std::chrono::seconds rest{10};

    explicit Policy(std::vector<Server> servers) : servers_(std::move(servers)), down_until_(servers_.size()) {}

    [[nodiscard]] std::vector<std::size_t> order(Clock::time_point now) const {
        std::vector<std::size_t> up, down;
        for (std::size_t i = 0; i < servers_.size(); i++) (is_down(i, now) ? down : up).push_back(i);
        up.insert(up.end(), down.begin(), down.end());
        return up;
    }
    [[nodiscard]] const std::vector<Server>& servers() const { return servers_; }
    [[nodiscard]] const Server& server(std::size_t index) const { return servers_[index]; }
    void failed(std::size_t index, Clock::time_point now) {
        down_until_[index].store((now + rest).time_since_epoch().count(), std::memory_order_relaxed);
    }
    void answered(std::size_t index) {
        if (down_until_[index].load(std::memory_order_relaxed)) down_until_[index].store(0, std::memory_order_relaxed);
    }

  private:
    [[nodiscard]] bool is_down(std::size_t index, Clock::time_point now) const {
        return now.time_since_epoch().count() < down_until_[index].load(std::memory_order_relaxed);
    }
    std::vector<Server> servers_;
    mutable std::vector<std::atomic<Clock::rep>> down_until_;
};

}  // namespace mprox
