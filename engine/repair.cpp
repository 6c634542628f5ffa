// SPDX-License-Identifier: MIT
#include "engine/repair.hpp"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <ctime>

namespace mprox {
namespace {

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

std::optional<std::uint32_t> queue_sequence(int fd, int queue) {
    std::uint32_t sequence = 0;
    if (!set(fd, TCP_REPAIR_QUEUE, queue) || !get(fd, TCP_QUEUE_SEQ, sequence)) return {};
    return sequence;
}

}  // namespace

bool freeze(int fd, int filter) {
    if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof filter) != 0) return false;
    if (set(fd, TCP_REPAIR, TCP_REPAIR_ON)) return true;
    thaw(fd);
    return false;
}

void thaw(int fd) {
    const int none = 0;
    set(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);
    ::setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none);
}

std::optional<std::uint32_t> receive_next(int fd) {
    std::uint32_t sequence = 0;
    if (!get(fd, TCP_QUEUE_SEQ, sequence)) return {};
    return sequence;
}

std::expected<TcpState, std::string> read_state(int fd) {
    TcpState state;
    tcp_info info{};
    tcp_repair_window window{};
    int unread = 0;
    if (!get(fd, TCP_INFO, info) || !get(fd, TCP_REPAIR_WINDOW, window) || ::ioctl(fd, SIOCINQ, &unread) != 0)
        return std::unexpected("the kernel does not tell the state of a socket");
    if (info.tcpi_state != established) return std::unexpected("the server has ended its direction already");
    if (info.tcpi_notsent_bytes != 0 || info.tcpi_unacked != 0) return std::unexpected("the server has not acknowledged all of the handshake");
    if (info.tcpi_rcv_ooopack != 0) return std::unexpected("the server's packets came out of order");
    if (info.tcpi_options & TCPI_OPT_USEC_TS) return std::unexpected("the route to the server asks for timestamps in microseconds");
    const auto send = queue_sequence(fd, TCP_SEND_QUEUE);
    const auto receive = queue_sequence(fd, TCP_RECV_QUEUE);
    if (!send || !receive) return std::unexpected("the kernel does not tell the sequence numbers of a socket");
    timespec now{};
    if (!get(fd, TCP_TIMESTAMP, state.clock) || ::clock_gettime(CLOCK_MONOTONIC, &now) != 0)
        return std::unexpected("the kernel does not tell the clock of a socket");
    state.time = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
    state.send_next = *send;
    state.receive_next = *receive;
    state.unread = static_cast<std::uint32_t>(unread);
    state.send_window = window.snd_wnd;
    state.mss = info.tcpi_snd_mss;
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

}  // namespace mprox
