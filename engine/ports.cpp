// SPDX-License-Identifier: MIT
#include "engine/ports.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine/address.hpp"

namespace mprox {

using namespace std::chrono_literals;

namespace {

constexpr std::size_t least = 8;
// When they last less long there are too few.
constexpr auto fill_period = 20ms;
constexpr auto idle_most = 12s;
constexpr std::chrono::seconds unlearnt_least = 10s, unlearnt_most = 640s;
// The application's kernel repeats its SYN after a second, and we dial by ourselves before.
constexpr std::uint32_t rtt_most = 300'000;  // microseconds

auto source_of(const mprox_ready& ready) { return std::to_array(ready.inward_key.destination.half); }

}  // namespace

void Ports::learn(std::shared_ptr<Namespace> ns, const mprox_ready& like) {
    const auto now = Clock::now();
    if (now < unlearnt_until_ || like.rtt > rtt_most) return;
    // By another way: those that wait lead nowhere.
    if (like_ && !(like_->device == like.device && source_of(*like_) == source_of(like))) withdraw();
    if (!like_) {
        wanted_ = least;
        used_ = now;
    }
    ns_ = std::move(ns);
    like_ = like;
    like_->port = 1;
}

void Ports::unlearn() {
    unlearnt_for_ = std::clamp(2 * unlearnt_for_, unlearnt_least, unlearnt_most);
    unlearnt_until_ = Clock::now() + unlearnt_for_;
    withdraw();
}

void Ports::withdraw() {
    for (std::uint32_t number = 0; number < Ready::most; number++) take_back(number);
    like_.reset();
    ns_.reset();
}

bool Ports::take_back(std::uint32_t number) {
    if (!sockets_[number] || !ready_.withdraw(number)) return false;
    sockets_[number] = {};
    return true;
}

void Ports::refill(std::size_t most) {
    if (!like_) return;
    std::size_t count = waiting();
    for (std::uint32_t number = 0; number < Ready::most && count > most; number++) count -= take_back(number);
    if (count > wanted_ / 2) return;
    const auto now = Clock::now();
    if (now - std::exchange(filled_, now) < fill_period) wanted_ *= 2;
    wanted_ = std::min(wanted_, most);
    ready_.set_ports_low(static_cast<std::uint32_t>(wanted_ / 2));
    able_ = true;
    const std::size_t enough = std::min(wanted_, count + Ready::most - ready_.used());
    while (count < enough && able_) able_ = add() && ++count;
}

bool Ports::add() {
    SocketAddress local(Address{.ip = like_->inward_key.destination, .port = 0});
    Fd socket = ns_->socket(local.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP);
    if (!socket || ::bind(socket.get(), &local.any, local.size) != 0 || ::getsockname(socket.get(), &local.any, &local.size) != 0)
        return false;
    like_->inward_key.destination_port = htons(local.address().port);
    const auto number = ready_.offer(*like_);
    if (!number) return false;
    sockets_[*number] = std::move(socket);
    return true;
}

std::optional<Fd> Ports::release(std::uint32_t number) {
    if (!sockets_[number]) return {};
    used_ = used();
    return std::exchange(sockets_[number], {});
}

void Ports::look_after() {
    if (like_ && Clock::now() - used() > idle_most) withdraw();
}

Ports::Clock::time_point Ports::used() const {
    auto last = used_;
    for (std::uint32_t number = 0; number < Ready::most; number++)
        if (sockets_[number] && ready_.state(number) > MPROX_READY_TAKEN)
            last = std::max(last, Clock::time_point(std::chrono::nanoseconds(ready_.at(number).held.time)));
    return last;
}

std::size_t Ports::waiting() const {
    std::size_t count = 0;
    for (std::uint32_t number = 0; number < Ready::most; number++)
        count += sockets_[number] && ready_.state(number) == MPROX_READY_WAITS;
    return count;
}

}  // namespace mprox
