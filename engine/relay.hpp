// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "engine/poller.hpp"

namespace mprox {

/// How a finished relay went.
struct RelayEnd {
    std::uint64_t a_to_b = 0;  ///< bytes
    std::uint64_t b_to_a = 0;  ///< bytes
    int error = 0;             ///< 0: both sides finished; else the errno that broke it (ECONNRESET, ETIMEDOUT...)
};

/// Joins pairs of connected TCP sockets inside the kernel (splice), keeping TCP's meaning: a half-close
/// goes over as a half-close, a reset as a reset, and a side that does not read stops the side that sends.
///
/// One Relay belongs to one Poller and its thread; nothing here is thread-safe. A pair at rest holds two
/// descriptors and no pipe: pipes are borrowed while bytes cannot be passed on at once.
/// Both sockets must be non-blocking. What was written to one before, without TCP_NODELAY, should be acknowledged, or Nagle's
/// algorithm may hold back the first write. If this process dies, both peers see a reset, never a clean end.
class Relay {
  public:
    using Done = std::move_only_function<void(const RelayEnd&)>;
    /// Takes each socket whose connection is over, for its peer as well, so that it may connect once more (Descriptor::renew());
    /// or nothing in its place.
    using Reuse = std::move_only_function<void(Descriptor a, Descriptor b)>;

    /// Running totals over all pairs, counted as the bytes move. They outlive the Relay.
    struct Totals {
        std::atomic<std::uint64_t>& a_to_b;
        std::atomic<std::uint64_t>& b_to_a;
    };

    explicit Relay(Poller& poller, std::optional<Totals> totals = std::nullopt);
    ~Relay();
    Relay(const Relay&) = delete;

    /// Takes both sockets. `done` runs once, on that thread, after both were closed; not when the Relay
    /// itself goes first (then the pairs are reset). With `reuse`, a socket that may connect once more is not closed, but given to
    /// that a little later.
    void join(Descriptor a, Descriptor b, Done done, Reuse reuse = nullptr);

    [[nodiscard]] std::size_t active() const;
    /// Bytes in the send buffers of all pairs that no peer has acknowledged. Asks the kernel for each socket.
    [[nodiscard]] std::size_t unsent() const;

    struct State;

  private:
    std::unique_ptr<State> state_;
};

}  // namespace mprox
