// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <asio/awaitable.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include "engine/account.hpp"
#include "engine/flow.hpp"
#include "engine/policy.hpp"
#include "engine/ports.hpp"
#include "engine/programs.hpp"
#include "engine/ready.hpp"
#include "engine/relay.hpp"
#include "engine/spares.hpp"
#include "engine/splice.hpp"
#include "engine/warm.hpp"

struct ring_buffer;

namespace mprox {

/// What all shards of an engine share.
struct Shared {
    Programs programs;
    mprox_call context;
    Policy policy;
    Account account;
    std::chrono::milliseconds timeout;
    Splice splice;
    bool warm;    ///< connections to servers are made before they are needed
    std::size_t descriptors;  ///< that the flows of one shard may take
    std::function<void()> changed;  ///< called from any thread when the engine may have nothing left to do
};

/// One thread's part of the engine: reads its ring, dials, answers, relays. Shards share no flow, and
/// each runs on a descriptor table of its own.
class Shard {
  public:
    Shard(Shared& shared, std::uint32_t index);
    ~Shard();

    /// Runs until stop(); on the thread that owns the shard.
    void run();
    /// Thread-safe.
    void stop() { poller_.stop(); }
    /// Runs `call` on the shard's thread. Thread-safe.
    void post(std::function<void()> call) { poller_.post(std::move(call)); }
    /// Connections that are held, relayed or spliced. Thread-safe.
    [[nodiscard]] std::size_t active() const { return active_.load() + ready_.busy(); }
    /// Has unsent() brought up to date, soon. Thread-safe.
    void measure_unsent() {
        post([this] {
            unsent_ = relay_.unsent();
            splicer_.measure();
        });
    }
    /// Bytes that had been passed on to the kernel and not yet been sent by it. Thread-safe.
    [[nodiscard]] std::size_t unsent() const { return unsent_.load(); }

  private:
    void set_awake(bool awake);
    bool read_ring();
    void look_around();
    void on_event(const mprox_event& event);
    void begin(std::shared_ptr<Flow> flow);
    std::optional<mprox_ready> describe(const Warm::Kind& kind, const Greeted& greeted);
    std::optional<std::uint32_t> offer(const Warm::Kind& kind, const Greeted& greeted);
    bool lend(Flow& flow, Greeted& greeted);
    void look_at_pool();
    void look_soon(bool wanted);
    void learn(const Warm::Kind& kind, const mprox_ready& ready);
    void refill_ports();
    bool is_warm_needless(const Warm::Kind& kind) const;
    bool do_ports_suffice() const;
    bool localize(const Warm::Kind& kind, const Greeted& greeted, mprox_ready& ready);
    void adopt(std::uint32_t number);
    void carry_on(std::uint32_t number);
    void carry_on_from_port(std::uint32_t number);
    asio::awaitable<void> serve(std::shared_ptr<Flow> flow);
    asio::awaitable<std::expected<Dialled, DialRefusal>> reach(Flow& flow, const Server& server, std::chrono::milliseconds limit);
    asio::awaitable<std::expected<Greeted, DialRefusal>> greet_ahead(const Warm::Kind& kind, DialHandle& handle);
    std::optional<Warm::Kind> kind_of(const Flow& flow) const;
    DialOptions watched(DialOptions options, Namespace& ns, const Server& server, std::uint32_t window, bool ahead);
    asio::awaitable<bool> answer(Flow& flow, Dialled dialled);
    asio::awaitable<bool> relay(Flow& flow, Dialled dialled);
    Relay::Reuse reuse_of(const Flow& flow);
    Descriptor spare_towards(const Server& server, const Namespace& ns, const DialOptions& options);
    struct Way {
        Address local;
        std::uint32_t rtt = 0;  ///< microseconds, the least
        std::chrono::steady_clock::time_point until{};
    };
    const Way& way_to(const Namespace& ns, const Server& server, int server_socket);
    void set_local(const Flow& flow, const Server& server, int server_socket);
    void refuse_flow(const std::shared_ptr<Flow>& flow, int error, const std::string& why);
    void repeat_refusal(const std::shared_ptr<Flow>& flow, std::chrono::milliseconds after);
    void note_end(const Flow& flow);
    void forget(const Flow& flow);
    void update_active();
    [[nodiscard]] std::size_t descriptors() const;

    Shared& shared_;
    const std::uint32_t index_;
    Poller poller_;
    Namespaces namespaces_;
    Relay relay_;
    Spares towards_applications_;  ///< by their held addresses
    Spares towards_servers_;       ///< by these
    unsigned relayed_ = 0;         ///< since one has gone out of the path
    Splicer splicer_;
    Ready ready_;
    Ports ports_;
    Warm warm_;
    Timer look_timer_;
    bool offers_ = true;  ///< the programs may answer by themselves
    std::array<std::optional<std::chrono::steady_clock::time_point>, Ready::most> answered_;  ///< since when, as far as we saw
    std::chrono::steady_clock::time_point reconsidered_{};
    std::chrono::steady_clock::time_point paced_{};
    int adopted_ = 0;  // since then
    bool hasty_ = false;
    std::unique_ptr<ring_buffer, void (*)(ring_buffer*)> ring_;
    Descriptor ring_ready_;
    std::unordered_map<std::uint64_t, std::shared_ptr<Flow>> held_;  ///< by socket cookie
    std::map<std::pair<std::uint64_t, const Server*>, Way> ways_;  ///< by namespace and server
    std::atomic<std::size_t> active_ = 0;
    std::atomic<std::size_t> unsent_ = 0;
    std::chrono::steady_clock::time_point limit_told_{};
    std::uint64_t reported_ = 0;  ///< held connects we were told of
    std::uint64_t heard_ = 0;     ///< events we were not woken for
    std::uint64_t missed_ = 0;    ///< ends of connections that found no room in the ring
    std::size_t crowd_ = 0;       ///< the most that were held at once since none was
};

}  // namespace mprox
