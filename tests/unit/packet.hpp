// SPDX-License-Identifier: MIT
// TCP packets described field by field, and their bytes with every checksum computed from scratch.
#pragma once

#include <linux/if_ether.h>
#include <netinet/in.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "bpf/mprox.h"

namespace mprox::test {

using Bytes = std::vector<std::uint8_t>;

template <typename... More>
Bytes join(const More&... more) {
    Bytes all;
    (all.insert(all.end(), more.begin(), more.end()), ...);
    return all;
}

inline Bytes big_endian(std::uint32_t number) {
    return {static_cast<std::uint8_t>(number >> 24), static_cast<std::uint8_t>(number >> 16),
            static_cast<std::uint8_t>(number >> 8), static_cast<std::uint8_t>(number)};
}

inline Bytes big_endian16(std::uint32_t number) {
    return {static_cast<std::uint8_t>(number >> 8), static_cast<std::uint8_t>(number)};
}

// RFC 1071.
inline std::uint16_t internet_checksum(const Bytes& bytes) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < bytes.size(); i++) sum += i % 2 ? bytes[i] : bytes[i] << 8;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<std::uint16_t>(~sum);
}

inline void put16(Bytes& bytes, std::size_t at, std::uint16_t value) {
    bytes[at] = static_cast<std::uint8_t>(value >> 8);
    bytes[at + 1] = static_cast<std::uint8_t>(value);
}

struct Endpoint {
    mprox_ip ip{};
    std::uint16_t port = 0;
};

inline Endpoint endpoint4(std::uint32_t ip, std::uint16_t port) {
    Endpoint end{.ip = {}, .port = port};
    end.ip.word[2] = htonl(0xffff);
    end.ip.word[3] = htonl(ip);
    return end;
}

inline Endpoint endpoint6(std::uint64_t prefix, std::uint64_t host, std::uint16_t port) {
    Endpoint end{.ip = {}, .port = port};
    for (int i = 7; i >= 0; i--, prefix >>= 8, host >>= 8) {
        end.ip.byte[i] = static_cast<std::uint8_t>(prefix);
        end.ip.byte[8 + i] = static_cast<std::uint8_t>(host);
    }
    return end;
}

// A TCP option: its bytes, or one of the two that hold numbers.
struct Option {
    enum Kind { raw, timestamps, sack } kind = raw;
    Bytes bytes;
    std::vector<std::uint32_t> numbers;

    [[nodiscard]] Bytes wire() const {
        if (kind == raw) return bytes;
        Bytes out{static_cast<std::uint8_t>(kind == sack ? 5 : 8), static_cast<std::uint8_t>(2 + 4 * numbers.size())};
        for (const std::uint32_t number : numbers) out = join(out, big_endian(number));
        return out;
    }
};

inline Option nop() { return {Option::raw, {1}, {}}; }
inline Option stamps(std::uint32_t value, std::uint32_t echo) { return {Option::timestamps, {}, {value, echo}}; }

constexpr std::uint8_t fin = 1, syn = 2, rst = 4, psh = 8, ack = 16, urg = 32, ece = 64, cwr = 128;

struct Packet {
    bool ip6 = false;
    Endpoint from, to;
    std::uint32_t sequence = 1000, acknowledgement = 2000;
    std::uint8_t flags = ack, reserved = 0;
    std::uint16_t window = 500, urgent = 0;
    std::vector<Option> options;  // filled up to whole words with zero
    Bytes payload;
    // Of IP.
    std::uint8_t tos = 0, ttl = 64;
    std::uint32_t id = 0;  // IPv6: the flow label
    std::uint16_t fragment = 0x4000;
    Bytes ip_options;  // IPv6: extension headers
    std::uint8_t first_header = IPPROTO_TCP;  // of the extension headers
    std::uint16_t checksum_error = 0;

    [[nodiscard]] Bytes tcp_options() const {
        Bytes out;
        for (const Option& option : options) out = join(out, option.wire());
        out.resize((out.size() + 3) / 4 * 4);
        return out;
    }

    [[nodiscard]] Bytes address(const Endpoint& end) const {
        return ip6 ? Bytes(end.ip.byte, end.ip.byte + 16) : Bytes(end.ip.byte + 12, end.ip.byte + 16);
    }

    [[nodiscard]] Bytes tcp() const {
        const Bytes option = tcp_options();
        const std::size_t words = 5 + option.size() / 4;
        Bytes out = join(big_endian16(from.port), big_endian16(to.port), big_endian(sequence), big_endian(acknowledgement),
                         Bytes{static_cast<std::uint8_t>(words << 4 | reserved), flags}, big_endian16(window), Bytes{0, 0},
                         big_endian16(urgent), option, payload);
        const Bytes pseudo = join(address(from), address(to), big_endian(IPPROTO_TCP),
                                  big_endian(static_cast<std::uint32_t>(out.size())));
        put16(out, 16, static_cast<std::uint16_t>(internet_checksum(join(pseudo, out)) + checksum_error));
        return out;
    }

    [[nodiscard]] Bytes ip_header(std::size_t size, std::uint8_t protocol) const {
        const auto length = static_cast<std::uint32_t>(size);
        if (ip6)
            return join(big_endian(6u << 28 | static_cast<std::uint32_t>(tos) << 20 | (id & 0xfffff)),
                        big_endian16(length + static_cast<std::uint32_t>(ip_options.size())), Bytes{protocol, ttl}, address(from),
                        address(to), ip_options);
        const std::size_t words = 5 + ip_options.size() / 4;
        Bytes out = join(Bytes{static_cast<std::uint8_t>(0x40 | words), tos}, big_endian16(static_cast<std::uint32_t>(words) * 4 + length),
                         big_endian16(id), big_endian16(fragment), Bytes{ttl, protocol, 0, 0}, address(from), address(to), ip_options);
        put16(out, 10, internet_checksum(out));
        return out;
    }

    [[nodiscard]] Bytes ip() const {
        const Bytes segment = tcp();
        return join(ip_header(segment.size(), first_header), segment);
    }

    [[nodiscard]] std::uint16_t ether_type() const { return ip6 ? ETH_P_IPV6 : ETH_P_IP; }

    [[nodiscard]] Bytes frame() const { return join(Bytes(12), big_endian16(ether_type()), ip()); }
};

inline Packet packet_of(bool ip6, const Endpoint& from, const Endpoint& to) {
    Packet packet;
    packet.ip6 = ip6;
    packet.from = from;
    packet.to = to;
    return packet;
}

inline std::string hex(const Bytes& bytes) {
    std::string out;
    for (std::size_t i = 0; i < bytes.size(); i++) {
        if (i) out += i % 16 ? " " : "\n";
        for (const int digit : {bytes[i] >> 4, bytes[i] & 15}) out += "0123456789abcdef"[digit];
    }
    return out;
}

}  // namespace mprox::test
