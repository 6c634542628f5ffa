// SPDX-License-Identifier: MIT
// What the tc programs of spliced connections make of single packets.
#include "tests/unit/splice_programs.hpp"

namespace mprox::test {
namespace {

Option sack(std::uint32_t blocks) {
    Option option{Option::sack, {}, {}};
    for (std::uint32_t i = 0; i < blocks; i++) {
        option.numbers.push_back(0xffffff00 + i * 0x100);
        option.numbers.push_back(0xffffff40 + i * 0x100);
    }
    return option;
}

Option raw(Bytes bytes) { return {Option::raw, std::move(bytes), {}}; }

struct Layout {
    const char* name;
    std::vector<Option> options;
};

std::vector<Layout> layouts() {
    std::vector<Layout> all{
        {"none", {}},
        {"timestamps as Linux has them", {nop(), nop(), stamps(0xfffffffe, 5)}},
        {"timestamps first", {stamps(1, 0), nop(), nop()}},
        {"timestamps between", {nop(), stamps(0x7fffffff, 0x80000000), nop()}},
        {"timestamps at the end", {raw({0xfe, 4, 1, 2}), nop(), stamps(3, 4)}},
        {"timestamps twice", {stamps(1, 2), stamps(3, 4)}},
        {"NOPs only", {nop(), nop(), nop(), nop()}},
        {"many NOPs", std::vector<Option>(40, nop())},
        {"unknown", {raw({0xfd, 8, 1, 2, 3, 4, 5, 6}), stamps(7, 8)}},
        {"unknown, odd size", {raw({0xfd, 3, 1}), sack(1)}},
        {"what a SYN has", {raw({2, 4, 5, 0xb4, 4, 2}), stamps(7, 0), nop(), raw({3, 3, 7})}},
        {"end, then what looks like timestamps", {raw({0, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 0})}},
        {"end, then what looks like timestamps of Linux", {raw({0, 1, 1, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8})}},
        {"timestamps cut short", {raw({1, 1, 8, 10, 1, 2, 3, 4})}},
        {"timestamps of one word", {raw({1, 1, 8, 10})}},
        {"timestamps too small", {raw({1, 1, 8, 9, 1, 2, 3, 4, 5, 6, 7, 0})}},
        {"timestamps too large", {raw({1, 1, 8, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0})}},
        {"SACK larger than the header", {raw({1, 1, 5, 18, 1, 2, 3, 4, 5, 6, 7, 8})}},
        {"SACK without a block", {raw({1, 1, 5, 2})}},
        {"SACK of half a block", {raw({1, 1, 5, 6, 1, 2, 3, 4})}},
        {"SACK of four blocks and a half", {raw(join(Bytes{1, 1, 5, 38}, Bytes(36, 0xff)))}},
        {"size of nothing", {raw({0xfd, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8})}},
        {"size of one", {raw({0xfd, 1, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8})}},
        {"a kind without a size", {nop(), nop(), nop(), raw({8})}},
        {"a size past the end", {nop(), nop(), raw({8, 255})}},
    };
    for (std::uint32_t blocks = 1; blocks <= 4; blocks++) {
        all.push_back({"SACK", {nop(), nop(), sack(blocks)}});
        all.push_back({"SACK, not aligned", {nop(), sack(blocks), nop()}});
        if (blocks > 3) continue;
        all.push_back({"timestamps, SACK", {nop(), nop(), stamps(9, 0xffffffff), nop(), nop(), sack(blocks)}});
        all.push_back({"SACK, timestamps", {sack(blocks), stamps(9, 0xffffffff)}});
        all.push_back({"timestamps, SACK, tight", {stamps(9, 10), sack(blocks)}});
    }
    return all;
}

const Way out_way{.way = MPROX_WAY_OUT, .sequence = 0x9000'0000, .acknowledgement = 0, .timestamp = 12345, .echo = 0,
                  .window_left = 7, .window_right = 9};
const Way in_way{.way = MPROX_WAY_IN, .sequence = 0, .acknowledgement = 0x7000'0000, .timestamp = 0, .echo = 0 - 12345u,
                 .window_left = 0, .window_right = 0};
const Way stay_way{.way = MPROX_WAY_STAY, .sequence = 77, .acknowledgement = 0u - 88, .timestamp = 99, .echo = 0u - 111,
                   .window_left = 0, .window_right = 0};

constexpr std::uint32_t opened = MPROX_OPENED;

class Splice : public SplicePrograms, public testing::WithParamInterface<bool> {
  protected:
    const bool ip6 = GetParam();
    const Ends at = ends(ip6);

