// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "bpf/mprox.h"

namespace mprox {

/// What the kernel knows of an established TCP connection, and its peer goes by.
struct TcpState {
    std::uint32_t send_next = 0;     ///< sequence number of the next byte to be sent
    std::uint32_t receive_next = 0;  ///< of the next byte expected
    std::uint32_t unread = 0;        ///< bytes before that nobody has read
    std::uint32_t clock = 0;         ///< the timestamp a segment sent at `time` bore, or one a little later
    std::uint64_t time = 0;          ///< CLOCK_MONOTONIC, nanoseconds
    std::uint32_t send_window = 0;   ///< bytes the peer takes
    std::uint32_t mss = 0;           ///< largest payload of a segment
    std::uint32_t rtt = 0;           ///< microseconds, the least
    std::uint32_t own_mss = 0;       ///< as we have told the peer, without options
    std::uint8_t send_scale = 0, receive_scale = 0;
    bool timestamps = false, sack = false, scaling = false, ecn = false;
};

/// From now on no packet changes the socket: `filter` drops what arrives. The kernel treats it as one under repair: when it
/// is closed, nobody is told.
[[nodiscard]] bool freeze(int fd, int filter);
/// The latter alone. False when the kernel refuses.
bool silence(int fd);
/// The opposite. The peer sends again what was dropped meanwhile.
void thaw(int fd);

/// Makes the timestamps of a socket that is connecting, and that has sent none as late as `stamp`, later than that: from its next
/// segment on. False when there is nothing to be done, or the kernel refuses.
bool outrun(int fd, std::uint32_t stamp);

/// Reads a frozen socket, of which `received` bytes have been read, and whose beginning `dial` tells. The error says why its
/// connection cannot be carried on by another one.
[[nodiscard]] std::expected<TcpState, std::string> read_state(int fd, const mprox_dial& dial, std::uint64_t received);
/// Makes a socket that is bound to `from`'s port, and no more, the end of a connection that the BPF programs have made from
/// there: the server has been sent the request, and nothing after its greeting has been taken. `time`: of CLOCK_MONOTONIC,
/// nanoseconds. False when the kernel refuses.
[[nodiscard]] bool revive(int fd, const mprox_ready& from, std::uint64_t time);
/// Makes it the end of that connection for the kernel alone: so that it answers nothing which comes in by another way than the
/// programs'. It needs held_dial(), too, which keeps what it has to say from the server.
bool hold_silently(int fd, const mprox_splice_key& inward);
/// What `dials` is to say of either.
[[nodiscard]] mprox_dial held_dial(const mprox_splice_key& inward, const mprox_member& owner);
[[nodiscard]] mprox_dial revived_dial(const mprox_ready& from, const mprox_member& owner);
/// Of a connection, in microseconds; that of one which has none yet is very long.
[[nodiscard]] std::uint32_t least_round_trip(int fd);
/// Also when its peer has reset it since: its peer has answered our SYN.
[[nodiscard]] bool was_established(int fd);
/// Looks at what has not been read. False if it is less.
[[nodiscard]] bool peek(int fd, std::span<std::uint8_t> into);

}  // namespace mprox
