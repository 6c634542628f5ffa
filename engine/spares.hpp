// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bpf/mprox.h"
#include "engine/address.hpp"
#include "engine/poller.hpp"

namespace mprox {

/// Sockets whose connections are over, for others of the same kind: that spares the kernel to make one, to bind it, to watch it and
/// to unmake it. There are as many as connections have lately ended at once, and none for an application that makes no more. Used
/// by one thread.
class Spares {
  public:
    static constexpr std::size_t most = MPROX_SPARES;
    /// A socket is used so often, and so a name: what is left of its connections (TIME_WAIT) must not fill the ports of its peer.
    static constexpr unsigned uses_most = 100;

    /// `offered`: where the BPF programs look for the IPv4 addresses that have one; at least `most`, or none. Outlives this.
    explicit Spares(Poller& poller, std::span<std::uint32_t> offered = {}) : offered_(offered), timer_(poller) {}
    Spares(const Spares&) = delete;
    ~Spares() { clear(); }

    /// `socket` is for whoever asks for `name`. It may be closed at any time instead.
    void keep(const Address& name, Descriptor socket);
    /// One of that name, renewed, or nothing.
    [[nodiscard]] Descriptor take(const Address& name);
    /// A program has taken an address, and nobody has asked for it.
    void offer(const Address& name);
    void clear();

    [[nodiscard]] std::size_t size() const { return kept_.size(); }

  private:
    struct Kept {
        Address name;
        Descriptor socket;
    };

    void withdraw(const Address& name);
    void drop(std::size_t count);  // the oldest
    void look_after();

    std::vector<Kept> kept_;  // the youngest last
    std::span<std::uint32_t> offered_;
    std::size_t fewest_ = 0;  // since it was looked
    Timer timer_;
};

}  // namespace mprox