    [[nodiscard]] Packet outward() const { return packet_of(ip6, at.application, at.held); }
    [[nodiscard]] Packet inward() const { return packet_of(ip6, at.server, at.ours); }

    mprox_splice_key enter_out(const Way& way = out_way) { return enter(at.application, at.held, at.ours, at.server, way); }
    mprox_splice_key enter_in(const Way& way = in_way) { return enter(at.server, at.ours, at.held, at.application, way); }

    void expect_out(const Packet& packet, const Way& way = out_way) {
        const Answer answer = run(lo(), packet.frame());
        EXPECT_EQ(answer.verdict, way.way == MPROX_WAY_OUT ? TC_ACT_REDIRECT : TC_ACT_UNSPEC);
        expect_same(answer.bytes, translated(packet, at.ours, at.server, way).frame());
    }
    // By either kind of device. The sum of a packet that is sent through lo after all lacks what the kernel adds.
    void expect_in(const Packet& packet, const Way& way = in_way) {
        const Bytes expected = translated(packet, at.held, at.application, way).frame();
        Answer answer = run(ether(), packet.frame(), ip6);
        EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
        expect_same(answer.bytes, expected);
        answer = run(bare(), packet.ip());
        EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
        expect_same(answer.bytes, expected);
    }
};

INSTANTIATE_TEST_SUITE_P(Ip, Splice, testing::Bool(), [](const auto& instance) { return instance.param ? "v6" : "v4"; });

TEST_P(Splice, TranslatesEveryLayoutOfOptions) {
    enter_out();
    enter_in();
    for (const Layout& layout : layouts())
        for (const std::size_t payload : {0, 1, 1400}) {
            SCOPED_TRACE(std::string(layout.name) + ", " + std::to_string(payload) + " bytes");
            for (Packet packet : {outward(), inward()}) {
                packet.options = layout.options;
                packet.payload = Bytes(payload, 0xa5);
                ASSERT_LE(packet.tcp_options().size(), 40u);
                packet.from.port == at.application.port ? expect_out(packet) : expect_in(packet);
            }
        }
}

TEST_P(Splice, TranslatesEveryCombinationOfFlags) {
    enter_out();
    enter_in();
    for (unsigned flags = 0; flags < 256; flags++) {
        SCOPED_TRACE(flags);
        for (Packet packet : {outward(), inward()}) {
            packet.flags = static_cast<std::uint8_t>(flags);
            packet.reserved = flags & 1 ? 0xf : 0;  // one of these is accurate ECN's
            packet.urgent = 0xbeef;
            packet.options = {nop(), nop(), stamps(10, 20)};
            packet.payload = {1, 2, 3};
            packet.from.port == at.application.port ? expect_out(packet) : expect_in(packet);
        }
    }
}

TEST_P(Splice, TranslatesWhatStaysOnLoopback) {
    enter_out(stay_way);
    for (const Layout& layout : layouts()) {
        SCOPED_TRACE(layout.name);
        Packet packet = outward();
        packet.options = layout.options;
        expect_out(packet, stay_way);
    }
}

TEST_P(Splice, WrapsAround) {
    enter_out();
    enter_in();
    const std::uint32_t edges[] = {0,          1,          0x0fffffff, 0x6fffffff, 0x70000000,
                                   0x7fffffff, 0x80000000, 0x8fffffff, 0x90000000, 0xffffffff};
    for (const std::uint32_t sequence : edges)
        for (const std::uint32_t stamp : edges)
            for (Packet packet : {outward(), inward()}) {
                SCOPED_TRACE(std::to_string(sequence) + " " + std::to_string(stamp));
                packet.sequence = packet.acknowledgement = sequence;
                const Option block{Option::sack, {}, {sequence, sequence + 9}};
                packet.options = {nop(), nop(), stamps(stamp, stamp + 1), nop(), nop(), block};
                packet.from.port == at.application.port ? expect_out(packet) : expect_in(packet);
            }
}

TEST_P(Splice, TranslatesWindows) {
    for (const auto& [left, right] : std::initializer_list<std::pair<std::uint8_t, std::uint8_t>>{
             {0, 0}, {7, 7}, {7, 9}, {9, 7}, {14, 0}, {0, 14}, {0, 3}, {14, 14}, {10, 8}}) {
        Way way = out_way;
        way.window_left = left;
        way.window_right = right;
        enter_out(way);
        for (const std::uint16_t window : {0, 1, 2, 3, 63, 64, 500, 16383, 16384, 32768, 65535}) {
            SCOPED_TRACE(std::to_string(window) + " << " + std::to_string(left) + " >> " + std::to_string(right));
            Packet packet = outward();
            packet.window = window;
            expect_out(packet, way);
        }
    }
}

TEST_P(Splice, KeepsWhatIpSays) {
    enter_out();
    enter_in();
    for (const std::uint8_t tos : {0, 1, 2, 3, 0xb8, 0xff})
        for (Packet packet : {outward(), inward()}) {
            packet.tos = tos;
            packet.ttl = 1 + tos;
            packet.id = 0xabcd;
            if (!ip6) packet.fragment = tos & 1 ? 0 : 0x4000;
            if (!ip6 && tos & 2) packet.ip_options = {1, 1, 0x94, 4, 0, 0, 0, 0};
            packet.from.port == at.application.port ? expect_out(packet) : expect_in(packet);
        }
}

TEST_P(Splice, KeepsAWrongChecksumWrong) {
    enter_out();
    enter_in();
    for (const std::uint16_t error : {1, 256, 0x7fff})
        for (Packet packet : {outward(), inward()}) {
            packet.payload = {1, 2, 3};
            const bool out = packet.from.port == at.application.port;
            Packet sound = out ? translated(packet, at.ours, at.server, out_way) : translated(packet, at.held, at.application, in_way);
            packet.checksum_error = error;
            Bytes got = run(out ? lo() : ether(), packet.frame()).bytes;
            const Bytes right = sound.frame();
            const std::size_t check = 14 + (ip6 ? 40 : 20) + 16;
            ASSERT_EQ(got.size(), right.size());
            EXPECT_FALSE(std::equal(&right[check], &right[check + 2], &got[check]));
            std::copy_n(&right[check], 2, &got[check]);
            expect_same(got, right);
        }
}

TEST_P(Splice, LeavesOthersAlone) {
    enter_out();
    enter_in();
    std::vector<Packet> others;
    for (Packet packet : {outward(), inward()}) {
        packet.payload = Bytes(100, 7);
        for (int field = 0; field < 5; field++) {
            Packet other = packet;
            if (field == 0) other.from.port++;
            if (field == 1) other.to.port++;
            if (field == 2) other.from.ip.byte[15]++;
            if (field == 3) other.to.ip.byte[15]++;
            if (field == 4) std::swap(other.from, other.to);
            others.push_back(other);
        }
        Packet other = packet;
        other.first_header = IPPROTO_UDP;
        others.push_back(other);
        if (ip6) {
            for (const std::uint8_t header : {IPPROTO_FRAGMENT, IPPROTO_DSTOPTS, IPPROTO_ROUTING, IPPROTO_HOPOPTS}) {
                other = packet;
                other.first_header = header;
                other.ip_options = {IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0};
                others.push_back(other);
            }
        } else {
            for (const std::uint16_t fragment : {0x2000, 0x0001, 0x2010, 0x1fff}) {
                other = packet;
                other.fragment = fragment;
                others.push_back(other);
            }
        }
    }
    for (const Packet& packet : others) {
        expect_untouched(lo(), packet.frame());
        expect_untouched(ether(), packet.frame());
        if (packet.from.ip.byte[15] == at.server.ip.byte[15]) expect_untouched(bare(), packet.ip());
    }
}

TEST_P(Splice, LeavesOtherFramesAlone) {
    enter_in();
    const Packet packet = inward();
    Bytes frame = packet.frame();
    frame[5] = 1;
    expect_untouched(ether(), frame);  // to another host
    frame[0] = 1;
    expect_untouched(ether(), frame);  // to a group
    frame = packet.frame();
    const Bytes tag{0x81, 0, 0, 5};
    frame.insert(frame.begin() + 12, tag.begin(), tag.end());
    expect_untouched(ether(), frame);
    frame = packet.frame();
    put16(frame, 12, ip6 ? ETH_P_IP : ETH_P_IPV6);
    expect_untouched(ether(), frame);
    put16(frame, 12, ETH_P_ARP);
    expect_untouched(ether(), frame);
}

TEST_P(Splice, LeavesBrokenPacketsAlone) {
    enter_in();
    Packet packet = inward();
    packet.options = {nop(), nop(), stamps(1, 2)};
    const Bytes whole = packet.frame();
    // Cut anywhere: before the end of the headers there is nothing to translate.
    for (std::size_t size = 14 + (ip6 ? 40 : 20); size < whole.size(); size++) {
        SCOPED_TRACE(size);
        expect_untouched(ether(), Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)));
    }
    const std::size_t transport = 14 + (ip6 ? 40 : 20);
    for (unsigned words = 0; words < 16; words++) {  // a header that is smaller than can be, or larger than the packet
        if (words >= 5 && words <= 8) continue;
        Bytes frame = whole;
        frame[transport + 12] = static_cast<std::uint8_t>(words << 4);
        expect_untouched(ether(), frame);
    }
    if (!ip6)
        for (unsigned words = 0; words < 5; words++) {
            Bytes frame = whole;
            frame[14] = static_cast<std::uint8_t>(0x40 | words);
            expect_untouched(ether(), frame);
        }
}

