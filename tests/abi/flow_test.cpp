// SPDX-License-Identifier: MIT
// Connections of members: where they go, what connect() answers, what is counted. Against a fake server on
// loopback.
#include "tests/abi/flow.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include "tests/abi/socks5_fake.hpp"

namespace conformance {
namespace {

using Connect = std::pair<Fd, int> (*)(const char*, std::uint16_t);

class Flow : public testing::TestWithParam<Connect> {
  protected:
    int connect_error(const char* ip, std::uint16_t port) { return GetParam()(ip, port).second; }
    int member_error(const char* ip, std::uint16_t port) {
        return in_member(fd, [&] { return connect_error(ip, port); });
    }

    Socks5Fake server;
    const Fd fd = create();
};

TEST_P(Flow, ReachesTheDestination) {
    configure(fd, server.line());
    const std::pair<const char*, const char*> rows[] = {{nowhere, "192.0.2.7:80"},
                                                        {nowhere6, "[2001:db8::7]:80"},
                                                        {"::ffff:192.0.2.7", "192.0.2.7:80"},
                                                        {"127.0.0.1", "127.0.0.1:80"}};
    std::size_t done = 0;
    for (const auto& [ip, requested] : rows) {
        SCOPED_TRACE(ip);
        const int status = in_member(fd, [&, destination = ip] {
            const auto [socket, error] = GetParam()(destination, 80);
            if (error) return error;
            Address peer(nowhere, 0);
            peer.size = sizeof peer.storage;
            if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.size) != 0)
                return 201;
            if (!(peer == Address(destination, 80))) return 202;
            return echoes(socket) ? 0 : 203;
        });
        EXPECT_EQ(status, 0) << "201: no peer, 202: another peer than asked for, 203: no echo";
        const auto requests = server.requests();
        ASSERT_EQ(requests.size(), ++done);
        EXPECT_EQ(requests.back(), requested);
    }
    EXPECT_TRUE(await_stats(fd, [](const auto& stats) { return stats.active == 0; }));
    const auto stats = stats_of(fd);
    EXPECT_EQ(stats.connected, done);
    EXPECT_EQ(stats.refused + stats.failed + stats.bypassed + stats.connecting, 0u);
    EXPECT_EQ(stats.bytes_sent, 5 * done) << "the application's, not the handshake's";
    EXPECT_EQ(stats.bytes_received, 5 * done);
}

TEST_P(Flow, RefusalsAreErrnos) {
    configure(fd, server.line());
    const std::pair<std::uint16_t, int> rows[] = {{1, EHOSTUNREACH}, {2, EHOSTUNREACH}, {3, ENETUNREACH},
                                                  {4, EHOSTUNREACH}, {5, ECONNREFUSED}, {6, EHOSTUNREACH},
                                                  {7, ENETUNREACH},  {8, ENETUNREACH}};
    for (const auto& [reply, error] : rows) EXPECT_EQ(member_error(nowhere, reply), error) << "reply " << reply;
    EXPECT_TRUE(await_stats(fd, [](const auto& stats) { return stats.active == 0; }));
    const auto stats = stats_of(fd);
    EXPECT_EQ(stats.connected, 0u);
    EXPECT_EQ(stats.refused + stats.failed, std::size(rows));
    EXPECT_GE(stats.refused, 6u);
}

TEST_P(Flow, BrokenServersAreUnreachable) {
    configure(fd, server.line());
    for (const std::uint16_t port : {Socks5Fake::hanging_up, Socks5Fake::gibberish})
        EXPECT_EQ(member_error(nowhere, port), ENETUNREACH) << port;
    EXPECT_EQ(stats_of(fd).failed, 2u);
    EXPECT_NE(read_snapshot(fd)["error"], "none");
}

