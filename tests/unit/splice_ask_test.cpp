// SPDX-License-Identifier: MIT
// How the tc programs ask a server and answer a connect(), packet by packet.
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <optional>
#include <random>

#include "tests/unit/splice_programs.hpp"

namespace mprox::test {
namespace {

constexpr std::uint32_t number = 5, shard = 0;
constexpr std::uint64_t cookie = 0x1234;
constexpr std::uint32_t attempt = 3;
// Of the application's SYN, and of the connection to the server.
constexpr std::uint32_t syn_sequence = 0xffff'fff0, send_next = 0x7fff'fffa, receive_next = 0xffff'fffc;

class Ask : public SplicePrograms, public testing::WithParamInterface<bool> {
  protected:
    const bool ip6 = GetParam();
    const Ends at = ends(ip6);
    mprox_pool* pool = nullptr;
    int ring = -1;
    mprox_splice_key out_key{}, in_key{};

    void SetUp() override {
        LIBBPF_OPTS(bpf_map_create_opts, mappable, .map_flags = BPF_F_MMAPABLE);
        const int map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "pool", 4, sizeof(mprox_pool), 1, &mappable);
        ring = bpf_map_create(BPF_MAP_TYPE_RINGBUF, "ring", 0, 0, MPROX_RING_BYTES, nullptr);
        ASSERT_GE(map, 0);
        ASSERT_GE(ring, 0);
        const std::uint32_t index = shard;
        ASSERT_EQ(bpf_map_update_elem(this->map("pools"), &index, &map, BPF_ANY), 0);
        ASSERT_EQ(bpf_map_update_elem(this->map("rings"), &index, &ring, BPF_ANY), 0);
        pool = static_cast<mprox_pool*>(::mmap(nullptr, sizeof(mprox_pool), PROT_READ | PROT_WRITE, MAP_SHARED, map, 0));
        ASSERT_NE(pool, MAP_FAILED);
        ::close(map);
        mprox_context context{};
        context.generation = 7;
        context.alive = 1;
        ASSERT_EQ(bpf_map_update_elem(this->map("contexts"), &index, &context, BPF_ANY), 0);
        begin();
    }
    void TearDown() override {
        ::munmap(pool, sizeof(mprox_pool));
        ::close(ring);
        SplicePrograms::TearDown();
    }

    // A SYN has just taken the connection.
    void begin(std::uint8_t way = MPROX_WAY_STAY) {
        mprox_ready& ready = this->ready();
        ready = {};
        ready.send_next = send_next;
        ready.receive_next = receive_next;
        ready.mss = 1448;
        ready.window = 64240;
        ready.receive_scale = 9;
        ready.send_scale = 8;
        ready.sack = 1;
        ready.held.cookie = cookie;
        ready.held.attempt = attempt;
        ready.held.window = 65535;
        stamp(1000);
        ready.inward.last_timestamp = 4242;
        ready.request_size = static_cast<std::uint32_t>(request().size());
        std::copy_n(request().begin(), ready.request_size, ready.request);
        pool->state[number] = MPROX_READY_ASKED;

        out_key = enter(at.application, at.held, at.ours, at.server,
                        {.way = way, .sequence = difference(), .timestamp = 12345, .window_left = 7, .window_right = 9});
        in_key = enter(at.server, at.ours, at.held, at.application,
                       {.way = way, .acknowledgement = 0 - difference(), .echo = 0 - 12345u});
        mprox_splice out = entry(out_key), in = entry(in_key);
        for (mprox_splice* splice : {&out, &in}) {
            splice->seen = 0;
            splice->ready = number + 1;
            splice->shard = shard;
            splice->cookie = cookie;
            splice->attempt = attempt;
            splice->owner = {.slot = 0, .generation = 7};
        }
        out.outward = 1;
        in.next = receive_next;
        in.acked = ready.inward.acked = send_next + ready.request_size;
        put(out_key, out);
        put(in_key, in);
    }

