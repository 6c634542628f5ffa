// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/dial.hpp"
#include "engine/ready.hpp"

namespace mprox {

/// Connections to servers that are greeted before anybody needs them: a connect() then takes one round trip to the server
/// instead of two or three. There are as many as connects have lately come at once, none for an application that makes no
/// more, and each carries one flow at most. The BPF programs may have those that suit them, and take them without a word.
/// Belongs to one shard and its thread.
class Warm {
  public:
    /// Bounds of what waits, in one pool and in all.
    static constexpr std::size_t pool_most = 48, most = 96;

    /// What tells pools apart: connections of one may serve any flow that asks for the same.
    struct Kind {
        std::shared_ptr<Namespace> ns;
        std::size_t server;  ///< its index
        std::uint32_t window;
    };
    using Greet = std::function<asio::awaitable<std::expected<Greeted, DialRefusal>>(const Kind&, DialHandle&)>;

    /// Offers a connection to the programs, as Ready::offer().
    using Offer = std::function<std::optional<std::uint32_t>(const Kind&, const Greeted&)>;

    /// `greet` makes a connection of a kind. `needless` says of a kind that a connect() does as well without: then none are made.
    /// `stirred` is called when something arrives on one that a program has taken.
    Warm(Poller& poller, Ready& ready, Greet greet, Offer offer, std::function<bool(const Kind&)> needless,
         std::function<void()> stirred)
        : poller_(poller),
          ready_(ready),
          greet_(std::move(greet)),
          offer_(std::move(offer)),
          needless_(std::move(needless)),
          stirred_(std::move(stirred)),
          soon_(poller),
          timer_(poller),
          check_(poller) {}
    Warm(const Warm&) = delete;
    ~Warm();

    /// A flow asks for a server. Whatever it gets, it is one more that would like to find one waiting.
    /// The connection may have died without a word: while `dial` asks the server, it is broken when that does not even
    /// acknowledge the request.
    [[nodiscard]] std::optional<Greeted> take(const Kind& kind, DialHandle& dial);
    /// A program has found none, and has done without.
    void miss(const Kind& kind);
    /// The same is done for `dial`, which asks by one that a program had taken.
    void watch(DialHandle& dial);
    /// `dial` has got an answer, or lost a connection from take() before that: the flow dials as if it had got nothing then.
    void settle(const Kind& kind, DialHandle& dial, bool lost);

    /// A flow has its answer: others are made soon.
    void replenish(const Kind& kind);

    /// One that a program has taken, if that number is one; it is the caller's now.
    struct Taken {
        Kind kind;
        Greeted greeted;
        std::optional<std::chrono::steady_clock::time_point> since;  ///< of lend()
    };
    /// The programs have a connection that does not wait here, for a connect() of a while ago.
    void lend(std::uint32_t number, const Kind& kind, Greeted greeted, std::chrono::steady_clock::time_point since);
    [[nodiscard]] std::optional<Taken> release(std::uint32_t number);
    /// Looks for those: as many are made, now.
    void refill();
    /// Withdraws those that are not `good` any more.
    void reconsider(const std::function<bool(const Kind&, const mprox_ready&)>& good);
    /// No more are offered, nor are those that wait.
    void withdraw();

    /// Connections that wait.
    [[nodiscard]] std::size_t waiting() const { return waiting_; }

  private:
    struct Pool;
    struct Waiting;
    using Key = std::tuple<std::uint64_t, std::size_t, std::uint32_t>;

    static Key key_of(const Kind& kind);
    std::shared_ptr<Pool>& pool_of(const Kind& kind);
    static void want_more(Pool& pool);
    static std::size_t low_of(const Pool& pool);
    asio::awaitable<void> make(std::shared_ptr<Pool> pool, std::unique_ptr<DialHandle> handle);
    void keep(const std::shared_ptr<Pool>& pool, Greeted greeted);
    void drop(Pool& pool, std::size_t count);
    void hear(const std::shared_ptr<Pool>& pool, const std::shared_ptr<Waiting>& kept);
    bool regain(Waiting& waiting);
    void sort_out();
    void fill(const std::shared_ptr<Pool>& pool);
    void check_asked();
    void watch_over();
    void look_after();

    Poller& poller_;
    Ready& ready_;
    const Greet greet_;
    const Offer offer_;
    const std::function<bool(const Kind&)> needless_;
    const std::function<void()> stirred_;
    struct Offered {
        std::shared_ptr<Pool> pool;
        std::shared_ptr<Waiting> waiting;
        std::optional<std::chrono::steady_clock::time_point> since{};
    };
    std::array<Offered, Ready::most> offered_;  ///< by their numbers
    std::map<Key, std::shared_ptr<Pool>> pools_;
    std::size_t waiting_ = 0, making_ = 0;
    Timer soon_, timer_;
    std::unordered_map<DialHandle*, std::chrono::steady_clock::time_point> asked_;  // and since when
    Timer check_;
};

}  // namespace mprox