TEST_P(Flow, NoServerIsUnreachable) {
    EXPECT_EQ(member_error(nowhere, 80), ENETUNREACH) << "nothing configured";
    std::uint16_t port = 0;
    {
        const Listener gone;
        port = gone.port();
    }
    configure(fd, "server socks5://127.0.0.1:" + std::to_string(port) + "\n");
    EXPECT_EQ(member_error(nowhere, 80), ENETUNREACH) << "nobody listens there";
    EXPECT_EQ(stats_of(fd).failed, 2u);
}

TEST_P(Flow, TimesOut) {
    configure(fd, server.line() + "timeout 1\n");
    EXPECT_EQ(member_error(nowhere, Socks5Fake::silent), ETIMEDOUT);
}

TEST_P(Flow, BypassIsDirect) {
    const Listener direct;
    configure(fd, server.line() + "bypass 127.0.0.1:" + std::to_string(direct.port()) + "\n");
    EXPECT_EQ(member_error("127.0.0.1", direct.port()), 0);
    EXPECT_EQ(stats_of(fd).bypassed, 1u);
    EXPECT_TRUE(server.requests().empty());
    EXPECT_EQ(member_error("127.0.0.1", 80), 0) << "another port";
    EXPECT_EQ(server.requests().size(), 1u);
}

TEST_P(Flow, ASocketConnectsAgainAfterARefusal) {
    configure(fd, server.line());
    const int status = in_member(fd, [this] {
        const auto [socket, error] = GetParam()(nowhere, 5);
        if (error != ECONNREFUSED) return 201;
        const Address to(nowhere, 80);
        // Without a proxy it is the same: what has failed while nobody waited says so once more.
        if (GetParam() == connect_to_later && error_of(::connect(socket.get(), to.get(), to.size)) != ECONNABORTED)
            return 203;
        if (::connect(socket.get(), to.get(), to.size) != 0 && errno != EINPROGRESS) return errno;
        return await(socket, POLLOUT) && echoes(socket) ? 0 : 202;
    });
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(await_stats(
        fd, [](const auto& stats) { return stats.connected == 1 && stats.refused == 1 && stats.active == 0; }));
}

INSTANTIATE_TEST_SUITE_P(Ways, Flow, testing::Values(connect_to, connect_to_later),
                         [](const auto& way) -> std::string {
                             return way.param == connect_to ? "Blocking" : "NonBlocking";
                         });

TEST(FlowHeld, LooksLikeAConnectionOnItsWay) {
    Socks5Fake server;
    const Fd fd = create();
    configure(fd, server.line());
    const int status = in_member(fd, [] {
        const Address to(nowhere, Socks5Fake::silent);
        const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
        if (error_of(::connect(socket.get(), to.get(), to.size)) != EINPROGRESS) return 201;
        if (is_ready(socket, POLLIN) || is_ready(socket, POLLOUT)) return 202;
        if (error_of(::connect(socket.get(), to.get(), to.size)) != EALREADY) return 203;
        Address peer(nowhere, 0);
        peer.size = sizeof peer.storage;
        if (error_of(::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.size)) !=
            ENOTCONN)
            return 204;
        char byte = 0;
        if (error_of(::recv(socket.get(), &byte, 1, 0)) != EAGAIN) return 205;
        if (error_of(::send(socket.get(), &byte, 1, MSG_NOSIGNAL)) != EAGAIN) return 206;
        return 0;
    });
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(await_stats(fd, [](const auto& stats) { return stats.active == 0 && stats.connecting == 0; }))
        << "closed while it was held";
}

TEST(FlowHeld, IsListedAndEndsWithItsProcess) {
    Socks5Fake server;
    const Fd fd = create();
    configure(fd, server.line());
    Process member([&fd](const Link& link) {
        if (::mprox_enable(fd.get()) != 0) return 101;
        link.say(1);
        connect_to(nowhere, Socks5Fake::silent);
        return 102;
    });
    ASSERT_EQ(member.link().hear(), 1);
    ASSERT_TRUE(server.await_requests(1));
    EXPECT_TRUE(await_stats(fd, [](const auto& stats) { return stats.active == 1 && stats.connecting == 1; }));
    member.kill(SIGKILL);
    EXPECT_EQ(member.wait(), killed + SIGKILL);
    EXPECT_TRUE(await_stats(fd, [](const auto& stats) { return stats.active == 0 && stats.connecting == 0; }));
}

