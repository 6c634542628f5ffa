// SPDX-License-Identifier: MIT
// Whose connections a context takes: members and their children, two contexts apart, GLOBAL, after DISABLE and
// close.
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <cerrno>
#include <csignal>

#include "tests/abi/flow.hpp"
#include "tests/abi/socks5_fake.hpp"

namespace conformance {
namespace {

/// Connects when told a port of `nowhere`, says the errno; a port of 127.0.0.1 when told its negative. 0 ends it.
int connect_on_demand(const Link& link) {
    for (int order = link.hear(); order != 0 && order != -1; order = link.hear())
        link.say(order > 0 ? connect_to(nowhere, static_cast<std::uint16_t>(order)).second
                           : connect_to("127.0.0.1", static_cast<std::uint16_t>(-order)).second);
    return 0;
}

/// A member of the context, which has been enabled, without the descriptor.
Process member_of(Fd& fd) {
    Process process([&fd](const Link& link) {
        const int error = error_of(::mprox_enable(fd.get()));
        fd.reset();
        link.say(error);
        return connect_on_demand(link);
    });
    EXPECT_EQ(process.link().hear(), 0);
    return process;
}

int connect_by(Process& process, int order) {
    process.link().say(order);
    return process.link().hear();
}

TEST(FlowScope, NobodyElseIsProxied) {
    Socks5Fake server;
    Fd fd = create();
    configure(fd, server.line());
    Process member = member_of(fd);
    EXPECT_EQ(connect_by(member, 80), 0);
    EXPECT_EQ(connect_to(nowhere, 80).second, ENETUNREACH) << "there is no route";
    EXPECT_EQ(server.requests().size(), 1u);
}

TEST(FlowScope, ChildrenAre) {
    Socks5Fake server;
    const Fd fd = create();
    configure(fd, server.line());
    EXPECT_EQ(
        in_member(fd,
                  [] { return in_child([] { return in_child([] { return connect_to(nowhere, 80).second; }); }); }),
        0);
    EXPECT_EQ(server.requests().size(), 1u);
}

TEST(FlowScope, NetworkNamespacesDoNotShakeItOff) {
    const Fd fd = create();
    configure(fd, "server socks5://127.0.0.1:1\n");
    EXPECT_EQ(in_member(fd,
                        [] {
                            if (::unshare(CLONE_NEWNET) != 0) return 201;
                            return connect_to("127.0.0.1", 80).second;
                        }),
              ENETUNREACH)
        << "the server is not to be reached from there";
    EXPECT_EQ(stats_of(fd).failed, 1u);
}

TEST(FlowScope, AttachedProcessesAreOnceItIsEnabled) {
    Socks5Fake server;
    const Fd fd = create();
    configure(fd, server.line());
    Process process(connect_on_demand);
    ASSERT_EQ(::mprox_attach(fd.get(), process.pidfd().get()), 0);
    EXPECT_EQ(connect_by(process, 80), ENETUNREACH) << "off: direct";
    EXPECT_EQ(in_child([&fd] { return error_of(::mprox_enable(fd.get())); }), 0);
    EXPECT_EQ(connect_by(process, 80), 0);
    ASSERT_EQ(::mprox_detach(fd.get(), process.pidfd().get()), 0);
    EXPECT_EQ(connect_by(process, 80), ENETUNREACH) << "no member any more: direct";
    EXPECT_EQ(server.requests().size(), 1u);
}

TEST(FlowScope, DisabledIsDirect) {
    Socks5Fake server;
    const Listener direct;
    Fd fd = create();
    configure(fd, server.line());
    Process member = member_of(fd);
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
    EXPECT_EQ(connect_by(member, -direct.port()), 0);
    EXPECT_EQ(connect_by(member, 80), ENETUNREACH);
    EXPECT_TRUE(server.requests().empty());
    EXPECT_EQ(in_child([&fd] { return error_of(::mprox_enable(fd.get())); }), 0);
    EXPECT_EQ(connect_by(member, 80), 0);
}

TEST(FlowScope, TwoContextsStayApart) {
    Socks5Fake one_server, other_server;
    Fd one = create(), other = create();
    configure(one, one_server.line());
    configure(other, other_server.line());
    Process first = member_of(one), second = member_of(other);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(connect_by(first, 81), 0);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(connect_by(second, 82), 0);
    EXPECT_EQ(one_server.requests(), std::vector<std::string>(3, "192.0.2.7:81"));
    EXPECT_EQ(other_server.requests(), std::vector<std::string>(2, "192.0.2.7:82"));
    EXPECT_EQ(stats_of(one).connected, 3u);
    EXPECT_EQ(stats_of(other).connected, 2u);
    EXPECT_EQ(::mprox_attach(other.get(), first.pidfd().get()), 0);
    EXPECT_EQ(connect_by(first, 83), 0);
    EXPECT_EQ(other_server.requests().size(), 3u) << "the last one wins";
}

TEST(FlowScope, GlobalTakesWhoIsInNoOther) {
    Socks5Fake global_server, other_server;
    const Fd global = create(MUTEX_PROXY_GLOBAL);
    Fd other = create();
    configure(global, global_server.line());
    configure(other, other_server.line());
    Process stranger(connect_on_demand), member = member_of(other);
    EXPECT_EQ(connect_by(stranger, 80), ENETUNREACH) << "not enabled yet";
    ASSERT_EQ(::mprox_enable(global.get()), 0);
    EXPECT_EQ(connect_by(stranger, 80), 0);
    EXPECT_EQ(connect_by(member, 80), 0);
    EXPECT_EQ(global_server.requests().size(), 1u);
    EXPECT_EQ(other_server.requests().size(), 1u);
    EXPECT_EQ(::mprox_disable(other.get()), 0);
    EXPECT_EQ(connect_by(member, 80), ENETUNREACH) << "a member of a context that is off connects directly";
    EXPECT_EQ(::mprox_disable(global.get()), 0);
    EXPECT_EQ(connect_by(stranger, 80), ENETUNREACH);
    EXPECT_EQ(stats_of(global).members, 0u);
}

TEST(FlowScope, GlobalIsForItsNetworkNamespace) {
    Socks5Fake server;
    const Fd fd = create(MUTEX_PROXY_GLOBAL);
    configure(fd, server.line());
    ASSERT_EQ(::mprox_enable(fd.get()), 0);
    const int status = in_child([] { return ::unshare(CLONE_NEWNET) == 0 ? connect_to(nowhere, 80).second : 201; });
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
    EXPECT_EQ(status, ENETUNREACH);
    EXPECT_EQ(stats_of(fd).failed + stats_of(fd).connected, 0u);
}

TEST(FlowScope, TheGlobalEnabledLastWins) {
    Socks5Fake one_server, other_server;
    const Fd one = create(MUTEX_PROXY_GLOBAL), other = create(MUTEX_PROXY_GLOBAL);
    configure(one, one_server.line());
    configure(other, other_server.line());
    Process stranger(connect_on_demand);
    ASSERT_EQ(::mprox_enable(one.get()), 0);
    ASSERT_EQ(::mprox_enable(other.get()), 0);
    EXPECT_EQ(connect_by(stranger, 80), 0);
    EXPECT_EQ(other_server.requests().size(), 1u);
    ASSERT_EQ(::mprox_enable(one.get()), 0);
    EXPECT_EQ(connect_by(stranger, 80), 0);
    EXPECT_EQ(one_server.requests().size(), 1u);
    EXPECT_EQ(other_server.requests().size(), 1u);
    EXPECT_EQ(::mprox_disable(one.get()), 0);
    EXPECT_EQ(::mprox_disable(other.get()), 0);
}

TEST(FlowClose, DirectFreesTheMembers) {
    const Listener direct;
    Fd fd = create();
    configure(fd, "server socks5://127.0.0.1:1\non-close direct\n");
    Process member = member_of(fd);
    EXPECT_EQ(connect_by(member, -direct.port()), ENETUNREACH) << "open: through the server that is not there";
    fd.reset();
    EXPECT_EQ(connect_by(member, -direct.port()), 0);
}

TEST(FlowClose, RefuseIsUnreachable) {
    const Listener direct;
    Fd fd = create();
    configure(fd, "bypass 127.0.0.0/8\non-close refuse\n");
    Process member = member_of(fd);
    EXPECT_EQ(connect_by(member, -direct.port()), 0) << "open: bypassed";
    fd.reset();
    EXPECT_EQ(connect_by(member, -direct.port()), ENETUNREACH);
    EXPECT_EQ(connect_to("127.0.0.1", direct.port()).second, 0) << "members only";
    const Fd next = create();
    ASSERT_EQ(::mprox_attach(next.get(), member.pidfd().get()), 0);
    EXPECT_EQ(connect_by(member, -direct.port()), 0) << "another context takes it over";
}

TEST(FlowClose, RefuseOfADisabledContextDoesNotBite) {
    const Listener direct;
    Fd fd = create();
    configure(fd, "on-close refuse\n");
    Process member = member_of(fd);
    EXPECT_EQ(::mprox_disable(fd.get()), 0);
    fd.reset();
    EXPECT_EQ(connect_by(member, -direct.port()), 0);
}

TEST(FlowClose, GlobalDirectIsGone) {
    const Listener direct;
    Fd fd = create(MUTEX_PROXY_GLOBAL);
    Process stranger(connect_on_demand);  // holds a copy of the descriptor
    ASSERT_EQ(::mprox_enable(fd.get()), 0);
    EXPECT_EQ(connect_by(stranger, -direct.port()), ENETUNREACH) << "no server";
    fd.reset();
    EXPECT_EQ(connect_by(stranger, -direct.port()), ENETUNREACH) << "not the last descriptor";
    stranger.link().say(0);
    EXPECT_EQ(stranger.wait(), 0);
    EXPECT_EQ(connect_to("127.0.0.1", direct.port()).second, 0);
}

TEST(FlowClose, GlobalRefusesUntilAnotherIsEnabled) {
    const Listener direct;
    Process stranger(connect_on_demand);
    Fd fd = create(MUTEX_PROXY_GLOBAL);
    configure(fd, "on-close refuse\nbypass 127.0.0.0/8\n");
    ASSERT_EQ(::mprox_enable(fd.get()), 0);
    EXPECT_EQ(connect_by(stranger, -direct.port()), 0);
    fd.reset();
    EXPECT_EQ(connect_by(stranger, -direct.port()), ENETUNREACH);
    Fd next = create(MUTEX_PROXY_GLOBAL);
    configure(next, "bypass 127.0.0.0/8\n");
    ASSERT_EQ(::mprox_enable(next.get()), 0);
    EXPECT_EQ(connect_by(stranger, -direct.port()), 0);
    next.reset();
    EXPECT_EQ(connect_by(stranger, -direct.port()), 0) << "and with it the first is gone";
}

TEST(FlowUdp, BlockedWhenTheConfigurationSaysSo) {
    const Fd receiver(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    Address at("127.0.0.1", 0);
    ASSERT_EQ(::bind(receiver.get(), at.get(), at.size), 0);
    ASSERT_EQ(::getsockname(receiver.get(), reinterpret_cast<sockaddr*>(&at.storage), &at.size), 0);
    const auto send = [&at](const char* text) {
        const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        return error_of(::sendto(socket.get(), text, 1, 0, at.get(), at.size));
    };
    const auto received = [&receiver] {
        char byte = 0;
        return await(receiver, POLLIN) && ::recv(receiver.get(), &byte, 1, 0) == 1 ? byte : '-';
    };
    const Fd fd = create();
    configure(fd, "udp direct\n");
    EXPECT_EQ(in_member(fd, [&] { return send("d"); }), 0);
    EXPECT_EQ(received(), 'd');
    configure(fd, "udp block\n");
    in_member(fd, [&] { return send("b"); });
    EXPECT_EQ(send("n"), 0) << "whom it does not govern";
    EXPECT_EQ(received(), 'n') << "loopback keeps the order: what was sent before has not come";
    EXPECT_GE(stats_of(fd).blocked, 1u);
}

TEST(FlowClose, NotBeforeTheLastDescriptor) {
    Socks5Fake server;
    Fd fd = create();
    configure(fd, server.line());
    Process member = member_of(fd);
    Fd other(::dup(fd.get()));
    fd.reset();
    EXPECT_EQ(connect_by(member, 80), 0);
    other.reset();
    EXPECT_EQ(connect_by(member, 80), ENETUNREACH) << "direct";
    EXPECT_EQ(server.requests().size(), 1u);
}

TEST(FlowClose, EstablishedConnectionsLive) {
    Socks5Fake server;
    Fd fd = create();
    configure(fd, server.line());
    Process member([&fd](const Link& link) {
        if (::mprox_enable(fd.get()) != 0) return 101;
        fd.reset();
        const auto [socket, error] = connect_to(nowhere, 80);
        link.say(error);
        while (link.hear() == 1) link.say(echoes(socket, 100'000) ? 1 : 0);
        return 0;
    });
    ASSERT_EQ(member.link().hear(), 0);
    fd.reset();
    EXPECT_EQ(connect_by(member, 1), 1) << "bytes still come back";
}

}  // namespace
}  // namespace conformance
