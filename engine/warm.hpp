// SPDX-License-Identifier: MIT
#pragma once

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

namespace mprox {

/// Connections to servers that are greeted before anybody needs them: a connect() then takes one round trip to the server
/// instead of two or three. There are as many as connects have lately come at once, none for an application that makes no
/// more, and each carries one flow at most. Belongs to one shard and its thread.
class Warm {
  public:
    /// Bounds of what waits, in one pool and in all.
    static constexpr std::size_t pool_most = 16, most = 64;

    /// What tells pools apart: connections of one may serve any flow that asks for the same.
    struct Kind {
        std::shared_ptr<Namespace> ns;
        std::size_t server;  ///< its index
        std::uint32_t window;
    };
    using Greet = std::function<asio::awaitable<std::expected<Greeted, DialRefusal>>(const Kind&, DialHandle&)>;

    /// `greet` makes a connection of a kind.
    Warm(Poller& poller, Greet greet) : poller_(poller), greet_(std::move(greet)), soon_(poller), timer_(poller), check_(poller) {}
    Warm(const Warm&) = delete;
    ~Warm();

    /// A flow asks for a server. Whatever it gets, it is one more that would like to find one waiting.
    /// The connection may have died without a word: while `dial` asks the server, it is broken when that does not even
    /// acknowledge the request.
    [[nodiscard]] std::optional<Greeted> take(const Kind& kind, DialHandle& dial);
    /// `dial` has got an answer, or lost a connection from take() before that: the flow dials as if it had got nothing then.
    void settle(const Kind& kind, DialHandle& dial, bool lost);

    /// A flow has its answer: others are made soon.
    void replenish(const Kind& kind);

    /// Connections that wait.
    [[nodiscard]] std::size_t waiting() const { return waiting_; }

  private:
    struct Pool;
    struct Waiting;
    using Key = std::tuple<std::uint64_t, std::size_t, std::uint32_t>;

    static Key key_of(const Kind& kind);
    asio::awaitable<void> make(std::shared_ptr<Pool> pool, std::unique_ptr<DialHandle> handle);
    void keep(const std::shared_ptr<Pool>& pool, Greeted greeted);
    void drop(Pool& pool, std::size_t count);
    void fill(const std::shared_ptr<Pool>& pool);
    void check_asked();
    void watch_over();
    void look_after();

    Poller& poller_;
    const Greet greet_;
    std::map<Key, std::shared_ptr<Pool>> pools_;
    std::size_t waiting_ = 0, making_ = 0;
    Timer soon_, timer_;
    std::unordered_map<DialHandle*, std::chrono::steady_clock::time_point> asked_;  // and since when
    Timer check_;
};

}  // namespace mprox
