// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

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
/// The second half of it, for a socket that is bound there. False with errno set on failure.
[[nodiscard]] bool connect_towards(int socket, const mprox_event& held);

/// A TCP segment from the held address to the application's socket.
struct Segment {
    std::uint32_t sequence = 0;
    std::uint32_t acknowledgement = 0;
    std::uint16_t window = 0;
    std::uint8_t flags = 0;  ///< TH_SYN and so on
    std::span<const std::uint8_t> options{};  ///< a multiple of four bytes
    std::span<const std::uint8_t> payload{};  ///< at most segment_most
};
constexpr std::size_t segment_most = 1200;

/// Sends the SYN of a held connect() again, as it was; one that asks for no ECN.
void repeat_syn(Namespace& ns, const mprox_event& held);

/// Sends it, once. It may get lost, as any.
void send_segment(Namespace& ns, const mprox_event& held, const Segment& segment);

}  // namespace mprox
