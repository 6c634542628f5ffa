// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "engine/address.hpp"
#include "engine/fd.hpp"

namespace mprox {

/// A network namespace that sockets can be made in. Used by one thread.
class Namespace {
  public:
    /// An empty `handle` is the namespace that this process started in.
    Namespace(Fd handle, std::uint64_t cookie) : handle_(std::move(handle)), cookie_(cookie) {}

    /// socket(2) inside this namespace; empty with errno set on failure.
    [[nodiscard]] Fd socket(int family, int type, int protocol) const;

    /// Runs `call` inside this namespace, on the calling thread.
    void visit(const std::function<void()>& call) const;

    /// A raw socket to send whole packets through, made once. -1 with errno set on failure.
    [[nodiscard]] int raw(int family);

    /// The source address that the routing table chooses towards `to`; unset when there is no route.
    [[nodiscard]] Address source_towards(const Address& to) const;

    /// A socket to ask the routing table through, made once. -1 with errno set on failure.
    [[nodiscard]] int netlink();

    [[nodiscard]] std::uint64_t cookie() const { return cookie_; }
    [[nodiscard]] bool is_own() const { return !handle_; }

  private:
    Fd handle_;
    std::uint64_t cookie_;
    Fd raw4_, raw6_, netlink_;
};

/// Finds namespaces by the cookie that BPF reports. A namespace is kept open only while somebody uses it.
/// Used by one thread.
class Namespaces {
  public:
    Namespaces();

    /// `tgid`: a process that is, or was a moment ago, inside. Null when nobody is there any more.
    [[nodiscard]] std::shared_ptr<Namespace> find(std::uint64_t cookie, std::uint32_t tgid);

    [[nodiscard]] const std::shared_ptr<Namespace>& own() const { return own_; }

  private:
    std::shared_ptr<Namespace> own_;
    std::unordered_map<std::uint64_t, std::weak_ptr<Namespace>> known_;
};

}  // namespace mprox