TEST(FlowHeld, EndsWhateverBecomesOfTheContext) {
    std::optional<Socks5Fake> server(std::in_place);
    Fd fd = create();
    configure(fd, server->line());
    std::vector<Process> members;
    for (int i = 0; i < 8; ++i) {
        members.emplace_back([&fd](const Link& link) {
            if (::mprox_enable(fd.get()) != 0) return 101;
            fd.reset();
            link.say(1);
            return connect_to(nowhere, Socks5Fake::silent).second;
        });
        ASSERT_EQ(members.back().link().hear(), 1);
    }
    ASSERT_TRUE(server->await_requests(8));
    fd.reset();
    server.reset();  // hangs up, if the close alone has not ended them
    for (Process& member : members) EXPECT_EQ(member.wait(), ENETUNREACH);
}

TEST(FlowSecret, PasswordsGoToTheServerOnly) {
    Socks5Fake server("0pen-sesame");
    const Fd fd = create();
    configure(fd, server.line());
    EXPECT_EQ(in_member(fd, [] { return connect_to(nowhere, 80).second; }), 0) << "the server has been told";
    configure(fd, "server socks5://member:0pen-sesame-not@127.0.0.1:" + std::to_string(server.port()) + "\n");
    EXPECT_EQ(in_member(fd, [] { return connect_to(nowhere, 80).second; }), ENETUNREACH);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_NE(snapshot["error"], "none");
    EXPECT_EQ(snapshot.text.find("0pen"), std::string::npos) << snapshot.text;
}

TEST(FlowServers, TheNextOneIsTried) {
    Socks5Fake server;
    std::uint16_t gone = 0;
    {
        const Listener listener;
        gone = listener.port();
    }
    const Fd fd = create();
    configure(fd, "server socks5://127.0.0.1:" + std::to_string(gone) + "\n" + server.line());
    EXPECT_EQ(in_member(fd, [] { return connect_to(nowhere, 80).second; }), 0);
    const Snapshot snapshot = read_snapshot(fd);
    ASSERT_EQ(snapshot.servers.size(), 2u);
    EXPECT_TRUE(snapshot.servers[0].ends_with(" state=down connected=0 refused=0 failed=1")) << snapshot.servers[0];
    EXPECT_TRUE(snapshot.servers[1].ends_with(" state=up connected=1 refused=0 failed=0")) << snapshot.servers[1];
    EXPECT_EQ(stats_of(fd).connected, 1u);
    EXPECT_EQ(stats_of(fd).failed, 0u) << "a server could be used";
}

TEST(FlowServers, TheLowestPriorityGoesFirst) {
    Socks5Fake second, first;
    const Fd fd = create();
    std::string later = second.line();
    later.insert(later.size() - 1, " priority=9");
    configure(fd, later + first.line());
    EXPECT_EQ(in_member(fd, [] { return connect_to(nowhere, 80).second; }), 0);
    EXPECT_EQ(first.requests().size(), 1u);
    EXPECT_TRUE(second.requests().empty());
}

TEST(FlowServers, RoundRobin) {
    Socks5Fake one, other;
    const Fd fd = create();
    configure(fd, one.line() + other.line() + "strategy round-robin\n");
    for (int i = 0; i < 4; ++i) EXPECT_EQ(in_member(fd, [] { return connect_to(nowhere, 80).second; }), 0);
    EXPECT_EQ(one.requests().size(), 2u);
    EXPECT_EQ(other.requests().size(), 2u);
}

}  // namespace
}  // namespace conformance
