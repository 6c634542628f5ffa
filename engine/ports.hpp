// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>

#include "engine/fd.hpp"
#include "engine/netns.hpp"
#include "engine/ready.hpp"

namespace mprox {

/// Ports from which the BPF programs connect to a server by themselves, when a connect() finds no greeted connection waiting.
/// All that the engine does for one is to bind a socket to it, so that nobody else gets it. There are as many as connects
/// have needed at once, and none for an application that makes no more. Belongs to one shard and its thread.
class Ports {
  public:
    using Clock = std::chrono::steady_clock;

    explicit Ports(Ready& ready) : ready_(ready) {}
    Ports(const Ports&) = delete;

    /// From now on there are ports of that namespace for connections like this one, which is greeted.
    void learn(std::shared_ptr<Namespace> ns, const mprox_ready& like);
    /// The opposite, for a while, and for longer each time: one has come to nothing.
    void unlearn();
    /// One has not.
    void confirm() { unlearnt_for_ = {}; }

    /// Binds as many as are needed, and has no more than so many wait.
    void refill(std::size_t most);
    /// The socket bound to a port that a program has taken, if that number is one; it is the caller's now.
    [[nodiscard]] std::optional<Fd> release(std::uint32_t number);
    /// Takes back those that wait.
    void withdraw();
    /// Takes them back when none has been needed for long.
    void look_after();

    /// A connection like those that are made; null when none are.
    [[nodiscard]] const mprox_ready* like() const { return like_ ? &*like_ : nullptr; }
    /// There are ports, or will be when they are needed.
    [[nodiscard]] bool serve() const { return like_ && able_; }
    /// Ports that wait.
    [[nodiscard]] std::size_t waiting() const;

  private:
    bool add();
    bool take_back(std::uint32_t number);  // false: it does not wait
    [[nodiscard]] Clock::time_point used() const;  // when a program last took one

    Ready& ready_;
    std::shared_ptr<Namespace> ns_;
    std::optional<mprox_ready> like_;
    std::array<Fd, Ready::most> sockets_;  // by their numbers
    std::size_t wanted_ = 0;
    bool able_ = true;  // the last one could be bound
    Clock::time_point filled_{}, used_{}, unlearnt_until_{};
    std::chrono::seconds unlearnt_for_{};
};

}  // namespace mprox