    // The first SYN's.
    void stamp(std::uint32_t value) { std::ranges::copy(big_endian(value), ready().held.options + 8); }
    mprox_ready& ready() { return pool->ready[number]; }
    [[nodiscard]] mprox_ready_state state() const { return static_cast<mprox_ready_state>(pool->state[number]); }
    [[nodiscard]] std::uint32_t difference() const { return send_next + static_cast<std::uint32_t>(request().size()) - (syn_sequence + 1); }

    // RFC 1928 sections 4 and 6.
    [[nodiscard]] Bytes message(std::uint8_t second) const {
        const Bytes port{0x01, 0xbb};
        return ip6 ? join(Bytes{5, second, 0, 4}, Bytes(16, 0x20), port) : join(Bytes{5, second, 0, 1, 198, 51, 100, 7}, port);
    }
    [[nodiscard]] Bytes request() const { return message(1); }

    [[nodiscard]] Packet syn() const {
        Packet packet = packet_of(ip6, at.application, at.held);
        packet.flags = mprox::test::syn;
        packet.sequence = syn_sequence;
        packet.acknowledgement = 0;
        packet.window = 65535;
        packet.options = {{Option::raw, {2, 4, 0xff, 0xd7, 4, 2}, {}}, stamps(1000, 0), nop(), {Option::raw, {3, 3, 7}, {}}};
        packet.id = 77;
        return packet;
    }
    [[nodiscard]] Packet asked() const {
        Packet packet = syn();
        packet.from = at.ours;
        packet.to = at.server;
        packet.flags = psh | ack;
        packet.sequence = send_next;
        packet.acknowledgement = receive_next;
        packet.window = 65535 >> 9;
        packet.options = {nop(), nop(), stamps(1000 + 12345, 4242)};
        packet.payload = request();
        return packet;
    }
    [[nodiscard]] Packet reply(Bytes payload) const {
        Packet packet = packet_of(ip6, at.server, at.ours);
        packet.flags = psh | ack;
        packet.sequence = receive_next;
        packet.acknowledgement = send_next + static_cast<std::uint32_t>(request().size());
        packet.options = {nop(), nop(), stamps(5000, 1000 + 12345)};
        packet.payload = std::move(payload);
        packet.id = 99;
        return packet;
    }
    [[nodiscard]] Packet syn_ack(std::size_t reply_size) const {
        Packet packet = reply({});
        packet.from = at.held;
        packet.to = at.application;
        packet.flags = mprox::test::syn | ack;
        packet.sequence = receive_next + static_cast<std::uint32_t>(reply_size) - 1;
        packet.acknowledgement = syn_sequence + 1;
        packet.window = 64240;
        packet.options = {{Option::raw, {2, 4, 1448 >> 8, 1448 & 0xff, 4, 2}, {}}, stamps(5000, 1000), nop(), {Option::raw, {3, 3, 8}, {}}};
        return packet;
    }

