// SPDX-License-Identifier: MIT
// ICMP errors about what a spliced connection has sent: for the application's socket they quote what it sent itself.
#include "tests/unit/splice_programs.hpp"

namespace mprox::test {
namespace {

struct Error {
    std::uint8_t type, code;
    std::uint32_t data;
};

// From a router to `to`, about a packet of which it quotes that many bytes.
Bytes error_packet(const Endpoint& router, const Endpoint& to, const Error& error, const Bytes& quoted) {
    const bool ip6 = router.ip.half[0] || router.ip.word[2] != htonl(0xffff);
    Packet outer = packet_of(ip6, router, to);
    outer.ttl = 61;
    outer.tos = 0xc0;
    Bytes icmp = join(Bytes{error.type, error.code, 0, 0}, big_endian(error.data), quoted);
    const Bytes pseudo = ip6 ? join(outer.address(router), outer.address(to), big_endian(static_cast<std::uint32_t>(icmp.size())),
                                    big_endian(IPPROTO_ICMPV6))
                             : Bytes{};
    put16(icmp, 2, internet_checksum(join(pseudo, icmp)));
    const std::uint8_t protocol = ip6 ? std::uint8_t{IPPROTO_ICMPV6} : std::uint8_t{IPPROTO_ICMP};
    return join(outer.ip_header(icmp.size(), protocol), icmp);
}

Bytes with_ethernet(const Bytes& packet) {
    return join(Bytes(12), big_endian16(packet[0] >> 4 == 6 ? ETH_P_IPV6 : ETH_P_IP), packet);
}

Bytes cut(Bytes bytes, std::size_t size) {
    bytes.resize(std::min(bytes.size(), size));
    return bytes;
}

constexpr std::uint32_t difference = 0x8765'4321;
const Way inward_way{.way = MPROX_WAY_IN, .sequence = 0, .acknowledgement = 0 - difference, .timestamp = 0, .echo = 7};

class SpliceIcmp : public SplicePrograms, public testing::WithParamInterface<bool> {
  protected:
    const bool ip6 = GetParam();
    const Ends at = ends(ip6);
    // As a server's address, one that BPF_PROG_RUN takes without an Ethernet header.
    const Endpoint router = ip6 ? endpoint6(0x2001'0db8'86dd'0000, 99, 0) : endpoint4(0x08000001, 0);
    const std::size_t header = ip6 ? 40 : 20;

    void enter_connection(std::uint8_t way = MPROX_WAY_IN) {
        Way in = inward_way;
        in.way = way;
        enter(at.server, at.ours, at.held, at.application, in);
    }
    // What was sent, and how the application knows it.
    [[nodiscard]] Packet sent() const {
        Packet packet = packet_of(ip6, at.ours, at.server);
        packet.sequence = difference - 5;
        packet.options = {nop(), nop(), stamps(1, 2)};
        packet.payload = Bytes(600, 0x5a);
        return packet;
    }
    [[nodiscard]] Packet known() const {
        Packet packet = sent();
        packet.from = at.application;
        packet.to = at.held;
        packet.sequence -= difference;
        return packet;
    }
    [[nodiscard]] std::vector<Error> errors() const {
        if (ip6) return {{1, 0, 0}, {1, 3, 0}, {1, 4, 0}, {2, 0, 1280}, {3, 0, 0}, {4, 1, 40}};
        return {{3, 0, 0}, {3, 1, 0}, {3, 4, 1300}, {3, 13, 0}, {11, 0, 0}, {12, 0, 0}};
    }
    void expect_error(const Bytes& quoted, const Bytes& expected_quoted, const Error& error) {
        const Bytes packet = error_packet(router, at.ours, error, quoted);
        const Bytes expected = with_ethernet(error_packet(router, at.application, error, expected_quoted));
        Answer answer = run(ether(), with_ethernet(packet), ip6);
        EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
        expect_same(answer.bytes, expected);
        answer = run(bare(), packet);
        EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
        expect_same(answer.bytes, expected);
        answer = run(lo(), with_ethernet(packet));  // this host's own
        EXPECT_EQ(answer.verdict, TC_ACT_UNSPEC);
        expect_same(answer.bytes, expected);
    }
    void expect_nothing(const Bytes& packet) {
        expect_untouched(ether(), with_ethernet(packet));
        expect_untouched(lo(), with_ethernet(packet));
    }
};

INSTANTIATE_TEST_SUITE_P(Ip, SpliceIcmp, testing::Bool(), [](const auto& instance) { return instance.param ? "v6" : "v4"; });

TEST_P(SpliceIcmp, TranslatesErrorsOfEveryKind) {
    enter_connection();
    for (const Error& error : errors()) {
        SCOPED_TRACE(std::to_string(error.type) + " " + std::to_string(error.code));
        expect_error(cut(sent().ip(), 548), cut(known().ip(), 548), error);
    }
}

TEST_P(SpliceIcmp, TranslatesQuotationsOfEverySize) {
    enter_connection();
    const Bytes before = sent().ip(), after = known().ip();
    for (std::size_t size = 8; size <= 60; size++) {
        SCOPED_TRACE(size);
        Bytes expected = cut(after, header + size);
        // A header that is not there in full keeps its checksum, or the half of it.
        if (size < 20)
            for (std::size_t i = 16; i < std::min<std::size_t>(size, 18); i++) expected[header + i] = before[header + i];
        expect_error(cut(before, header + size), expected, errors()[3]);
    }
    for (std::size_t size = 0; size < header + 8; size++)
        expect_nothing(error_packet(router, at.ours, errors()[3], cut(before, size)));
}

TEST_P(SpliceIcmp, TranslatesWhatIsQuotedAsItWasOnTheWay) {
    enter_connection();
    Packet before = sent(), after = known();
    before.ttl = after.ttl = 1;
    before.tos = after.tos = 3;
    before.id = after.id = 0xbeef;
    if (!ip6) {
        before.fragment = after.fragment = 0x2000;  // the first of the fragments it has become
        before.ip_options = after.ip_options = {1, 1, 1, 1, 0x94, 4, 0, 0};
    }
    expect_error(cut(before.ip(), 128), cut(after.ip(), 128), errors()[3]);
}

TEST_P(SpliceIcmp, LeavesOthersAlone) {
    enter_connection();
    const Error error = errors()[3];
    const auto expect_other = [&](Packet quoted) { expect_nothing(error_packet(router, at.ours, error, cut(quoted.ip(), 128))); };
    Packet packet = sent();
    packet.from.port++;
    expect_other(packet);
    packet = sent();
    packet.to.port++;
    expect_other(packet);
    packet = sent();
    packet.to.ip.byte[15]++;
    expect_other(packet);
    packet = sent();
    packet.first_header = IPPROTO_UDP;
    expect_other(packet);
    packet = sent();
    std::swap(packet.from, packet.to);  // what the server has sent
    expect_other(packet);
    if (!ip6) {
        packet = sent();
        packet.fragment = 0x0010;  // its ports are in another fragment
        expect_other(packet);
    }
    // An error that is not for the sender of what it quotes; what is not an error.
    Endpoint other = at.ours;
    other.ip.byte[15]++;
    expect_nothing(error_packet(router, other, error, cut(sent().ip(), 128)));
    for (const std::uint8_t type : {0, 5, 8, 128, 129, 135})
        expect_nothing(error_packet(router, at.ours, {type, 0, 0}, cut(sent().ip(), 128)));
}

TEST_P(SpliceIcmp, LeavesTheHandshakesAlone) {
    enter_connection(MPROX_WAY_WATCH);
    expect_nothing(error_packet(router, at.ours, errors()[3], cut(sent().ip(), 128)));
}

}  // namespace
}  // namespace mprox::test
