// SPDX-License-Identifier: MIT
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>
#include <string>

#include "bpf/mprox.h"
#include "proto/mproto.h"

namespace mprox {

/// An address as the BPF side holds it (IPv4 is v4-mapped) and a port in host order.
struct Address {
    mprox_ip ip{};
    std::uint16_t port = 0;

    [[nodiscard]] bool operator==(const Address& other) const {
        return ip.half[0] == other.ip.half[0] && ip.half[1] == other.ip.half[1] && port == other.port;
    }
    [[nodiscard]] bool is_ipv4() const { return !ip.half[0] && ip.word[2] == htonl(0xffff); }
    [[nodiscard]] bool is_unset() const { return !(ip.half[0] | ip.half[1]); }
    [[nodiscard]] bool is_loopback() const {
        return is_ipv4() ? ip.byte[12] == 127 : !ip.half[0] && !ip.word[2] && ip.word[3] == htonl(1);
    }
    [[nodiscard]] int family() const { return is_ipv4() ? AF_INET : AF_INET6; }
    [[nodiscard]] mproto_endpoint endpoint() const {
        mproto_endpoint to{};
        to.kind = is_ipv4() ? MPROTO_HOST_IPV4 : MPROTO_HOST_IPV6;
        to.port = port;
        if (is_ipv4())
            std::memcpy(to.ip, ip.byte + 12, 4);
        else
            std::memcpy(to.ip, ip.byte, 16);
        return to;
    }
    [[nodiscard]] std::string text() const {
        const mproto_endpoint shown = endpoint();
        char out[MPROTO_TEXT_MAX];
        return {out, mproto_endpoint_format(&shown, out)};
    }
};

/// A socket address of the family that fits.
struct SocketAddress {
    union {
        sockaddr any;
        sockaddr_in v4;
        sockaddr_in6 v6;
    };
    socklen_t size = sizeof v6;

    SocketAddress() : v6{} {}
    explicit SocketAddress(const Address& address) : v6{} {
        if (address.is_ipv4()) {
            v4 = {};
            v4.sin_family = AF_INET;
            v4.sin_port = htons(address.port);
            v4.sin_addr.s_addr = address.ip.word[3];
            size = sizeof v4;
        } else {
            v6.sin6_family = AF_INET6;
            v6.sin6_port = htons(address.port);
            std::memcpy(&v6.sin6_addr, address.ip.byte, 16);
        }
    }
    [[nodiscard]] Address address() const {
        Address out;
        if (any.sa_family == AF_INET) {
            out.ip.word[2] = htonl(0xffff);
            out.ip.word[3] = v4.sin_addr.s_addr;
            out.port = ntohs(v4.sin_port);
        } else {
            std::memcpy(out.ip.byte, &v6.sin6_addr, 16);
            out.port = ntohs(v6.sin6_port);
        }
        return out;
    }
};

}  // namespace mprox