TEST_P(Splice, TakesPaddedFrames) {
    enter_in();
    const Packet packet = inward();
    const Bytes padding(ip6 ? 3 : 6, 0);
    const Answer answer = run(ether(), join(packet.frame(), padding));
    expect_same(answer.bytes, join(translated(packet, at.held, at.application, in_way).frame(), padding));
}

TEST_P(Splice, CountsEachByteOnce) {
    const auto key = enter_in();
    mprox_splice value = entry(key);
    value.next = 0xfffffff0;
    value.acked = 100;
    put(key, value);
    std::uint64_t packets = 0;
    const auto send = [&](std::uint32_t sequence, std::size_t size, std::uint8_t flags = ack, std::uint32_t acknowledged = 100) {
        Packet packet = inward();
        packet.sequence = sequence;
        packet.payload = Bytes(size);
        packet.flags = flags;
        packet.acknowledgement = acknowledged;
        run(ether(), join(packet.frame(), Bytes(size < 2 ? 6 - size : 0)));  // padding is not counted
        EXPECT_EQ(entry(key).packets, ++packets);
        return entry(key).bytes;
    };
    EXPECT_EQ(send(0xfffffff0, 10), 10u);
    EXPECT_EQ(send(0xfffffff0, 10), 10u);  // again
    EXPECT_EQ(send(0xfffffff5, 20), 25u);  // half of it again; the numbers wrap
    EXPECT_EQ(send(0, 5), 25u);            // a part again
    EXPECT_EQ(send(9, 0), 25u);
    EXPECT_EQ(send(8, 1), 25u);  // as a keepalive is
    EXPECT_EQ(send(9, 1), 26u);
    EXPECT_EQ(entry(key).next, 10u);
    EXPECT_EQ(entry(key).seen, opened);
    send(10, 0, ack, 150);
    send(10, 0, ack, 120);
    EXPECT_EQ(entry(key).acked, 150u);
    send(10, 0, psh, 500);  // acknowledges nothing
    EXPECT_EQ(entry(key).acked, 150u);
    send(10, 0, fin | ack);
    EXPECT_EQ(entry(key).seen, opened | MPROX_SEEN_FIN);
    send(11, 0, rst);
    EXPECT_EQ(entry(key).seen, opened | MPROX_SEEN_FIN | MPROX_SEEN_RST);
    EXPECT_EQ(entry(key).bytes, 26u);
}

