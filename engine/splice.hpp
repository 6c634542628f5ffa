// SPDX-License-Identifier: MIT
#pragma once

#include <asio/awaitable.hpp>
#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "engine/account.hpp"
#include "engine/flow.hpp"
#include "engine/hooks.hpp"
#include "engine/repair.hpp"
#include "engine/route_watch.hpp"

namespace mprox {

class Splicer;

/// Whether connections go out of the path.
enum class Splice {
    never,
    possible,  ///< where that is possible
    always,    ///< the same, and where it is not the user is told
};

/// The way back from a server, watched while its connection is being made: what comes in where, and with what
/// timestamps. Or the reason why there is nothing to watch. Ends before its Splicer.
class Watch {
  public:
    explicit Watch(std::string refusal) : refusal_(std::move(refusal)) {}
    Watch(int map, const mprox_splice_key& inward, const Address& local, std::uint32_t device)
        : map_(map), inward_(inward), local_(local), device_(device) {}
    Watch(Watch&&) = delete;
    ~Watch();

  private:
    friend Splicer;
    std::string refusal_;
    int map_ = -1;  // none: nothing to remove
    mprox_splice_key inward_{};
    Address local_;
    std::uint32_t device_ = 0;
};

/// The other way to answer a held connect(): joins the application's socket to the server's connection in the packets, so
/// that no process touches a byte. The engine's own socket to the server stays, frozen, and keeps the port.
/// Belongs to one shard and its thread.
class Splicer {
  public:
    Splicer(asio::io_context& io, const Programs& programs, const mprox_call& context, Account& account,
            const std::size_t& descriptors, std::function<void()> changed);

    /// Why that application's socket cannot be spliced to a connection to `server`, whatever that one will be like.
    [[nodiscard]] static std::optional<std::string> unsuited(const mprox_event& held, const Server& server);

    /// To be called as soon as `socket`, of `ns`, is on its way to `server`; the options are those it was made with. Null:
    /// another connection has these addresses and ports, take others.
    [[nodiscard]] std::shared_ptr<Watch> watch(Namespace& ns, const DialOptions& options, const Server& server, int socket);

    /// The TCP_WINDOW_CLAMP with which a connection to a server gets the window scale of the application's: a smaller one is
    /// lost in a larger unit.
    [[nodiscard]] static std::uint32_t window_clamp(const mprox_event& held);

    /// Answers the connect() and takes the server's socket. Otherwise leaves everything as it was; the error is the reason.
    [[nodiscard]] asio::awaitable<std::expected<void, std::string>> hand_over(Flow& flow, Dialled& dialled);

    /// The application's socket is closed.
    void closed(const mprox_event& event);
    /// Looks for closed ones that nobody was told of.
    void find_closed();

    /// Connections that are not at their end.
    [[nodiscard]] std::size_t active() const { return flows_.size() - resting_; }
    /// Gives up the descriptors of those that are.
    void forget_resting();
    /// Brings the account up to date.
    void measure();
    /// Breaks what still stands.
    void finish();

  private:
    using Clock = std::chrono::steady_clock;
    using Key = std::pair<std::uint64_t, std::uint32_t>;  // cookie and attempt of the application's socket
    struct Spliced;

    std::expected<TcpState, std::string> prepare(const Flow& flow, Dialled& dialled, Spliced& to);
    asio::awaitable<void> deliver(std::shared_ptr<Spliced> flow);
    asio::awaitable<void> sleep(std::chrono::milliseconds time);
    void measure(Spliced& flow);
    void count(Spliced& flow);
    void closed(const Key& key, Spliced& flow, std::uint8_t state);
    void remove(const Key& key);
    void remove_entries(Spliced& flow);
    void schedule(const Key& key, std::chrono::milliseconds after);
    void wait();
    void expire();
    void follow_routes(const std::shared_ptr<Namespace>& ns);
    void reroute(std::uint64_t netns);
    bool is_tracked(const Namespace& ns);
    std::optional<std::uint32_t> device_towards(Namespace& ns, const DialOptions& options, const Address& from, const Address& to);

    asio::io_context& io_;
    const Programs& programs_;
    const mprox_call context_;
    Account& account_;
    const std::size_t& descriptors_;  // that there are
    std::function<void()> changed_;
    Hooks hooks_;
    std::map<Key, std::shared_ptr<Spliced>> flows_;
    std::multimap<Clock::time_point, Key> endings_;
    asio::steady_timer timer_;
    std::size_t resting_ = 0;
    struct Device {
        std::uint32_t index;
        Clock::time_point until;
    };
    struct Tracking {
        bool tracked;
        Clock::time_point until;
    };
    std::map<std::uint64_t, Tracking> tracking_;  // by namespace
    std::map<std::string, Device> devices_;  // what the routing table has said lately
    struct Followed {
        std::size_t flows = 0;
        std::unique_ptr<RouteWatch> routes;
    };
    std::map<std::uint64_t, Followed> followed_;  // namespaces whose routes the flows depend on
};

}  // namespace mprox
