// SPDX-License-Identifier: MIT
#include "engine/spares.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

namespace mprox {

using namespace std::chrono_literals;

namespace {
constexpr auto period = 4s;  // as many as were not needed in such a time are closed
}

void Spares::keep(const Address& name, Descriptor socket) {
    if (socket.renewals() >= uses_most) return;
    // The oldest may be one whose address a program has taken for a connection that has never come.
    if (kept_.size() == most) drop(1);
    kept_.push_back({name, std::move(socket)});
    offer(name);
    look_after();
}

Descriptor Spares::take(const Address& name) {
    const auto found = std::ranges::find(kept_, name, &Kept::name);
    if (found == kept_.end()) return {};
    withdraw(name);  // a connection may have come here without being sent
    Descriptor socket = std::move(found->socket);
    kept_.erase(found);
    fewest_ = std::min(fewest_, kept_.size());
    socket.renew();
    return socket;
}

void Spares::drop(std::size_t count) {
    const auto end = kept_.begin() + static_cast<std::ptrdiff_t>(count);
    std::for_each(kept_.begin(), end, [this](const Kept& kept) { withdraw(kept.name); });
    kept_.erase(kept_.begin(), end);
    fewest_ = std::min(fewest_, kept_.size());
}

void Spares::clear() { drop(kept_.size()); }

// The programs choose among all other IPv6 addresses, which are few.
void Spares::offer(const Address& name) {
    if (!name.is_ipv4() || std::ranges::find(kept_, name, &Kept::name) == kept_.end()) return;
    withdraw(name);
    for (std::uint32_t& place : offered_)
        if (std::uint32_t nothing = 0; std::atomic_ref(place).compare_exchange_strong(nothing, name.ip.word[3])) return;
}

void Spares::withdraw(const Address& name) {
    if (!name.is_ipv4()) return;
    for (std::uint32_t& place : offered_)
        if (std::uint32_t offered = name.ip.word[3]; std::atomic_ref(place).compare_exchange_strong(offered, 0)) return;
}

void Spares::look_after() {
    if (timer_.started()) return;
    timer_.start(period, [this] {
        drop(std::exchange(fewest_, kept_.size()));
        if (!kept_.empty()) look_after();
    });
}

}  // namespace mprox
