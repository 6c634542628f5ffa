// SPDX-License-Identifier: MIT
// Packets, connections and differences at random: what holds for all of them. A case is made from its number alone.
#include <random>

#include "tests/unit/splice_programs.hpp"

namespace mprox::test {
namespace {

constexpr unsigned cases = 10000;

class Dice {
  public:
    explicit Dice(unsigned seed) : engine_(seed) {}
    std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>(engine_() % limit); }
    bool coin() { return below(2) == 0; }
    // Often close to where numbers wrap around.
    std::uint32_t number() {
        const std::uint32_t any = static_cast<std::uint32_t>(engine_());
        switch (below(4)) {
            case 0: return 0u - (any & 31);
            case 1: return 0x80000000 - (any & 31);
            default: return any;
        }
    }
    Bytes bytes(std::size_t size) {
        Bytes out(size);
        for (auto& byte : out) byte = static_cast<std::uint8_t>(engine_());
        return out;
    }

  private:
    std::mt19937_64 engine_;
};

Endpoint random_endpoint(Dice& dice, bool ip6) {
    const auto port = static_cast<std::uint16_t>(dice.number());
    const auto half = [&] { return std::uint64_t{dice.number()} << 32 | dice.number(); };
    if (ip6) return endpoint6(half(), half(), port);
    return endpoint4(dice.number(), port);
}

Option random_option(Dice& dice) {
    switch (dice.below(5)) {
        case 0: return stamps(dice.number(), dice.number());
        case 1: {
            Option option{Option::sack, {}, {}};
            for (std::uint32_t edges = 2 * (1 + dice.below(4)); edges > 0; edges--) option.numbers.push_back(dice.number());
            return option;
        }
        case 2: {
            const std::size_t size = dice.below(9);
            const auto kind = static_cast<std::uint8_t>(dice.coin() ? 250 + dice.below(6) : 2 + dice.below(3));
            return {Option::raw, join(Bytes{kind, static_cast<std::uint8_t>(2 + size)}, dice.bytes(size)), {}};
        }
        default: return nop();
    }
}

std::vector<Option> random_options(Dice& dice) {
    const auto number = [&] { return dice.number(); };
    switch (dice.below(4)) {
        case 0: return {};
        case 1: return {nop(), nop(), stamps(number(), number())};
        case 2: return {nop(), nop(), stamps(number(), number()), nop(), nop(), {Option::sack, {}, {number(), number()}}};
        default: break;
    }
    std::vector<Option> options;
    for (std::size_t room = 40;;) {
        options.push_back(random_option(dice));
        const std::size_t size = options.back().wire().size();
        if (size > room) break;
        room -= size;
        if (dice.below(5) == 0) return options;
    }
    options.pop_back();
    return options;
}

struct Case {
    Packet packet;
    Endpoint from, to;
    Way there, back;
};

Case random_case(unsigned seed) {
    Dice dice(seed);
    const bool ip6 = dice.coin();
    Case made{.packet = packet_of(ip6, random_endpoint(dice, ip6), random_endpoint(dice, ip6)),
              .from = random_endpoint(dice, ip6),
              .to = random_endpoint(dice, ip6),
              .there = {},
              .back = {}};
    Packet& packet = made.packet;
    packet.sequence = dice.number();
    packet.acknowledgement = dice.number();
    packet.flags = static_cast<std::uint8_t>(dice.coin() ? ack : dice.number());
    packet.reserved = dice.number() & 15;
    packet.window = static_cast<std::uint16_t>(dice.number());
    packet.urgent = static_cast<std::uint16_t>(dice.number());
    packet.options = random_options(dice);
    packet.payload = dice.bytes(dice.coin() ? 0 : dice.below(1448));
    packet.tos = static_cast<std::uint8_t>(dice.number());
    packet.ttl = static_cast<std::uint8_t>(dice.number());
    packet.id = dice.number() & 0xffff;
    packet.fragment = dice.coin() ? 0x4000 : 0;
    if (!ip6) packet.ip_options = dice.bytes(dice.coin() ? 0 : 4 * dice.below(11));
    made.there = {.way = MPROX_WAY_STAY, .sequence = dice.number(), .acknowledgement = dice.number(), .timestamp = dice.number(),
                  .echo = dice.number(), .window_left = 0, .window_right = 0};
    made.back = made.there;
    for (std::uint32_t* number : {&made.back.sequence, &made.back.acknowledgement, &made.back.timestamp, &made.back.echo})
        *number = 0 - *number;
    return made;
}

class SpliceProperty : public SplicePrograms {};

TEST_F(SpliceProperty, ThereAndBackIsWhatItWas) {
    for (unsigned seed = 0; seed < cases; seed++) {
        SCOPED_TRACE("case " + std::to_string(seed));
        const Case made = random_case(seed);
        const Packet& packet = made.packet;
        enter(packet.from, packet.to, made.from, made.to, made.there);
        enter(made.from, made.to, packet.from, packet.to, made.back);
        const Bytes before = packet.frame();
        const Answer there = run(ether(), before, true);
        ASSERT_TRUE(same(there.bytes, translated(packet, made.from, made.to, made.there).frame()));
        const Answer back = run(ether(), there.bytes, true);
        ASSERT_TRUE(same(back.bytes, before));
        forget();
    }
}

// Whatever is wrong with a packet, nothing but the fields that are translated is touched, and no byte is lost.
TEST_F(SpliceProperty, SurvivesDamage) {
    for (unsigned seed = 0; seed < cases; seed++) {
        SCOPED_TRACE("case " + std::to_string(seed));
        Dice dice(seed + cases);
        Case made = random_case(seed);
        Packet& packet = made.packet;
        enter(packet.from, packet.to, made.from, made.to, made.there);
        enter(made.from, made.to, packet.from, packet.to, made.back);
        Bytes frame = packet.frame();
        const std::size_t header = packet.ip6 ? 40 : 20 + packet.ip_options.size();
        for (std::uint32_t number = 1 + dice.below(4); number > 0; number--) {
            const std::size_t at = 12 + dice.below(static_cast<std::uint32_t>(8 + packet.tcp_options().size()));
            if (at != 16 && at != 17)  // a checksum of 0xffff says what 0 says, and comes back as 0
                frame[14 + header + at] = static_cast<std::uint8_t>(dice.number());
        }
        if (dice.coin()) frame.resize(14 + header + dice.below(static_cast<std::uint32_t>(frame.size() - 14 - header)));
        const Answer there = run(lo(), frame);
        ASSERT_EQ(there.bytes.size(), frame.size());
        const Answer back = run(lo(), there.bytes);
        ASSERT_TRUE(same(back.bytes, frame));
        forget();
    }
}

}  // namespace
}  // namespace mprox::test
