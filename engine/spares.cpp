// SPDX-License-Identifier: MIT
#include "engine/spares.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

namespace mprox {

using namespace std::chrono_literals;

namespace {
constexpr auto period = 4s;  // those that nobody has asked for in such a time are closed
}

void Spares::keep(const Address& name, Descriptor socket) {
    if (socket.renewals() >= uses_most) return;
    // The oldest may be one whose address a program has taken for a connection that has never come.
    if (kept_.size() == most) {
        withdraw(kept_.front().name);
        kept_.erase(kept_.begin());
    }
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
    taken_ = true;
    socket.renew();
    return socket;
}

void Spares::clear() {
    for (const Kept& kept : kept_) withdraw(kept.name);
    kept_.clear();
}

// The programs choose among all other IPv6 addresses, which are few.
void Spares::offer(const Address& name) {
    if (!name.is_ipv4()) return;
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
        if (!std::exchange(taken_, false)) clear();
        if (!kept_.empty()) look_after();
    });
}

}  // namespace mprox
