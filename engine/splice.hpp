// SPDX-License-Identifier: MIT
#pragma once

#include <asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/account.hpp"
#include "engine/flow.hpp"
#include "engine/hooks.hpp"
#include "engine/repair.hpp"
#include "engine/route_watch.hpp"

namespace mprox {

/// Whether connections go out of the path.
enum class Splice {
    never,
    possible,  ///< where that is possible
    always,    ///< the same, and where it is not the user is told
};

/// The other way to answer a held connect(): joins the application's socket to the server's connection in the packets, so
/// that no process touches a byte. The engine's own socket to the server stays, frozen, and keeps the port.
/// Belongs to one shard and its thread.
class Splicer {
  public:
    Splicer(Poller& poller, const Programs& programs, const mprox_call& context, std::uint32_t shard, Account& account,
            const std::size_t& descriptors, std::function<void()> changed);

    /// Why that application's socket cannot be spliced to a connection to `server`, whatever that one will be like.
    [[nodiscard]] static std::optional<std::string> unsuited(const mprox_event& held, const Server& server);

    /// Connections to `server` are to be expected: the programs are attached, which takes the kernel a while.
    void expect(Namespace& ns, const Address& server);

    /// Connects `socket`, of `ns`, to `server`, by connect(2) and with its errno, and has the connection watched from its
    /// first packet on until it is closed; the options are those the socket was made with, the window is its TCP_WINDOW_CLAMP.
    /// `ahead`: it is not for a flow yet.
    /// EADDRINUSE: another connection has these addresses and ports, take others.
    [[nodiscard]] std::expected<Watch, int> connect(Namespace& ns, const DialOptions& options, const Address& server,
                                                    std::uint32_t window, bool ahead, int socket, const SocketAddress& to);
    /// No longer.
    void unwatch(int socket) const;

    /// The window with which a connection to a server gets the window scale of the application's: a smaller one is lost in a
    /// larger unit.
    [[nodiscard]] static std::uint32_t window_clamp(const mprox_event& held);

    /// Answers the connect() and takes the server's socket. Otherwise leaves everything as it was; the error is the reason.
    [[nodiscard]] asio::awaitable<std::expected<void, std::string>> hand_over(Flow& flow, Dialled& dialled);

    /// A greeted connection to the server as the BPF programs want it, to answer a connect() by themselves whose window scale
    /// is that of `window`. Nothing when it is not of the usual kind.
    [[nodiscard]] std::optional<mprox_ready> describe(const Namespace& ns, const Greeted& greeted, bool ipv6, std::uint32_t window) const;
    /// They have done so. Takes the server's socket, or the one that keeps the port.
    void adopt(const mprox_ready& ready, std::shared_ptr<Namespace> ns, Descriptor server, Fd port);
    /// They have begun to, from a port: `socket`, which is bound to it, carries on as one that was greeted. Nothing when it
    /// cannot; then it breaks off what there is.
    [[nodiscard]] std::optional<Watch> carry_on(const mprox_ready& ready, Namespace& ns, int socket);
    /// Breaks that off, and removes it.
    void drop(const mprox_ready& ready, Namespace& ns) const;
    /// Most are over in no time. The ports of the others get sockets that keep the kernel from answering for a connection it
    /// does not know; to be called now and then.
    void hold_ports();
    /// Could a connection that leaves by that device, and has no wishes of its own, still be spliced?
    [[nodiscard]] bool leads_to(Namespace& ns, const Address& server, std::uint32_t device) {
        return device_towards(ns, {}, {}, server) == device && !is_tracked(ns);
    }

    /// The application's socket is closed.
    void closed(const mprox_event& event);
    /// Looks for closed ones that nobody was told of.
    void find_closed();

    /// Have connections just ended, and are not seen to yet?
    [[nodiscard]] bool ending() const { return endings_.size() > resting_; }
    /// Connections that are not at their end.
    [[nodiscard]] std::size_t active() const { return flows_.size() - resting_; }
    /// Connections that each have a port to themselves.
    [[nodiscard]] std::size_t ports() const { return ports_; }
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

    std::expected<TcpState, std::string> prepare(const Flow& flow, const Dialled& dialled, const mprox_dial& dial, Spliced& to);
    static void stamp(Spliced& flow);
    asio::awaitable<void> deliver(std::shared_ptr<Spliced> flow);
    void measure(Spliced& flow, bool remove = false);
    void closed(const Key& key, Spliced& flow, std::uint8_t state);
    void remove(const Key& key);
    void schedule(const Key& key, std::chrono::milliseconds after);
    void wait();
    void expire();
    void follow_routes(const std::shared_ptr<Namespace>& ns);
    void reroute(std::uint64_t netns);
    void follow_route(Spliced& flow);
    bool is_tracked(const Namespace& ns);
    std::optional<std::uint32_t> device_towards(Namespace& ns, const DialOptions& options, const Address& from, const Address& to);

    Poller& poller_;
    const Programs& programs_;
    const mprox_call context_;
    const std::uint32_t shard_;
    Account& account_;
    const std::size_t& descriptors_;  // that there are
    std::function<void()> changed_;
    Hooks hooks_;
    std::map<Key, std::shared_ptr<Spliced>> flows_;
    std::multimap<Clock::time_point, Key> endings_;
    Timer timer_;
    std::size_t resting_ = 0, ports_ = 0;
    std::vector<Key> unheld_;  // of those with a port, new ones
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
