// SPDX-License-Identifier: MIT
// The tc programs of spliced connections, loaded but attached nowhere, and run on packets of ours (BPF_PROG_RUN).
#pragma once

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <linux/pkt_cls.h>

#include <algorithm>
#include <memory>

#include "bpf/splice.skel.h"
#include "tests/unit/packet.hpp"

namespace mprox::test {

constexpr std::uint64_t netns = 0x1122334455667788;

// How one direction is to be translated.
struct Way {
    std::uint8_t way = MPROX_WAY_STAY;
    std::uint32_t sequence = 0, acknowledgement = 0, timestamp = 0, echo = 0;
    std::uint8_t window_left = 0, window_right = 0;
};

// The four ends of a spliced connection: the application's socket, the held address, the engine's socket, the server.
struct Ends {
    Endpoint application, held, ours, server;
};

inline Ends ends(bool ip6) {
    // A packet from this server is one for BPF_PROG_RUN without an Ethernet header, too: the kernel reads the protocol in
    // the bytes where an Ethernet header has it, and here these belong to the server's address.
    if (ip6)
        return {endpoint6(0, 1, 40000), endpoint6(0, 1, 960), endpoint6(0x2001'0db8'0000'0000, 2, 50000),
                endpoint6(0x2001'0db8'86dd'0000, 7, 1080)};
    return {endpoint4(0x7f000001, 40000), endpoint4(0x7f400102, 957), endpoint4(0x0a4d0001, 50000), endpoint4(0x08000304, 1080)};
}

// What a program should make of a packet.
inline Packet translated(Packet packet, const Endpoint& from, const Endpoint& to, const Way& way) {
    const bool acknowledges = packet.flags & ack;
    packet.from = from;
    packet.to = to;
    packet.sequence += way.sequence;
    if (acknowledges) packet.acknowledgement += way.acknowledgement;
    for (Option& option : packet.options) {
        if (option.kind == Option::timestamps) {
            option.numbers[0] += way.timestamp;
            if (acknowledges) option.numbers[1] += way.echo;
        } else if (option.kind == Option::sack) {
            for (std::uint32_t& edge : option.numbers) edge += way.acknowledgement;
        }
    }
    const std::uint64_t window = std::uint64_t{packet.window} * (1u << way.window_left) / (1u << way.window_right);
    packet.window = static_cast<std::uint16_t>(std::min<std::uint64_t>(window, 65535));
    return packet;
}

struct Answer {
    int verdict = 0;
    Bytes bytes;
};

class SplicePrograms : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        bpf_ = mprox_splice_bpf__open();
        ASSERT_NE(bpf_, nullptr);
        bpf_->rodata->netns = netns;
        ASSERT_EQ(mprox_splice_bpf__load(bpf_), 0);
    }
    static void TearDownTestSuite() { mprox_splice_bpf__destroy(bpf_); }

    void TearDown() override { forget(); }
    void forget() {
        for (const auto& key : entered_) bpf_map_delete_elem(splices(), &key);
        entered_.clear();
    }

    static int lo() { return bpf_program__fd(bpf_->progs.mprox_lo); }
    static int ether() { return bpf_program__fd(bpf_->progs.mprox_ether); }
    static int bare() { return bpf_program__fd(bpf_->progs.mprox_bare); }

    // What goes from `from` to `to` is translated to go from `new_from` to `new_to`.
    mprox_splice_key enter(const Endpoint& from, const Endpoint& to, const Endpoint& new_from, const Endpoint& new_to,
                           const Way& way) {
        const mprox_splice_key key{.netns = netns,
                                   .source = from.ip,
                                   .destination = to.ip,
                                   .source_port = htons(from.port),
                                   .destination_port = htons(to.port),
                                   .pad = 0};
        mprox_splice value{};
        value.ifindex = 1;
        value.source = new_from.ip;
        value.destination = new_to.ip;
        value.source_port = htons(new_from.port);
        value.destination_port = htons(new_to.port);
        value.way = way.way;
        value.window_left = way.window_left;
        value.window_right = way.window_right;
        value.sequence = way.sequence;
        value.acknowledgement = way.acknowledgement;
        value.timestamp = way.timestamp;
        value.echo = way.echo;
        value.seen = MPROX_OPENED;
        put(key, value);
        return key;
    }
    void put(const mprox_splice_key& key, const mprox_splice& value) {
        EXPECT_EQ(bpf_map_update_elem(splices(), &key, &value, BPF_ANY), 0);
        entered_.push_back(key);
    }
    static mprox_splice entry(const mprox_splice_key& key) {
        mprox_splice value{};
        EXPECT_EQ(bpf_map_lookup_elem(splices(), &key, &value), 0);
        return value;
    }

    // `summed`: as a device hands it over that has summed up the packet; the kernel checks the sum that comes out, if it is
    // new enough for that (6.16).
    static Answer run(int program, const Bytes& packet, bool summed = false) {
        Answer answer;
        answer.bytes.resize(packet.size() + 64);
        LIBBPF_OPTS(bpf_test_run_opts, options);
        options.data_in = packet.data();
        options.data_size_in = static_cast<__u32>(packet.size());
        options.data_out = answer.bytes.data();
        options.data_size_out = static_cast<__u32>(answer.bytes.size());
        constexpr std::uint32_t checksum_complete = 4;  // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
        if (summed) options.flags = checksum_complete;
        int error = bpf_prog_test_run_opts(program, &options);
        if (summed && error == -EINVAL) {
            options.flags = 0;
            error = bpf_prog_test_run_opts(program, &options);
        }
        EXPECT_EQ(error, 0);
        answer.bytes.resize(options.data_size_out);
        answer.verdict = static_cast<int>(options.retval);
        return answer;
    }

    static testing::AssertionResult same(const Bytes& got, const Bytes& wanted) {
        if (got == wanted) return testing::AssertionSuccess();
        return testing::AssertionFailure() << "got\n" << hex(got) << "\nin place of\n" << hex(wanted);
    }
    static void expect_same(const Bytes& got, const Bytes& wanted) { EXPECT_TRUE(same(got, wanted)); }

    static void expect_untouched(int program, const Bytes& packet) {
        const Answer answer = run(program, packet);
        EXPECT_EQ(answer.verdict, TC_ACT_UNSPEC);
        expect_same(answer.bytes, packet);
    }

    static int map(const char* name) { return bpf_map__fd(bpf_object__find_map_by_name(bpf_->obj, name)); }
    static int splices() { return bpf_map__fd(bpf_->maps.splices); }

  private:
    static inline mprox_splice_bpf* bpf_ = nullptr;
    std::vector<mprox_splice_key> entered_;
};

}  // namespace mprox::test
