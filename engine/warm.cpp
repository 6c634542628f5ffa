// SPDX-License-Identifier: MIT
#include "engine/warm.hpp"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <chrono>
#include <deque>

namespace mprox {

using namespace std::chrono_literals;

namespace {

// How often it is looked how many were needed; a pool that nobody asked for that many times in a row is emptied. Servers
// give clients that say nothing more time than that.
constexpr auto period = 4s;
constexpr int idle_periods = 3;
// A server that has closed so many, and none was used meanwhile, does not like it.
constexpr int lost_most = 3;
// The application that has just got its connection wants the processor first, and what is made together costs less.
constexpr auto soon = 1ms;
// A pool that lasts less long is too small: a few connections made at a time cost more than many.
constexpr auto fill_period = 4ms;
constexpr std::size_t batch = 8;
// A path that died without a word is noticed when a request has not been acknowledged for so long; looked at so often.
constexpr auto unacknowledged_most = 2s;
constexpr auto check_period = 500ms;

}  // namespace

// One that waits. It is known to be alive as long as nothing arrives.
struct Warm::Waiting {
    Greeted greeted;
    std::optional<std::uint32_t> number;  // when it is offered
};

struct Warm::Pool {
    Kind kind;
    std::deque<std::shared_ptr<Waiting>> waiting;  // the youngest last
    std::vector<DialHandle*> making;
    std::size_t wanted = 0;
    std::size_t spare = 0;  // the fewest that waited in this period
    bool asked = true;      // in this period
    bool used = false;      // and to be filled soon
    std::chrono::steady_clock::time_point filled{};
    int idle = 0;           // periods
    int lost = 0;
};

Warm::~Warm() {
    withdraw();
    for (auto& [key, pool] : pools_)
        for (DialHandle* handle : pool->making) handle->cancel();
}

Warm::Key Warm::key_of(const Kind& kind) { return {kind.ns->cookie(), kind.server, kind.window}; }

std::shared_ptr<Warm::Pool>& Warm::pool_of(const Kind& kind) {
    auto& pool = pools_[key_of(kind)];
    if (!pool) pool = std::make_shared<Pool>(Pool{.kind = kind, .waiting = {}, .making = {}});
    return pool;
}

void Warm::want_more(Pool& pool) {
    pool.spare = 0;
    pool.wanted = std::min(pool.wanted + 1, pool_most);
}

void Warm::miss(const Kind& kind) {
    if (needless_(kind)) return;
    Pool& pool = *pool_of(kind);
    pool.asked = pool.used = true;
    want_more(pool);
}

std::optional<Greeted> Warm::take(const Kind& kind, DialHandle& dial) {
    const auto& pool = pool_of(kind);
    pool->asked = true;
    while (!pool->waiting.empty()) {
        const auto found = std::move(pool->waiting.back());
        pool->waiting.pop_back();
        waiting_--;
        if (!regain(*found)) continue;
        pool->spare = std::min(pool->spare, pool->waiting.size());
        found->greeted.socket.listen(nullptr);
        watch(dial);
        return std::move(found->greeted);
    }
    if (!needless_(kind)) want_more(*pool);
    return {};
}

// False: a program has it.
bool Warm::regain(Waiting& waiting) {
    if (!waiting.number) return true;
    if (!ready_.withdraw(*waiting.number)) return false;
    offered_[*std::exchange(waiting.number, {})] = {};
    return true;
}

void Warm::watch(DialHandle& dial) {
    asked_[&dial] = std::chrono::steady_clock::now();
    check_asked();
}

// Those that the programs have taken wait no more.
void Warm::sort_out() {
    for (std::uint32_t number = 0; number < Ready::most; number++) {
        const Offered& offered = offered_[number];
        if (!offered.waiting || ready_.state(number) == MPROX_READY_WAITS) continue;
        const auto place = std::ranges::find(offered.pool->waiting, offered.waiting);
        if (place == offered.pool->waiting.end()) continue;
        offered.pool->waiting.erase(place);
        waiting_--;
        offered.pool->asked = offered.pool->used = true;
    }
}

std::optional<Warm::Taken> Warm::release(std::uint32_t number) {
    sort_out();
    const Offered offered = std::exchange(offered_[number], {});
    if (!offered.waiting) return {};
    offered.waiting->number.reset();
    offered.waiting->greeted.socket.listen(nullptr);
    return Taken{.kind = offered.pool->kind, .greeted = std::move(offered.waiting->greeted), .since = offered.since};
}

void Warm::lend(std::uint32_t number, const Kind& kind, Greeted greeted, std::chrono::steady_clock::time_point since) {
    const auto pool = std::make_shared<Pool>(Pool{.kind = kind, .waiting = {}, .making = {}});
    const auto lent = std::make_shared<Waiting>(Waiting{.greeted = std::move(greeted), .number = number});
    offered_[number] = {.pool = pool, .waiting = lent, .since = since};
    hear(pool, lent);
}

void Warm::refill() {
    sort_out();
    for (const auto& [key, pool] : pools_)
        if (std::exchange(pool->used, false)) {
            const auto now = std::chrono::steady_clock::now();
            if (now - std::exchange(pool->filled, now) < fill_period) pool->wanted = std::max(pool->wanted, std::min(2 * pool->wanted, batch));
            watch_over();
            fill(pool);
        }
}

void Warm::reconsider(const std::function<bool(const Kind&, const mprox_ready&)>& good) {
    for (const Offered& offered : std::array(offered_))
        if (offered.waiting && offered.waiting->number && !good(offered.pool->kind, ready_.at(*offered.waiting->number)))
            static_cast<void>(regain(*offered.waiting));
}

void Warm::withdraw() {
    for (const auto& [key, pool] : pools_)
        for (const auto& waiting : pool->waiting) static_cast<void>(regain(*waiting));
}

void Warm::settle(const Kind& kind, DialHandle& dial, bool lost) {
    asked_.erase(&dial);
    if (const auto found = pools_.find(key_of(kind)); found != pools_.end()) found->second->lost = lost ? found->second->lost + 1 : 0;
}

void Warm::check_asked() {
    if (asked_.empty() || check_.started()) return;
    check_.start(check_period, [this] {
        const auto late = std::chrono::steady_clock::now() - unacknowledged_most;
        std::erase_if(asked_, [&](const auto& asked) {
            if (asked.second > late) return false;
            if (asked.first->unacknowledged()) asked.first->lose();
            return true;
        });
        check_asked();
    });
}

void Warm::replenish(const Kind& kind) {
    const auto found = pools_.find(key_of(kind));
    if (found == pools_.end()) return;
    found->second->used = true;
    watch_over();
    if (soon_.started()) return;
    soon_.start(soon, [this] { refill(); });
}

// When so few wait it is time to make others.
std::size_t Warm::low_of(const Pool& pool) { return pool.wanted / 2; }

void Warm::fill(const std::shared_ptr<Pool>& pool) {
    if (pool->lost >= lost_most || needless_(pool->kind)) return;
    ready_.set_low(static_cast<std::uint32_t>(low_of(*pool)));
    while (pool->waiting.size() + pool->making.size() < pool->wanted && waiting_ + making_ < most) {
        auto handle = std::make_unique<DialHandle>();
        pool->making.push_back(handle.get());
        making_++;
        asio::co_spawn(poller_.handlers(), make(pool, std::move(handle)), asio::detached);
    }
}

asio::awaitable<void> Warm::make(std::shared_ptr<Pool> pool, std::unique_ptr<DialHandle> handle) {
    if (handle->cancelled()) co_return;  // we may be gone
    auto greeted = co_await greet_(pool->kind, *handle);
    if (handle->cancelled()) co_return;
    std::erase(pool->making, handle.get());
    making_--;
    if (!greeted || !greeted->said.empty()) {
        pool->wanted = 0;  // the next connect() sees what is wrong
        co_return;
    }
    keep(pool, std::move(*greeted));
}

void Warm::keep(const std::shared_ptr<Pool>& pool, Greeted greeted) {
    greeted.waited = true;
    const auto kept = std::make_shared<Waiting>(Waiting{.greeted = std::move(greeted), .number = {}});
    pool->waiting.push_back(kept);
    waiting_++;
    kept->number = offer_(pool->kind, kept->greeted);
    if (kept->number) offered_[*kept->number] = {.pool = pool, .waiting = kept};
    hear(pool, kept);
}

// Whatever arrives: its end, or words that nobody has asked for.
void Warm::hear(const std::shared_ptr<Pool>& pool, const std::shared_ptr<Waiting>& kept) {
    kept->greeted.socket.listen([this, pool, waits = kept.get()](std::uint32_t events) {
        if (!(events & Descriptor::reading)) return;
        if (!regain(*waits)) {
            static_cast<void>(ready_.give_up(*waits->number));
            return stirred_();
        }
        const auto place = std::ranges::find(pool->waiting, waits, &std::shared_ptr<Waiting>::get);
        if (place == pool->waiting.end()) return;
        pool->waiting.erase(place);
        waiting_--;
        pool->lost++;
    });
}

void Warm::drop(Pool& pool, std::size_t count) {
    count = std::min(count, pool.waiting.size());
    const auto end = pool.waiting.begin() + static_cast<std::ptrdiff_t>(count);
    const auto kept = std::remove_if(pool.waiting.begin(), end, [this](const auto& waiting) { return regain(*waiting); });
    waiting_ -= static_cast<std::size_t>(end - kept);
    pool.waiting.erase(kept, end);
}

void Warm::watch_over() {
    if (timer_.started()) return;
    timer_.start(period, [this] {
        look_after();
        if (!pools_.empty()) watch_over();
    });
}

void Warm::look_after() {
    sort_out();
    const std::size_t fewest = ready_.fewest();
    for (auto next = pools_.begin(); next != pools_.end();) {
        const auto at = next++;
        Pool& pool = *at->second;
        if (std::exchange(pool.asked, false)) {
            pool.idle = 0;
            // Where the programs take none, take() has seen to it.
            const auto is_offered = [](const auto& waiting) { return waiting->number.has_value(); };
            if (pool.waiting.empty() || std::ranges::any_of(pool.waiting, is_offered))
                pool.spare = std::min(pool.spare, fewest - std::min(fewest, low_of(pool)));
            pool.wanted = std::max(pool.wanted - std::min(pool.spare, pool.wanted), std::min<std::size_t>(pool.wanted, 1));
            drop(pool, pool.spare);
        } else if (++pool.idle >= idle_periods) {
            drop(pool, pool.waiting.size());
            for (DialHandle* handle : pool.making) handle->cancel();
            making_ -= pool.making.size();
            pools_.erase(at);
            continue;
        }
        pool.spare = pool.waiting.size();
    }
}

}  // namespace mprox
