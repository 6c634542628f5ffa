// SPDX-License-Identifier: MIT
#include "engine/repair.hpp"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>

#include "engine/address.hpp"

namespace mprox {
namespace {

enum { TCPOPT_WINDOW = 3, TCPOPT_SACK_PERM = 4, TCPOPT_TIMESTAMP = 8 };
constexpr int maxseg_most = 32767;  // MAX_TCP_WINDOW
constexpr int established = 1;  // enum tcp_state
#ifndef TCPI_OPT_USEC_TS
#define TCPI_OPT_USEC_TS 64  // Linux 6.7
#endif

bool set(int fd, int option, int value) { return ::setsockopt(fd, IPPROTO_TCP, option, &value, sizeof value) == 0; }

template <typename Value>
bool get(int fd, int option, Value& value) {
    socklen_t size = sizeof value;
    return ::getsockopt(fd, IPPROTO_TCP, option, &value, &size) == 0;
}

// A value for TCP_TIMESTAMP. Since Linux 6.7 an odd one asks for microseconds, and says that it is so.
int in_milliseconds(std::uint32_t stamp) { return static_cast<int>(stamp & ~1u); }

bool connect_to_sender(int fd, const mprox_splice_key& inward) {
    const SocketAddress server(Address{.ip = inward.source, .port = ntohs(inward.source_port)});
    return ::connect(fd, &server.any, server.size) == 0;
}

}  // namespace

bool freeze(int fd, int filter) {
    if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof filter) != 0) return false;
    if (silence(fd)) return true;
    thaw(fd);
    return false;
}

bool silence(int fd) { return set(fd, TCP_REPAIR, TCP_REPAIR_ON); }

void thaw(int fd) {
    const int none = 0;
    set(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);
    ::setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none);
}

bool outrun(int fd, std::uint32_t stamp) {
    std::uint32_t now = 0;
    if (!get(fd, TCP_TIMESTAMP, now) || static_cast<std::int32_t>(stamp - now) <= 0) return false;
    const bool done = silence(fd) && set(fd, TCP_TIMESTAMP, in_milliseconds(stamp + 2) | static_cast<int>(now & 1));
    return set(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP) && done;
}

std::expected<TcpState, std::string> read_state(int fd, const mprox_dial& dial, std::uint64_t received) {
    tcp_info info{};
    if (!get(fd, TCP_INFO, info)) return std::unexpected("the kernel does not tell the state of a socket");
    if (info.tcpi_state != established) return std::unexpected("the server has ended its direction already");
    if (info.tcpi_notsent_bytes != 0 || info.tcpi_unacked != 0) return std::unexpected("the server has not acknowledged all of the handshake");
    if (info.tcpi_rcv_ooopack != 0) return std::unexpected("the server's packets came out of order");
    if (info.tcpi_options & TCPI_OPT_USEC_TS) return std::unexpected("the route to the server asks for timestamps in microseconds");
    if ((info.tcpi_options & TCPI_OPT_TIMESTAMPS) && !dial.clock) return std::unexpected("the clock of the socket is not known");
    TcpState state;
    // The kernel counts the SYN among the bytes that have been acknowledged.
    state.send_next = dial.send_next + static_cast<std::uint32_t>(info.tcpi_bytes_acked) - 1;
    state.receive_next = dial.receive_next + static_cast<std::uint32_t>(info.tcpi_bytes_received);
    state.unread = static_cast<std::uint32_t>(info.tcpi_bytes_received - received);
    state.clock = dial.clock;
    state.time = dial.time;
    state.send_window = info.tcpi_snd_wnd;
    state.mss = info.tcpi_snd_mss;
    state.rtt = info.tcpi_min_rtt;
    state.own_mss = info.tcpi_advmss;
    state.timestamps = info.tcpi_options & TCPI_OPT_TIMESTAMPS;
    state.sack = info.tcpi_options & TCPI_OPT_SACK;
    state.scaling = info.tcpi_options & TCPI_OPT_WSCALE;
    state.ecn = info.tcpi_options & TCPI_OPT_ECN;
    if (state.scaling) {
        state.send_scale = info.tcpi_snd_wscale;
        state.receive_scale = info.tcpi_rcv_wscale;
    }
    return state;
}

bool revive(int fd, const mprox_ready& from, std::uint64_t time) {
    const std::uint32_t clock = from.clock + 2 * MPROX_CLOCK_SLACK + static_cast<std::uint32_t>(time / 1'000'000);
    const auto set_sequence = [fd](int queue, std::uint32_t sequence) {
        return set(fd, TCP_REPAIR_QUEUE, queue) && set(fd, TCP_QUEUE_SEQ, static_cast<int>(sequence));
    };
    if (!silence(fd) || !set_sequence(TCP_SEND_QUEUE, from.send_next) ||
        !set_sequence(TCP_RECV_QUEUE, from.receive_next) ||
        // Of the options below this one would come too late.
        !set(fd, TCP_MAXSEG, std::min<int>(from.mss, maxseg_most)) || !connect_to_sender(fd, from.inward_key))
        return false;
    tcp_repair_opt options[]{{TCPOPT_WINDOW, from.send_scale | static_cast<std::uint32_t>(from.receive_scale) << 16},
                             {TCPOPT_TIMESTAMP, 0},
                             {TCPOPT_SACK_PERM, 0}};
    const socklen_t size = from.sack ? sizeof options : sizeof options - sizeof options[0];
    tcp_repair_window window{};
    window.snd_wl1 = from.receive_next;
    window.snd_wnd = window.max_window = 0xffff;  // what any server takes after a greeting; its next packet says it
    window.rcv_wnd = from.held.window;
    window.rcv_wup = from.receive_next;
    return ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options, size) == 0 &&
           ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window) == 0 &&
           set(fd, TCP_TIMESTAMP, in_milliseconds(clock)) && set(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);
}

bool hold_silently(int fd, const mprox_splice_key& inward) {
    return silence(fd) && connect_to_sender(fd, inward);
}

mprox_dial held_dial(const mprox_splice_key& inward, const mprox_member& owner) {
    mprox_dial dial{};
    dial.owner = owner;
    dial.inward = inward;
    dial.warm = dial.revived = 1;
    return dial;
}

mprox_dial revived_dial(const mprox_ready& from, const mprox_member& owner) {
    mprox_dial dial = held_dial(from.inward_key, owner);
    dial.send_next = from.send_next + 1;  // as if a SYN had been counted
    dial.receive_next = from.receive_next;
    dial.clock = from.clock + 2 * MPROX_CLOCK_SLACK;  // as revive() has set it, at time 0
    return dial;
}

std::uint32_t least_round_trip(int fd) {
    tcp_info info{};
    return get(fd, TCP_INFO, info) ? info.tcpi_min_rtt : UINT32_MAX;
}

bool was_established(int fd) {
    tcp_info info{};
    return get(fd, TCP_INFO, info) && info.tcpi_bytes_acked > 0;  // the SYN counts
}

bool peek(int fd, std::span<std::uint8_t> into) {
    return set(fd, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE) &&
           ::recv(fd, into.data(), into.size(), MSG_PEEK | MSG_DONTWAIT) == static_cast<ssize_t>(into.size());
}

}  // namespace mprox
