// SPDX-License-Identifier: MIT
#include "engine/answer.hpp"

#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <sys/socket.h>

#include <cerrno>
#include <span>

#include "engine/repair.hpp"
#include "engine/tcp_options.hpp"

namespace mprox {
namespace {

#ifndef TCP_REPAIR
#define TCP_REPAIR 19
#endif
constexpr int repair_on = 1;
constexpr int repair_off_silently = -1;  // TCP_REPAIR_OFF_NO_WP: without a window probe

// Internet checksum (RFC 1071) over any number of pieces; every piece but the last has an even length.
class Checksum {
  public:
    Checksum& add(const void* data, std::size_t size) {
        const auto* bytes = static_cast<const std::uint8_t*>(data);
        for (std::size_t i = 0; i < size; i++) sum_ += i % 2 ? bytes[i] : bytes[i] << 8;
        return *this;
    }
    Checksum& add(std::uint16_t value) {
        sum_ += value;
        return *this;
    }
    [[nodiscard]] std::uint16_t network_order() const {
        std::uint64_t sum = sum_;
        while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
        return htons(static_cast<std::uint16_t>(~sum));
    }

  private:
    std::uint64_t sum_ = 0;
};

Checksum pseudo_header(const mprox_event& held, bool from_application, std::uint8_t protocol, std::size_t size) {
    const auto& from = from_application ? held.source : held.held;
    const auto& to = from_application ? held.held : held.source;
    Checksum sum;
    if (held.ipv6)
        sum.add(from.byte, 16).add(to.byte, 16);
    else
        sum.add(from.byte + 12, 4).add(to.byte + 12, 4);
    return sum.add(static_cast<std::uint16_t>(size)).add(protocol);
}

iphdr header4(const mprox_ip& from, const mprox_ip& to, std::uint8_t protocol, std::size_t payload) {
    iphdr ip{};
    ip.version = 4;
    ip.ihl = 5;
    ip.ttl = 64;
    ip.protocol = protocol;
    ip.tot_len = htons(static_cast<std::uint16_t>(sizeof ip + payload));
    ip.saddr = from.word[3];
    ip.daddr = to.word[3];
    ip.check = Checksum().add(&ip, sizeof ip).network_order();
    return ip;
}

ip6_hdr header6(const mprox_ip& from, const mprox_ip& to, std::uint8_t protocol, std::size_t payload) {
    ip6_hdr ip{};
    ip.ip6_flow = htonl(6u << 28);
    ip.ip6_plen = htons(static_cast<std::uint16_t>(payload));
    ip.ip6_nxt = protocol;
    ip.ip6_hlim = 64;
    std::memcpy(&ip.ip6_src, from.byte, 16);
    std::memcpy(&ip.ip6_dst, to.byte, 16);
    return ip;
}

void send_bytes(Namespace& ns, const mprox_event& held, const mprox_ip& destination, std::span<const std::uint8_t> packet) {
    const SocketAddress to(Address{.ip = destination, .port = 0});
    const int raw = ns.raw(held.ipv6 ? AF_INET6 : AF_INET);
    if (raw >= 0) ::sendto(raw, packet.data(), packet.size(), MSG_DONTWAIT, &to.any, to.size);
}

template <typename Packet>
void send_packet(Namespace& ns, const mprox_event& held, const Packet& packet) {
    send_bytes(ns, held, held.source, {reinterpret_cast<const std::uint8_t*>(&packet), sizeof packet});
}

// An ICMP error quotes the packet it is about; the kernel finds the socket by that quotation and checks its
// sequence number.
void send_unreachable(Namespace& ns, const mprox_event& held, bool host) {
    tcphdr quoted{};
    quoted.source = htons(held.source_port);
    quoted.dest = htons(held.held_port);
    quoted.seq = htonl(held.sequence);
    quoted.doff = sizeof quoted / 4;
    quoted.syn = 1;
    if (held.ipv6) {
        struct __attribute__((packed)) {
            ip6_hdr ip;
            icmp6hdr icmp;
            ip6_hdr quoted_ip;
            tcphdr quoted;
        } packet{};
        constexpr std::size_t size = sizeof packet - sizeof packet.ip;
        packet.ip = header6(held.held, held.source, IPPROTO_ICMPV6, size);
        packet.icmp.icmp6_type = ICMPV6_DEST_UNREACH;
        packet.icmp.icmp6_code = host ? ICMPV6_ADDR_UNREACH : ICMPV6_NOROUTE;
        packet.quoted_ip = header6(held.source, held.held, IPPROTO_TCP, sizeof quoted);
        packet.quoted = quoted;
        packet.icmp.icmp6_cksum =
            pseudo_header(held, false, IPPROTO_ICMPV6, size).add(&packet.icmp, size).network_order();
        send_packet(ns, held, packet);
    } else {
        struct __attribute__((packed)) {
            iphdr ip;
            icmphdr icmp;
            iphdr quoted_ip;
            tcphdr quoted;
        } packet{};
        constexpr std::size_t size = sizeof packet - sizeof packet.ip;
        packet.ip = header4(held.held, held.source, IPPROTO_ICMP, size);
        packet.icmp.type = ICMP_DEST_UNREACH;
        packet.icmp.code = host ? ICMP_HOST_UNREACH : ICMP_NET_UNREACH;
        packet.quoted_ip = header4(held.source, held.held, IPPROTO_TCP, sizeof quoted);
        packet.quoted = quoted;
        packet.icmp.checksum = Checksum().add(&packet.icmp, size).network_order();
        send_packet(ns, held, packet);
    }
}

template <typename Header>
std::span<const std::uint8_t> put(std::uint8_t* packet, const Header& ip, const tcphdr& tcp, const Segment& segment) {
    std::uint8_t* end = packet;
    const auto append = [&end](const void* data, std::size_t size) {
        if (size) std::memcpy(end, data, size);
        end += size;
    };
    append(&ip, sizeof ip);
    append(&tcp, sizeof tcp);
    append(segment.options.data(), segment.options.size());
    append(segment.payload.data(), segment.payload.size());
    return {packet, end};
}

bool let_others_bind(int fd) {
    const int on = 1;
    return ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0;
}

}  // namespace

void send_segment(Namespace& ns, const mprox_event& held, const Segment& segment) {
    tcphdr tcp{};
    tcp.source = htons(held.held_port);
    tcp.dest = htons(held.source_port);
    tcp.seq = htonl(segment.sequence);
    tcp.ack_seq = htonl(segment.acknowledgement);
    tcp.doff = static_cast<std::uint8_t>((sizeof tcp + segment.options.size()) / 4) & 15;
    tcp.th_flags = segment.flags;
    tcp.window = htons(segment.window);
    const std::size_t size = sizeof tcp + segment.options.size() + segment.payload.size();
    tcp.check = pseudo_header(held, false, IPPROTO_TCP, size)
                    .add(&tcp, sizeof tcp)
                    .add(segment.options.data(), segment.options.size())
                    .add(segment.payload.data(), segment.payload.size())
                    .network_order();
    std::uint8_t packet[sizeof(ip6_hdr) + sizeof tcp + MPROX_OPTIONS_MAX + segment_most];
    const auto bytes = held.ipv6 ? put(packet, header6(held.held, held.source, IPPROTO_TCP, size), tcp, segment)
                                 : put(packet, header4(held.held, held.source, IPPROTO_TCP, size), tcp, segment);
    send_bytes(ns, held, held.source, bytes);
}

void repeat_syn(Namespace& ns, const mprox_event& held) {
    tcphdr tcp{};
    tcp.source = htons(held.source_port);
    tcp.dest = htons(held.held_port);
    tcp.seq = htonl(held.sequence);
    tcp.doff = static_cast<std::uint8_t>((sizeof tcp + held.options_size) / 4) & 15;
    tcp.th_flags = TH_SYN;
    tcp.window = htons(held.window);
    const Segment segment{.options = std::span(held.options).first(held.options_size)};
    const std::size_t size = sizeof tcp + segment.options.size();
    tcp.check = pseudo_header(held, true, IPPROTO_TCP, size).add(&tcp, sizeof tcp).add(held.options, held.options_size).network_order();
    std::uint8_t packet[sizeof(ip6_hdr) + sizeof tcp + MPROX_OPTIONS_MAX];
    const auto bytes = held.ipv6 ? put(packet, header6(held.source, held.held, IPPROTO_TCP, size), tcp, segment)
                                 : put(packet, header4(held.source, held.held, IPPROTO_TCP, size), tcp, segment);
    send_bytes(ns, held, held.held, bytes);
}

void refuse(Namespace& ns, const mprox_event& held, int error) {
    if (error == ETIMEDOUT) return;
    if (error == ECONNREFUSED)
        send_segment(ns, held, {.acknowledgement = held.sequence + 1, .flags = TH_RST | TH_ACK});
    else
        send_unreachable(ns, held, error == EHOSTUNREACH);
}

Fd open_towards(const Namespace& ns, const mprox_event& held) {
    Fd socket = ns.socket(held.ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP);
    if (!socket) return socket;
    const int fd = socket.get();
    const auto repair = [fd](int how) { return ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &how, sizeof how) == 0; };
    SocketAddress from(Address{.ip = held.held, .port = held.held_port});
    const auto bind = [&] { return ::bind(fd, &from.any, from.size) == 0; };
    // In repair mode bind() takes the port also where somebody listens on the wildcard address: the full address is
    // ours alone. SO_REUSEADDR lets such a listener come later, too.
    const auto bind_beside_a_listener = [&] {
        return errno == EADDRINUSE && repair(repair_on) && bind() && repair(repair_off_silently) && let_others_bind(fd);
    };
    if (!let_others_bind(fd) || !(bind() || bind_beside_a_listener()) || !connect_towards(fd, held)) return {};
    return socket;
}

bool connect_towards(int fd, const mprox_event& held) {
    const SocketAddress to(Address{.ip = held.source, .port = held.source_port});
    if (::connect(fd, &to.any, to.size) != 0 && errno != EINPROGRESS) return false;
    // When the kernel has given the application the port of a connection in TIME_WAIT, its socket remembers what it has last heard
    // there, and drops a SYN of ours that is older (PAWS: RFC 7323 section 5). That was a server's clock, if the connection was
    // spliced. The next SYN, in a second, is young enough then. Repair mode takes SO_REUSEADDR away.
    const Offer offer = read_offer(held);
    return !offer.echo || !outrun(fd, offer.echo) || let_others_bind(fd);
}

}  // namespace mprox