TEST_P(Splice, NotesTheTimestamp) {
    const auto out = enter_out(), in = enter_in();
    for (const auto& [packet, program, key] : {std::tuple{outward(), lo(), out}, std::tuple{inward(), ether(), in}}) {
        Packet stamped = packet;
        stamped.options = {nop(), nop(), stamps(4711, 1)};
        run(program, stamped.frame());
        EXPECT_EQ(entry(key).last_timestamp, 4711u);
        stamped.options = {stamps(4712, 1)};
        run(program, stamped.frame());
        EXPECT_EQ(entry(key).last_timestamp, 4712u);
        stamped.options = {raw({1, 1, 8, 10, 1, 2, 3, 4})};  // cut short
        run(program, stamped.frame());
        EXPECT_EQ(entry(key).last_timestamp, 4712u);
    }
}

TEST_P(Splice, OnlyWatchesAtFirst) {
    Way way = in_way;
    way.way = MPROX_WAY_WATCH;
    const auto key = enter_in(way);
    mprox_splice value = entry(key);
    value.ifindex = 0;
    put(key, value);
    Packet packet = inward();
    packet.options = {nop(), nop(), stamps(4711, 1)};
    packet.payload = {1, 2, 3};
    packet.flags = fin | ack;
    expect_untouched(ether(), packet.frame());
    expect_untouched(bare(), packet.ip());
    value = entry(key);
    EXPECT_EQ(value.packets, 2u);
    EXPECT_EQ(value.ifindex, 1u);  // a packet of BPF_PROG_RUN comes by lo
    EXPECT_EQ(value.last_timestamp, 4711u);
    EXPECT_EQ(value.bytes, 3u);
    EXPECT_EQ(value.next, packet.sequence + 3);
    EXPECT_EQ(value.acked, packet.acknowledgement);
}

