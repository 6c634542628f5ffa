// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "bpf/mprox.h"
#include "engine/address.hpp"
#include "engine/dial.hpp"
#include "engine/netns.hpp"

namespace mprox {

/// When the SYN was sent.
inline std::chrono::steady_clock::time_point time_of(const mprox_event& event) {
    return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(event.time));
}

/// One proxied connection on its way intercept → policy → dial → relay → account. Belongs to one shard, and lives
/// here until its connect() is answered; from then on it is a pair in the relay.
struct Flow {
    explicit Flow(const mprox_event& event) : held(event), since(time_of(event)) {}

    mprox_event held;  ///< who waits, and for what
    std::shared_ptr<Namespace> ns;
    DialHandle dial;
    std::optional<Greeted> begun;  ///< a connection that a program has asked by, and got no answer for us to give
    bool lent = false;             ///< the programs have one now, and will answer
    const Server* server = nullptr;  ///< the one being dialled
    std::size_t asked = 0;           ///< its index
    Policy::Clock::time_point asked_since{};
    const Server* through = nullptr;  ///< the one that has connected us
    std::chrono::steady_clock::time_point since;  ///< the application waits
    int refusal = 0;  ///< the errno given as answer, until the connect() is seen to have ended

    [[nodiscard]] Address destination() const { return {.ip = held.destination, .port = held.destination_port}; }
    /// Where the application was pointed at.
    [[nodiscard]] Address held_name() const { return {.ip = held.held, .port = held.held_port}; }
    /// Has no wishes of its own for the connection to the server.
    [[nodiscard]] bool is_plain() const { return options().is_plain(); }
    [[nodiscard]] DialOptions options() const {
        return {.bound = {.ip = held.bound, .port = 0}, .device = held.device, .mark = held.mark};
    }
};

}  // namespace mprox
