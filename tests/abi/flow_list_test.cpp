// SPDX-License-Identifier: MIT
// GET_CONNECTIONS: the flows there are.
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mprox/mprox.hpp>

#include "tests/abi/flow.hpp"
#include "tests/abi/socks5_fake.hpp"

namespace conformance {
namespace {

/// A member that keeps ten connections open, to the ports 81 to 90.
class FlowList : public testing::Test {
  protected:
    static constexpr std::uint32_t count = 10;

    void SetUp() override {
        configure(fd, "server socks5://127.0.0.1:1 priority=9\n" + server.line());
        member.link().say(0);
        ASSERT_EQ(member.link().hear(), 0);
    }
    int list(mutex_proxy_connections& request) { return error_of(::mprox_get_connections(fd.get(), &request)); }
    static mutex_proxy_connections request(std::vector<mutex_proxy_connection>& room, std::uint64_t after = 0) {
        mutex_proxy_connections list{};
        list.size = sizeof list;
        list.connection_size = sizeof(mutex_proxy_connection);
        list.after = after;
        list.capacity = static_cast<std::uint32_t>(room.size());
        list.connections = reinterpret_cast<std::uintptr_t>(room.data());
        return list;
    }

    Socks5Fake server;
    const Fd fd = create();
    Process member{[this](const Link& link) {
        if (link.hear() != 0) return 100;
        if (::mprox_enable(fd.get()) != 0) return 101;
        std::vector<Fd> sockets;
        for (std::uint16_t i = 0; i < count; ++i) {
            auto [socket, error] = connect_to(i % 2 ? nowhere6 : nowhere, static_cast<std::uint16_t>(81 + i));
            if (error || !echoes(socket, 100)) return 102;
            sockets.push_back(std::move(socket));
        }
        link.say(0);
        return stay(link);
    }};
};

TEST_F(FlowList, SaysEverything) {
    std::vector<mutex_proxy_connection> room(2 * count);
    auto all = request(room);
    ASSERT_EQ(list(all), 0);
    ASSERT_EQ(all.count, count);
    EXPECT_EQ(all.more, 0u);
    for (std::uint32_t i = 0; i < count; ++i) {
        SCOPED_TRACE(i);
        const auto& flow = room[i];
        if (i) {
            EXPECT_GT(flow.id, room[i - 1].id);
            EXPECT_LE(flow.age_ms, room[i - 1].age_ms);
        }
        EXPECT_GT(flow.id, 0u);
        EXPECT_EQ(flow.bytes_sent, 100u);
        EXPECT_EQ(flow.bytes_received, 100u);
        EXPECT_EQ(flow.pid, static_cast<std::uint32_t>(member.pid()));
        EXPECT_EQ(flow.state, MUTEX_PROXY_FLOW_CONNECTED);
        EXPECT_EQ(flow.server, 1) << "the second line";
        EXPECT_EQ(flow.port, 81 + i);
        EXPECT_GT(flow.local_port, 0);
        EXPECT_EQ(flow.reserved, 0u);
        const auto at = Address(i % 2 ? nowhere6 : "::ffff:192.0.2.7", 0);
        EXPECT_EQ(std::memcmp(flow.destination, &reinterpret_cast<const sockaddr_in6*>(&at.storage)->sin6_addr, 16),
                  0);
    }
    EXPECT_EQ(room[count].id, 0u) << "untouched";
}

TEST_F(FlowList, ComesInPieces) {
    std::vector<mutex_proxy_connection> room(3);
    std::uint64_t after = 0;
    for (std::uint32_t seen = 0; seen < count;) {
        auto piece = request(room, after);
        ASSERT_EQ(list(piece), 0);
        ASSERT_EQ(piece.count, std::min(count - seen, 3u));
        for (std::uint32_t i = 0; i < piece.count; ++i) EXPECT_EQ(room[i].port, 81 + seen + i);
        seen += piece.count;
        EXPECT_EQ(piece.more, seen < count ? 1u : 0u);
        after = room[piece.count - 1].id;
    }
    auto rest = request(room, after);
    ASSERT_EQ(list(rest), 0);
    EXPECT_EQ(rest.count, 0u);
    mprox::ProxyDescriptor owner(::dup(fd.get()));
    EXPECT_EQ(owner.connections().value().size(), count);
}

TEST_F(FlowList, NoRoomIsMore) {
    std::vector<mutex_proxy_connection> none;
    auto nothing = request(none);
    ASSERT_EQ(list(nothing), 0);
    EXPECT_EQ(nothing.count, 0u);
    EXPECT_EQ(nothing.more, 1u);
}

TEST_F(FlowList, LongerEntriesHaveAZeroTail) {
    struct Longer {
        mutex_proxy_connection flow;
        std::uint64_t tail[3];
    };
    std::vector<Longer> room(count);
    std::memset(static_cast<void*>(room.data()), 0xEE, room.size() * sizeof room[0]);
    mutex_proxy_connections all{};
    all.size = sizeof all;
    all.connection_size = sizeof room[0];
    all.capacity = count;
    all.connections = reinterpret_cast<std::uintptr_t>(room.data());
    ASSERT_EQ(list(all), 0);
    ASSERT_EQ(all.count, count);
    for (std::uint32_t i = 0; i < count; ++i) {
        EXPECT_EQ(room[i].flow.port, 81 + i);
        for (const std::uint64_t word : room[i].tail) EXPECT_EQ(word, 0u);
    }
}

TEST_F(FlowList, BadPointer) {
    const Edge edge;
    std::vector<mutex_proxy_connection> room(count);
    auto all = request(room);
    all.connections = reinterpret_cast<std::uintptr_t>(edge.beyond());
    EXPECT_EQ(list(all), EFAULT);
    all = request(room);
    all.connections = reinterpret_cast<std::uintptr_t>(edge.last(sizeof room[0]));
    EXPECT_EQ(list(all), EFAULT) << "room for one only";
    all = request(room);
    all.connections = 0;
    EXPECT_EQ(list(all), EFAULT);
}

TEST_F(FlowList, ForgetsWhatHasEnded) {
    const auto before = stats_of(fd);
    EXPECT_EQ(before.active, count);
    EXPECT_EQ(before.connecting, 0u);
    member.kill(SIGKILL);
    EXPECT_TRUE(await_stats(fd, [](const auto& stats) { return stats.active == 0; }));
    std::vector<mutex_proxy_connection> room(count);
    auto all = request(room);
    ASSERT_EQ(list(all), 0);
    EXPECT_EQ(all.count, 0u);
    const auto after = stats_of(fd);
    EXPECT_EQ(after.connected, count);
    EXPECT_EQ(after.bytes_sent, 100 * count) << "what ended flows have moved still counts";
    EXPECT_EQ(after.bytes_received, 100 * count);
}

}  // namespace
}  // namespace conformance