TEST_P(Splice, WatchesFromTheServersSynOn) {
    Way way = in_way;
    way.way = MPROX_WAY_WATCH;
    const auto key = enter_in(way);
    Packet packet = inward();
    packet.payload = {};
    packet.sequence = 0xffffffff;
    packet.flags = syn | ack;
    expect_untouched(ether(), packet.frame());
    EXPECT_EQ(entry(key).next, 0u);
    EXPECT_EQ(entry(key).acked, packet.acknowledgement);
    packet.flags = ack;
    packet.sequence = 10;
    packet.payload = {1};
    packet.acknowledgement += 7;
    expect_untouched(ether(), packet.frame());
    EXPECT_EQ(entry(key).next, 11u);  // also of what has come too early
    EXPECT_EQ(entry(key).acked, packet.acknowledgement);
}

TEST_P(Splice, HoldsBackTheServerUntilTheSocketIsOpen) {
    const auto key = enter_in();
    mprox_splice value = entry(key);
    value.seen = 0;
    put(key, value);
    Packet packet = inward();
    packet.payload = {1, 2, 3};
    EXPECT_EQ(run(ether(), packet.frame()).verdict, TC_ACT_SHOT);
    EXPECT_EQ(entry(key).packets, 0u);
    value.seen = MPROX_OPENED;
    put(key, value);
    expect_in(packet);
}

}  // namespace
}  // namespace mprox::test
