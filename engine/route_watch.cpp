// SPDX-License-Identifier: MIT
#include "engine/route_watch.hpp"

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <utility>

namespace mprox {
namespace {

using namespace std::chrono_literals;

// A device that goes takes its addresses and routes along, one message each.
constexpr auto together = 20ms;
constexpr unsigned ipv6_rules = 1u << (RTNLGRP_IPV6_RULE - 1);  // the one without a name of this kind

}  // namespace

RouteWatch::RouteWatch(Poller& poller, const Namespace& ns, std::function<void()> changed)
    : timer_(poller), changed_(std::move(changed)) {
    Fd socket = ns.socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
    sockaddr_nl groups{};
    groups.nl_family = AF_NETLINK;
    groups.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR |
                       RTMGRP_IPV4_RULE | ipv6_rules;
    // Without it connections are as before: they stay with the device they left through at first.
    if (!socket || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&groups), sizeof groups) != 0) return;
    socket_ = Descriptor(poller, std::move(socket));
    if (socket_) socket_.listen([this](std::uint32_t) { heard(); });
}

void RouteWatch::heard() {
    // What is said does not matter, and neither does what there was no room for (ENOBUFS).
    char message[8192];
    while (::recv(socket_.get(), message, sizeof message, MSG_DONTWAIT) >= 0 || errno == ENOBUFS) continue;
    if (timer_.started()) return;
    timer_.start(together, [this] {
        const auto tell = changed_;  // which may be our end
        tell();
    });
}

}  // namespace mprox
