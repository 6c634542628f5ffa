// SPDX-License-Identifier: MIT
#pragma once

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <functional>

#include "engine/netns.hpp"

namespace mprox {

/// Tells when the way out of a network namespace may have changed: its routes, rules, addresses or devices. Changes that
/// come together are told once. Used by the io_context's thread.
class RouteWatch {
  public:
    RouteWatch(asio::io_context& io, const Namespace& ns, std::function<void()> changed);
    RouteWatch(const RouteWatch&) = delete;

  private:
    void wait();

    asio::posix::stream_descriptor socket_;
    asio::steady_timer timer_;
    const std::function<void()> changed_;
    bool telling_ = false;
};

}  // namespace mprox
