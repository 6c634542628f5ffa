// SPDX-License-Identifier: MIT
#pragma once

#include <functional>

#include "engine/netns.hpp"
#include "engine/poller.hpp"

namespace mprox {

/// Tells when the way out of a network namespace may have changed: its routes, rules, addresses or devices. Changes that
/// come together are told once. Used by the Poller's thread.
class RouteWatch {
  public:
    RouteWatch(Poller& poller, const Namespace& ns, std::function<void()> changed);
    RouteWatch(const RouteWatch&) = delete;

  private:
    void heard();

    Descriptor socket_;
    Timer timer_;
    const std::function<void()> changed_;
};

}  // namespace mprox
