// SPDX-License-Identifier: MIT
#pragma once

#include <asio/awaitable.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <expected>
#include <string>
#include <vector>

#include "engine/netns.hpp"
#include "engine/policy.hpp"

namespace mprox {

/// What the application had set on its socket and the connection to the server honours.
struct DialOptions {
    Address bound;             ///< source address, or unset
    std::uint32_t device = 0;  ///< interface index, or 0
    std::uint32_t mark = 0;    ///< SO_MARK
};

/// Why a server did not connect us. A value, not a fault.
struct DialRefusal {
    bool server = false;  ///< the server itself is at fault: another one may do better
    int error = 0;        ///< what connect() reports
    std::string text;     ///< "SOCKS5 reply 5: connection refused"
};

/// A connection to the destination, through the server.
struct Dialled {
    asio::posix::stream_descriptor socket;  ///< non-blocking
    std::vector<std::uint8_t> early;        ///< the destination's first bytes, when they came with the server's reply
};

/// The one dial a flow has under way; cancel() ends it.
class DialHandle {
  public:
    void cancel() {
        cancelled_ = true;
        if (socket_) socket_->cancel();
    }
    [[nodiscard]] bool cancelled() const { return cancelled_; }

  private:
    friend struct DialScope;
    asio::posix::stream_descriptor* socket_ = nullptr;
    bool cancelled_ = false;
};

/// Reaches `destination` through `server` with sockets of `ns`. All arguments outlive the dial. Without a `limit`
/// it takes as long as the server does; after `limit` it counts as the server's failure.
asio::awaitable<std::expected<Dialled, DialRefusal>> dial(const Namespace& ns, const Server& server,
                                                          const mproto_endpoint& destination,
                                                          const DialOptions& options, DialHandle& handle,
                                                          std::chrono::milliseconds limit);

}  // namespace mprox
