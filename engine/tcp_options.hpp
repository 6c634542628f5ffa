// SPDX-License-Identifier: MIT
#pragma once

#include <arpa/inet.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "bpf/mprox.h"

namespace mprox {

/// What the application's SYN offers (RFC 9293 section 3.2, RFC 7323, RFC 2018).
struct Offer {
    std::optional<std::uint8_t> scale;
    std::optional<std::uint32_t> timestamp;
    std::uint32_t echo = 0;  ///< the last timestamp it has seen
    bool sack = false;
};

inline Offer read_offer(const mprox_event& event) {
    Offer offer;
    const std::span<const std::uint8_t> bytes(event.options, std::min<std::size_t>(event.options_size, sizeof event.options));
    for (std::size_t at = 0; at < bytes.size();) {
        const std::uint8_t kind = bytes[at];
        if (kind == TCPOPT_EOL) break;
        if (kind == TCPOPT_NOP) {
            at++;
            continue;
        }
        if (at + 1 >= bytes.size() || bytes[at + 1] < 2 || at + bytes[at + 1] > bytes.size()) break;
        const std::uint8_t size = bytes[at + 1];
        if (kind == TCPOPT_WINDOW && size == 3) offer.scale = std::min<std::uint8_t>(bytes[at + 2], 14);
        if (kind == TCPOPT_SACK_PERMITTED && size == 2) offer.sack = true;
        if (kind == TCPOPT_TIMESTAMP && size == 10) {
            std::array<std::uint32_t, 2> stamps;
            std::memcpy(stamps.data(), &bytes[at + 2], sizeof stamps);
            offer.timestamp = ntohl(stamps[0]);
            offer.echo = ntohl(stamps[1]);
        }
        at += size;
    }
    return offer;
}

/// Are they those of a Linux socket with all its settings as they come, in their order, and asks it for no ECN?
inline bool has_usual_options(const mprox_event& event) {
    const std::uint8_t* option = event.options;
    return event.options_size == 20 && !event.ip_options && !event.tcp_flags && option[0] == TCPOPT_MAXSEG && option[1] == 4 &&
           option[4] == TCPOPT_SACK_PERMITTED && option[6] == TCPOPT_TIMESTAMP && option[16] == TCPOPT_NOP && option[17] == TCPOPT_WINDOW;
}

/// What the socket would send now in place of a SYN with the usual options: the same, with the timestamp of this moment
/// (nanoseconds of CLOCK_MONOTONIC).
inline mprox_event renewed(const mprox_event& event, std::uint64_t now) {
    mprox_event again = event;
    std::uint32_t stamp = 0;
    std::memcpy(&stamp, &event.options[8], sizeof stamp);
    stamp = htonl(ntohl(stamp) + static_cast<std::uint32_t>(now / 1'000'000 - event.time / 1'000'000));
    std::memcpy(&again.options[8], &stamp, sizeof stamp);
    again.time = now;
    return again;
}

/// The options of a segment, being written.
class Options {
  public:
    template <typename... Bytes>
    void add(Bytes... bytes) {
        for (const auto byte : {static_cast<std::uint8_t>(bytes)...}) data_[size_++] = byte;
    }
    void add_timestamps(std::uint32_t value, std::uint32_t echo) {
        add(TCPOPT_NOP, TCPOPT_NOP, TCPOPT_TIMESTAMP, 10);
        for (const std::uint32_t number : {htonl(value), htonl(echo)}) {
            std::memcpy(&data_[size_], &number, sizeof number);
            size_ += sizeof number;
        }
    }
    [[nodiscard]] std::span<const std::uint8_t> get() const { return {data_.data(), size_}; }

  private:
    std::array<std::uint8_t, MPROX_OPTIONS_MAX> data_{};
    std::size_t size_ = 0;
};

}  // namespace mprox
