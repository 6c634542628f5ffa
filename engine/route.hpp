// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "engine/address.hpp"
#include "engine/netns.hpp"

namespace mprox {

/// The device that packets from `from` to `to` leave through, as the routing table of `ns` says now; that of lo for an
/// address of this host. An unset `from` is what connect(2) would choose. `device` and `mark` are the socket's, or 0.
[[nodiscard]] std::optional<std::uint32_t> find_device(Namespace& ns, const Address& from, const Address& to,
                                                       std::uint32_t device, std::uint32_t mark);

/// Whether IPsec policies are in force in `ns`. Packets that do not go through a socket would go around them.
[[nodiscard]] bool has_ipsec(const Namespace& ns);

}  // namespace mprox
