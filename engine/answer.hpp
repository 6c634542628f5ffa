// SPDX-License-Identifier: MIT
#pragma once

#include "engine/fd.hpp"
#include "engine/netns.hpp"

namespace mprox {

/// Answers a held connect() with a refusal, as the network would: a reset for ECONNREFUSED, ICMP unreachable for
/// EHOSTUNREACH and ENETUNREACH. Nothing for ETIMEDOUT: silence is that answer, and the kernel keeps the time.
/// The kernel drops an ICMP error that meets a busy socket, so repeat until the connect() is seen to have ended.
void refuse(Namespace& ns, const mprox_event& held, int error);

/// Begins the answer "connected": a socket bound to the held address that connects to the application's. The two
/// SYNs cross (RFC 9293 section 3.5, simultaneous open) and the application's connect() returns.
/// The socket is non-blocking and perhaps still connecting. Empty with errno set on failure.
[[nodiscard]] Fd open_towards(const Namespace& ns, const mprox_event& held);

}  // namespace mprox