    void expect_translated(const Packet& packet, const Packet& wanted) {
        const Answer answer = run(lo(), packet.frame());
        EXPECT_EQ(answer.verdict, TC_ACT_UNSPEC);
        expect_same(answer.bytes, wanted.frame());
    }
    void expect_dropped(const Packet& packet) { EXPECT_EQ(run(lo(), packet.frame()).verdict, TC_ACT_SHOT); }
    // As the program of the cgroup lets a SYN pass.
    void expect_marked_dropped(const Packet& packet) {
        const Bytes frame = packet.frame();
        Bytes out(frame.size() + 64);
        __sk_buff context{};
        context.mark = MPROX_MARK;
        LIBBPF_OPTS(bpf_test_run_opts, options);
        options.data_in = frame.data();
        options.data_size_in = static_cast<__u32>(frame.size());
        options.data_out = out.data();
        options.data_size_out = static_cast<__u32>(out.size());
        options.ctx_in = &context;
        options.ctx_size_in = sizeof context;
        EXPECT_EQ(bpf_prog_test_run_opts(lo(), &options), 0);
        EXPECT_EQ(options.retval, static_cast<__u32>(TC_ACT_SHOT));
    }
    // The engine is told once, and its socket will hear it all.
    void expect_given_up(const Packet& packet, std::size_t told_reply = 0) {
        const std::size_t before = events();
        expect_dropped(packet);
        EXPECT_EQ(state(), MPROX_READY_STUCK);
        EXPECT_EQ(events(), before + 1);
        EXPECT_EQ(ready().reply_size, told_reply);
        expect_dropped(packet);
        EXPECT_EQ(events(), before + 1);
    }
    // So far.
    [[nodiscard]] std::size_t events() const {
        const auto page = static_cast<std::size_t>(::getpagesize());
        void* producer = ::mmap(nullptr, page, PROT_READ, MAP_SHARED, ring, static_cast<off_t>(page));
        EXPECT_NE(producer, MAP_FAILED);
        const auto position = *static_cast<const volatile std::uint64_t*>(producer);
        ::munmap(producer, page);
        return position / (sizeof(mprox_event) + 8);
    }
};

TEST_P(Ask, SynBecomesRequest) {
    expect_translated(syn(), asked());
    EXPECT_EQ(state(), MPROX_READY_ASKED);
}

TEST_P(Ask, SynThatComesAgainBecomesTheSame) {
    expect_translated(syn(), asked());
    Packet again = syn(), wanted = asked();
    again.options[1] = stamps(2000, 0);
    wanted.options[2] = stamps(2000 + 12345, 4242);
    expect_translated(again, wanted);
}

TEST_P(Ask, LeavesThroughTheServersDevice) {
    begin(MPROX_WAY_OUT);
    const Answer answer = run(lo(), syn().frame());
    EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
    expect_same(answer.bytes, asked().frame());
}

TEST_P(Ask, SynOfAnotherConnectIsDropped) {
    ready().held.cookie++;
    expect_dropped(syn());
    ready().held.cookie--;
    ready().held.attempt++;
    expect_dropped(syn());
}

TEST_P(Ask, SynWithDataIsDropped) {
    Packet packet = syn();
    packet.payload = {1, 2, 3};
    expect_dropped(packet);
}

TEST_P(Ask, ReplyBecomesSynAck) {
    expect_translated(reply(message(0)), syn_ack(message(0).size()));
    EXPECT_EQ(state(), MPROX_READY_ANSWERED);
    EXPECT_EQ(entry(in_key).next, receive_next + static_cast<std::uint32_t>(message(0).size()));
    EXPECT_EQ(entry(in_key).bytes, 0U);
}

TEST_P(Ask, ReplyBecomesSynAckForAServerWithoutSack) {
    ready().sack = 0;
    Packet wanted = syn_ack(message(0).size());
    wanted.options[0].bytes = {2, 4, 1448 >> 8, 1448 & 0xff, 1, 1};
    expect_translated(reply(message(0)), wanted);
}

// Where a device has summed up the packet. The program gives the sum up, and BPF_PROG_RUN checks what is left of it all the
// same: with IPv6 that is right, as its header and its pseudo header bear the same addresses.
TEST_P(Ask, ReplyThatIsSummedUpBecomesSynAck) {
    begin(MPROX_WAY_IN);
    for (const bool summed : {false, ip6}) {
        const Answer answer = run(ether(), reply(message(0)).frame(), summed);
        EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
        expect_same(answer.bytes, syn_ack(message(0).size()).frame());
    }
}

TEST_P(Ask, ReplyThatComesAgainBecomesTheSame) {
    for (int i = 0; i < 3; i++) expect_translated(reply(message(0)), syn_ack(message(0).size()));
}

TEST_P(Ask, AddressOfTheOtherFamilyInTheReply) {
    const Bytes four = join(Bytes{5, 0, 0, 1}, Bytes(6, 9)), six = join(Bytes{5, 0, 0, 4}, Bytes(18, 9));
    expect_translated(reply(four), syn_ack(10));
    expect_translated(reply(six), syn_ack(22));
}

TEST_P(Ask, BytesBehindTheReplyAreLeftToComeAgain) {
    for (const std::size_t more : {1, 2, 3, 100, 1001})
        expect_translated(reply(join(message(0), Bytes(more, 'x'))), syn_ack(message(0).size()));
    EXPECT_EQ(entry(in_key).next, receive_next + static_cast<std::uint32_t>(message(0).size()));
}

TEST_P(Ask, PaddedFrameBecomesSynAck) {
    const Answer answer = run(lo(), join(reply(message(0)).frame(), Bytes(6)));
    expect_same(answer.bytes, syn_ack(message(0).size()).frame());
}

TEST_P(Ask, AcknowledgementAloneIsNoAnswer) {
    expect_dropped(reply({}));
    EXPECT_EQ(state(), MPROX_READY_ASKED);
}

TEST_P(Ask, ReplyOutOfPlaceIsDropped) {
    for (const std::uint32_t off : {1U, 0xffff'ffffU, 1000U}) {
        Packet packet = reply(message(0));
        packet.sequence += off;
        expect_dropped(packet);
        packet = reply(message(0));
        packet.acknowledgement += off;
        expect_dropped(packet);
    }
    EXPECT_EQ(state(), MPROX_READY_ASKED);
    EXPECT_EQ(events(), 0U);
}

TEST_P(Ask, RefusalIsTold) {
    for (std::uint8_t code = 1; code < 255; code = static_cast<std::uint8_t>(code * 2 + 1)) {
        begin();
        expect_given_up(reply(message(code)), message(code).size());
        EXPECT_EQ(Bytes(ready().reply, ready().reply + ready().reply_size), message(code));
    }
}

TEST_P(Ask, ReplyInPiecesIsForTheEngine) {
    for (std::size_t size = 1; size < message(0).size(); size++) {
        begin();
        Bytes piece = message(0);
        piece.resize(size);
        expect_given_up(reply(piece));
    }
}

TEST_P(Ask, ReplyThatIsNoneIsForTheEngine) {
    const std::vector<Bytes> replies{join(Bytes{4, 0, 0, 1}, Bytes(6)),       join(Bytes{5, 0, 1, 1}, Bytes(6)), join(Bytes{5, 0, 0, 2}, Bytes(30)),
                                     join(Bytes{5, 0, 0, 0xff}, Bytes(300)), Bytes(22, 'H'),                    Bytes(1000)};
    for (const Bytes& bytes : replies) {
        begin();
        expect_given_up(reply(bytes));
    }
}

// RFC 1928 allows a name; servers send an address.
TEST_P(Ask, ReplyWithANameIsForTheEngine) { expect_given_up(reply(join(Bytes{5, 0, 0, 3, 5}, Bytes(5, 'a'), Bytes(2)))); }

TEST_P(Ask, EndInPlaceOfAReplyIsForTheEngine) {
    for (const std::uint8_t end : {fin, rst}) {
        for (const Bytes& payload : {Bytes{}, message(0)}) {
            begin();
            Packet packet = reply(payload);
            packet.flags |= end;
            expect_given_up(packet);
        }
    }
}

TEST_P(Ask, OtherOptionsAreForTheEngine) {
    const std::vector<std::vector<Option>> layouts{{}, {stamps(5000, 1000), nop(), nop()}, {nop(), nop(), stamps(5000, 1000), nop(), nop(), nop(), nop()}};
    for (const auto& options : layouts) {
        begin();
        Packet packet = reply(message(0));
        packet.options = options;
        expect_given_up(packet);
    }
}

TEST_P(Ask, EchoOfAnotherClockIsForTheEngine) {
    for (const std::uint32_t off : {1U, 0xffff'0000U, 0x8000'0000U, 0u - 5000U}) {
        begin();
        Packet packet = reply(message(0));
        packet.options[2] = stamps(5000, 1000 + 12345 - off);
        expect_given_up(packet);
    }
}

TEST_P(Ask, SynWithoutAnEntryGoesNowhere) {
    forget();
    expect_untouched(lo(), syn().frame());
    expect_marked_dropped(syn());
}

TEST_P(Ask, WhatTheEngineHasTakenBackIsNotAnswered) {
    pool->state[number] = MPROX_READY_STUCK;
    expect_dropped(reply(message(0)));
    EXPECT_EQ(state(), MPROX_READY_STUCK);
}

// Behind the SYN-ACK, on the same way: it arrives after it.
TEST_P(Ask, WhatComesAfterTheReplyIsTranslated) {
    run(lo(), reply(message(0)).frame());
    const auto size = static_cast<std::uint32_t>(message(0).size());
    for (const std::uint8_t flags : {std::uint8_t{psh}, fin, rst}) {
        Packet packet = reply(Bytes{'h', 'i'});
        packet.sequence += size;
        packet.flags = flags | ack;
        Packet wanted = packet;
        wanted.from = at.held;
        wanted.to = at.application;
        wanted.acknowledgement = syn_sequence + 1;
        wanted.options = {nop(), nop(), stamps(5000, 1000)};
        expect_translated(packet, wanted);
    }
    Packet doubtful = reply(Bytes{'h', 'i'});
    doubtful.sequence += size;
    doubtful.acknowledgement--;
    expect_dropped(doubtful);
}

TEST_P(Ask, AnyNumbers) {
    std::mt19937 random(20'240'917);
    for (int i = 0; i < 2000; i++) {
        mprox_splice out = entry(out_key), in = entry(in_key);
        const std::uint32_t sequence = random();
        ready().send_next = random();
        ready().receive_next = random();
        ready().mss = static_cast<std::uint16_t>(random());
        ready().window = static_cast<std::uint16_t>(random());
        const std::uint32_t end = ready().send_next + ready().request_size;
        out.timestamp = random();
        in.echo = 0 - out.timestamp;
        in.acknowledgement = sequence + 1 - end;
        ready().inward.acked = end;
        pool->state[number] = MPROX_READY_ASKED;
        put(out_key, out);
        put(in_key, in);

        Packet first = syn(), wanted = asked();
        first.sequence = sequence;
        first.window = ready().held.window = static_cast<std::uint16_t>(random());
        const std::uint32_t stamp = random(), theirs = random();
        this->stamp(stamp - static_cast<std::uint32_t>(random() % 4000));
        first.options[1] = stamps(stamp, 0);
        wanted.sequence = ready().send_next;
        wanted.acknowledgement = ready().receive_next;
        wanted.window = first.window >> 9;
        wanted.options[2] = stamps(stamp + out.timestamp, 4242);
        expect_translated(first, wanted);

        Bytes payload = message(0);
        for (std::size_t k = 4; k < payload.size(); k++) payload[k] = static_cast<std::uint8_t>(random());
        const std::size_t size = payload.size();
        payload.resize(size + random() % 50, static_cast<std::uint8_t>(random()));
        Packet second = reply(payload), answer = syn_ack(size);
        second.sequence = ready().receive_next;
        second.acknowledgement = end;
        second.options[2] = stamps(theirs, stamp + out.timestamp);
        answer.sequence = ready().receive_next + static_cast<std::uint32_t>(size) - 1;
        answer.acknowledgement = sequence + 1;
        answer.window = ready().window;
        answer.options[0].bytes = join(Bytes{2, 4}, big_endian16(ready().mss), Bytes{4, 2});
        answer.options[1] = stamps(theirs, stamp);
        expect_translated(second, answer);
        if (HasFailure()) return;
    }
}

// From a port: the programs connect it as well. The numbers are chosen so that none has to be changed once it stands.
class Dial : public Ask {
  protected:
    static constexpr std::uint32_t server_sequence = receive_next - 3, own_mss = 1460;

    void SetUp() override {
        Ask::SetUp();
        dial();
    }
    void dial(std::uint8_t way = MPROX_WAY_STAY) {
        begin(way);
        mprox_ready& ready = this->ready();
        ready.port = 1;
        ready.own_mss = own_mss;
        ready.send_next = syn_sequence + 1 - ready.request_size;
        ready.receive_next = 0;
        ready.sent = ready.send_next - GREETING;
        ready.scale = ready.receive_scale = 7;
        ready.sack = ready.send_scale = 0;
        ready.window = 0;
        pool->state[number] = MPROX_READY_DIALLED;
        mprox_splice out = entry(out_key), in = entry(in_key);
        out.sequence = in.acknowledgement = 0;
        out.window_left = out.window_right = 0;
        out.next = in.acked = ready.inward.acked = syn_sequence + 1;
        in.next = out.acked = 0;
        in.ifindex = 1;
        ready.outward = out;
        ready.outward_key = out_key;
        put(out_key, out);
        put(in_key, in);
    }
    [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(request().size()); }

    // To the server, if there is one before.
    [[nodiscard]] Packet towards(std::uint32_t stamp = 1000) const {
        Packet packet = syn();
        packet.from = at.ours;
        packet.to = at.server;
        packet.sequence = syn_sequence - GREETING - size();
        packet.options = {{Option::raw, {2, 4, own_mss >> 8, own_mss & 0xff, 4, 2}, {}}, stamps(stamp + 12345, 0), nop(), {Option::raw, {3, 3, 7}, {}}};
        return packet;
    }
    [[nodiscard]] Packet said(std::uint32_t after_syn, std::uint32_t heard, Bytes payload, std::uint32_t echo, std::uint32_t stamp = 1000) const {
        Packet packet = towards();
        packet.flags = psh | ack;
        packet.sequence += 1 + after_syn;
        packet.acknowledgement = server_sequence + 1 + heard;
        packet.window = 65535 >> 7;
        packet.options = {nop(), nop(), stamps(stamp + 12345, echo)};
        packet.payload = std::move(payload);
        return packet;
    }
    [[nodiscard]] Packet greeting(std::uint32_t stamp = 1000) const { return said(0, 0, {5, 1, 0}, 4000, stamp); }
    [[nodiscard]] Packet asking(std::uint32_t stamp = 1000) const { return said(GREETING, GREETED, request(), 4500, stamp); }

    // From it: to be returned, as if it came from far away.
    [[nodiscard]] Packet from_server(std::uint32_t after_syn, std::uint32_t heard, Bytes payload, std::uint32_t stamp, std::uint32_t echo = 1000) const {
        Packet packet = packet_of(ip6, at.server, at.ours);
        packet.flags = psh | ack;
        packet.sequence = server_sequence + 1 + after_syn;
        packet.acknowledgement = towards().sequence + 1 + heard;
        packet.options = {nop(), nop(), stamps(stamp, echo + 12345)};
        packet.payload = std::move(payload);
        packet.id = 99;
        packet.ttl = 51;
        return packet;
    }
    [[nodiscard]] Packet accepted(Bytes kind = {4, 2}) const {
        Packet packet = from_server(0, 0, {}, 4000);
        packet.flags = mprox::test::syn | ack;
        packet.sequence--;
        packet.options = {{Option::raw, join(Bytes{2, 4, 1400 >> 8, 1400 & 0xff}, kind), {}}, stamps(4000, 1000 + 12345), nop(), {Option::raw, {3, 3, 8}, {}}};
        return packet;
    }
    [[nodiscard]] Packet method(Bytes payload = {5, 0}) const { return from_server(0, GREETING, std::move(payload), 4500); }
    [[nodiscard]] Packet granted() const {
        Packet packet = reply(message(0));
        packet.acknowledgement = syn_sequence + 1;
        packet.window = 200;
        return packet;
    }

    void expect_returned(const Packet& packet, Packet wanted) {
        wanted.id = packet.id;
        expect_translated(packet, wanted);
    }
    void be_greeted() {
        expect_returned(accepted(), greeting());
        EXPECT_EQ(state(), MPROX_READY_GREETED);
    }
    void be_asked() {
        be_greeted();
        expect_returned(method(), asking());
        EXPECT_EQ(state(), MPROX_READY_ASKED);
    }
};

TEST_P(Dial, SynGoesToTheServer) {
    expect_translated(syn(), towards());
    Packet again = syn();
    again.options[1] = stamps(2000, 0);
    expect_translated(again, towards(2000));
    EXPECT_EQ(state(), MPROX_READY_DIALLED);
}

TEST_P(Dial, EachAnswerBecomesTheNextWord) {
    be_asked();
    EXPECT_EQ(ready().receive_next, receive_next);
    EXPECT_EQ(ready().sent, syn_sequence + 1);
    Packet wanted = syn_ack(size());
    wanted.window = 200u << 8;
    wanted.options[0].bytes = {2, 4, 1400 >> 8, 1400 & 0xff, 4, 2};
    expect_translated(granted(), wanted);
    EXPECT_EQ(state(), MPROX_READY_ANSWERED);
    EXPECT_EQ(entry(in_key).next, receive_next + size());
    EXPECT_EQ(entry(out_key).acked, receive_next);
}

// Nothing but addresses, ports and clocks.
TEST_P(Dial, WhatFollowsKeepsItsNumbers) {
    be_asked();
    run(lo(), granted().frame());
    Packet packet = granted();
    packet.sequence += size();
    packet.payload = {'h', 'i'};
    Packet wanted = packet;
    wanted.from = at.held;
    wanted.to = at.application;
    wanted.options = {nop(), nop(), stamps(5000, 1000)};
    expect_translated(packet, wanted);

    packet = packet_of(ip6, at.application, at.held);
    packet.flags = psh | ack;
    packet.sequence = syn_sequence + 1;
    packet.acknowledgement = receive_next + size();
    packet.options = {nop(), nop(), stamps(1010, 5000)};
    packet.payload = {'h', 'o'};
    wanted = packet;
    wanted.from = at.ours;
    wanted.to = at.server;
    wanted.options = {nop(), nop(), stamps(1010 + 12345, 5000)};
    expect_translated(packet, wanted);
}

TEST_P(Dial, GoesBackThroughTheServersDevice) {
    dial(MPROX_WAY_IN);
    for (const Packet& packet : {accepted(), method()}) {
        Packet wanted = packet.flags & mprox::test::syn ? greeting() : asking();
        wanted.id = packet.id;
        const Answer answer = run(ether(), packet.frame());
        EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
        expect_same(answer.bytes, wanted.frame());
    }
}

// The kernel sends on what has an Ethernet header.
TEST_P(Dial, GoesBackThroughADeviceWithoutEthernetHeader) {
    dial(MPROX_WAY_IN);
    Packet wanted = greeting();
    wanted.id = 99;
    const Bytes frame = accepted().frame();
    const Answer answer = run(bare(), Bytes(frame.begin() + 14, frame.end()));
    EXPECT_EQ(answer.verdict, TC_ACT_REDIRECT);
    expect_same(answer.bytes, wanted.frame());
}

TEST_P(Dial, WhatIsSaidAgainIsAnsweredAgain) {
    Packet later = syn();
    later.options[1] = stamps(2000, 0);
    be_greeted();
    expect_returned(accepted(), greeting());
    expect_translated(later, greeting(2000));
    expect_returned(method(), asking());
    expect_returned(method(), asking());
    expect_translated(later, asking(2000));
    expect_dropped(accepted());
    EXPECT_EQ(state(), MPROX_READY_ASKED);
}

TEST_P(Dial, ServerWithoutSack) {
    expect_returned(accepted({1, 1}), greeting());
    expect_returned(method(), asking());
    Packet wanted = syn_ack(size());
    wanted.window = 200u << 8;
    wanted.options[0].bytes = {2, 4, 1400 >> 8, 1400 & 0xff, 1, 1};
    expect_translated(granted(), wanted);
}

TEST_P(Dial, AcknowledgementsAreNotAnswered) {
    expect_dropped(from_server(0, 0, {}, 4000));
    EXPECT_EQ(state(), MPROX_READY_DIALLED);
    be_greeted();
    expect_dropped(from_server(0, GREETING, {}, 4000));
    EXPECT_EQ(state(), MPROX_READY_GREETED);
    expect_returned(method(), asking());
    expect_dropped(from_server(GREETED, GREETING + size(), {}, 4000));
    EXPECT_EQ(state(), MPROX_READY_ASKED);
    EXPECT_EQ(events(), 0U);
}

TEST_P(Dial, WhatIsOutOfPlaceIsDropped) {
    for (const std::uint32_t off : {1U, 0xffff'ffffU, 1000U}) {
        Packet packet = accepted();
        packet.acknowledgement += off;
        expect_dropped(packet);
    }
    EXPECT_EQ(state(), MPROX_READY_DIALLED);
    be_greeted();
    for (const std::uint32_t off : {1U, 0xffff'ffffU, 1000U}) {
        Packet packet = method();
        packet.sequence += off;
        expect_dropped(packet);
        packet = accepted();
        packet.sequence += off;
        expect_dropped(packet);
    }
    EXPECT_EQ(state(), MPROX_READY_GREETED);
}

TEST_P(Dial, OtherWordsAreForTheEngine) {
    for (const Bytes& bytes : {Bytes{5, 0xff}, Bytes{5, 2}, Bytes{4, 0}, Bytes{5}, Bytes{5, 0, 0}, Bytes(50, 'H')}) {
        dial();
        be_greeted();
        expect_given_up(method(bytes));
    }
}

TEST_P(Dial, RefusalIsTold) {
    be_asked();
    Packet packet = granted();
    packet.payload = message(5);
    expect_given_up(packet, size());
}

TEST_P(Dial, EndIsForTheEngine) {
    for (const std::uint8_t end : {fin, rst})
        for (const int stage : {0, 1, 2}) {
            dial();
            if (stage == 1) be_greeted();
            if (stage == 2) be_asked();
            Packet packet = stage == 2 ? granted() : method({});
            packet.flags = end | ack;
            expect_given_up(packet);
        }
}

TEST_P(Dial, OtherOptionsInTheSynAckAreForTheEngine) {
    const std::vector<std::vector<Option>> layouts{
        {}, {{Option::raw, {2, 4, 5, 0}, {}}}, {{Option::raw, {2, 4, 5, 0, 1, 1}, {}}, stamps(4000, 1), nop(), nop(), nop(), nop()},
        {nop(), nop(), stamps(4000, 1), {Option::raw, {2, 4, 5, 0}, {}}, nop(), {Option::raw, {3, 3, 8}, {}}}};
    for (const auto& options : layouts) {
        dial();
        Packet packet = accepted();
        packet.options = options;
        expect_given_up(packet);
    }
    dial();
    Packet packet = accepted();
    packet.flags |= ece;
    expect_given_up(packet);
}

INSTANTIATE_TEST_SUITE_P(Ip, Dial, testing::Bool(), [](const auto& parameter) { return parameter.param ? "v6" : "v4"; });
INSTANTIATE_TEST_SUITE_P(Ip, Ask, testing::Bool(), [](const auto& parameter) { return parameter.param ? "v6" : "v4"; });

}  // namespace
}  // namespace mprox::test
