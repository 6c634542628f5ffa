// SPDX-License-Identifier: MIT
#pragma once

#include <asio/awaitable.hpp>
#include <chrono>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/netns.hpp"
#include "engine/policy.hpp"
#include "engine/poller.hpp"

namespace mprox {

/// What is watched of a connection to a server.
struct Watch {
    std::uint32_t device = 0;  ///< where the server's packets come in
    std::string refusal;       ///< or why nothing is
};

/// What the application had set on its socket and the connection to the server honours.
struct DialOptions {
    Address bound;             ///< source address, or unset
    std::uint32_t device = 0;  ///< interface index, or 0
    std::uint32_t mark = 0;    ///< SO_MARK
    /// As connect(2), or an errno; EADDRINUSE: take another socket. What it returns goes with the connection.
    std::function<std::expected<Watch, int>(int, const SocketAddress&)> connect{};

    /// Nothing was set.
    [[nodiscard]] bool is_plain() const { return bound.is_unset() && !device && !mark; }
};

/// Whose doing it is that a dial was refused.
enum class Fault {
    destination,  ///< the server has a word on it, which is final
    server,       ///< another one may do better, and this one is better left alone for a while
    time,         ///< the server lives, but has taken its share of the time: another one may be faster
    ours,         ///< no descriptors, no memory
};

/// Why a server did not connect us. A value.
struct DialRefusal {
    Fault fault = Fault::server;
    int error = 0;        ///< what connect() reports
    std::string text;     ///< "SOCKS5 reply 5: connection refused"
    bool unheard = false;  ///< the connection was lost before the server said anything to the request
};

/// A connection to a server that has been told all but the destination: connected, greeted, authenticated.
struct Greeted {
    Descriptor socket;
    Watch watch;
    mproto_client client;
    std::vector<std::uint8_t> said;  ///< without being asked
    bool waited = false;             ///< since: it may be dead by now
};

/// A connection to the destination, through the server.
struct Dialled {
    Descriptor socket;
    Watch watch;
    std::vector<std::uint8_t> early;  ///< the destination's first bytes, when they came with the server's reply
};

/// The one dial a flow has under way; cancel() ends it.
class DialHandle {
  public:
    void cancel() {
        cancelled_ = true;
        if (socket_) socket_->cancel();
    }
    [[nodiscard]] bool cancelled() const { return cancelled_; }
    /// Breaks the connection to the server, as if that had been lost.
    void lose() {
        if (socket_) socket_->cancel();
    }
    /// The server has not even acknowledged what it was sent last.
    [[nodiscard]] bool unacknowledged() const;
    /// The server being dialled has shown that it lives: it has greeted us (SOCKS5), or taken the connection (others).
    [[nodiscard]] bool heard() const { return heard_; }

  private:
    friend struct DialScope;
    Descriptor* socket_ = nullptr;
    bool cancelled_ = false;
    bool heard_ = false;
};

/// Connects to `server` with a socket of `ns`, and greets it. All arguments outlive this, and the server what it returns.
/// A `spare` is a socket that was connected to it before, with no wishes, by way of the same namespace; or empty.
/// Without a `limit` it takes as long as the server does. With one, a server that has not been heard() after first_word is
/// given up as faulty, and any other after `limit` for lack of time.
constexpr std::chrono::seconds first_word{5};
asio::awaitable<std::expected<Greeted, DialRefusal>> greet(Poller& poller, const Namespace& ns, const Server& server,
                                                           const DialOptions& options, DialHandle& handle,
                                                           std::chrono::milliseconds limit, Descriptor spare = {});

/// Asks a greeted server for the destination. A `limit` as above.
asio::awaitable<std::expected<Dialled, DialRefusal>> ask(Poller& poller, Greeted greeted, const mproto_endpoint& destination,
                                                         DialHandle& handle, std::chrono::milliseconds limit);

/// The client's side after a greeting of SOCKS5 that somebody else has exchanged, without a password.
mproto_client greeted_client(const Server& server);

/// Why a server cannot be asked for such a destination, if its protocol has no words for it: then it is not even connected to.
std::optional<DialRefusal> cannot_carry(const Server& server, const mproto_endpoint& destination);

}  // namespace mprox
