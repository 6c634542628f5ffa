// SPDX-License-Identifier: MIT
#include "engine/relay.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <thread>

namespace mprox {
namespace {

struct Connected {
    Fd ours, theirs;
};

// A TCP connection over loopback; `ours` goes to the relay.
Connected connected() {
    const Fd listener(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    EXPECT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size), 0);
    Fd theirs(::socket(AF_INET, SOCK_STREAM, 0));
    EXPECT_EQ(::connect(theirs.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
    Fd ours(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK));
    const timeval limit{.tv_sec = 20, .tv_usec = 0};  // a hang is a failure, not a wait
    ::setsockopt(theirs.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return {std::move(ours), std::move(theirs)};
}

// A relay on a thread of its own, joining two connections whose far ends are `a` and `b`.
class RelayTest : public testing::Test {
  protected:
    void SetUp() override {
        std::signal(SIGPIPE, SIG_IGN);  // as whoever relays does: splice(2) has no MSG_NOSIGNAL
        auto left = connected(), right = connected();
        a = std::move(left.theirs);
        b = std::move(right.theirs);
        relay.emplace(poller, Relay::Totals{up, down});
        relay->join(Descriptor(poller, std::move(left.ours)), Descriptor(poller, std::move(right.ours)), [this](const RelayEnd& result) {
            end = result;
            poller.stop();
        });
        thread = std::jthread([this] { poller.run(); });
    }
    RelayEnd wait_end() {
        thread.join();
        EXPECT_TRUE(end.has_value());
        EXPECT_EQ(relay->active(), 0u);
        return end.value_or(RelayEnd{});
    }
    static std::string read_all(const Fd& from, int* error = nullptr) {
        std::string out;
        char buffer[65536];
        for (;;) {
            const ssize_t n = ::recv(from.get(), buffer, sizeof buffer, 0);
            if (n < 0 && error) *error = errno;
            if (n <= 0) return out;
            out.append(buffer, static_cast<std::size_t>(n));
        }
    }
    static std::string read_some(const Fd& from, std::size_t size) {
        std::string out(size, '\0');
        EXPECT_EQ(::recv(from.get(), out.data(), size, MSG_WAITALL), static_cast<ssize_t>(size));
        return out;
    }
    static void send_text(const Fd& to, const std::string& text) {
        ASSERT_EQ(::send(to.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    }
    static void reset(Fd& fd) {
        const linger now{.l_onoff = 1, .l_linger = 0};
        ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
        fd.reset();
    }

    Poller poller;
    std::atomic<std::uint64_t> up = 0, down = 0;
    std::optional<Relay> relay;
    std::optional<RelayEnd> end;
    Fd a, b;
    std::jthread thread;
};

TEST_F(RelayTest, PassesHalfCloseBothWays) {
    send_text(a, "question");
    ::shutdown(a.get(), SHUT_WR);
    EXPECT_EQ(read_all(b), "question");
    send_text(b, "answer after the other side has finished");
    ::shutdown(b.get(), SHUT_WR);
    EXPECT_EQ(read_all(a), "answer after the other side has finished");
    const RelayEnd result = wait_end();
    EXPECT_EQ(result.error, 0);
    EXPECT_EQ(result.a_to_b, 8u);
    EXPECT_EQ(result.b_to_a, 40u);
    EXPECT_EQ(up, 8u);
    EXPECT_EQ(down, 40u);
}

TEST_F(RelayTest, PassesResetForward) {
    send_text(a, "x");
    EXPECT_EQ(read_some(b, 1), "x");
    reset(a);
    int error = 0;
    EXPECT_EQ(read_all(b, &error), "");
    EXPECT_EQ(error, ECONNRESET);
    EXPECT_EQ(wait_end().error, ECONNRESET);
}

TEST_F(RelayTest, PassesResetAfterHalfClose) {
    ::shutdown(b.get(), SHUT_WR);
    EXPECT_EQ(read_all(a), "");
    reset(b);
    // The relay must see it although it reads nothing from b any more.
    pollfd poll{.fd = a.get(), .events = 0, .revents = 0};
    EXPECT_EQ(::poll(&poll, 1, 20'000), 1);
    EXPECT_NE(wait_end().error, 0);
}

TEST_F(RelayTest, StopsTheSenderWhenNobodyReads) {
    ::fcntl(a.get(), F_SETFL, O_NONBLOCK);
    const std::string block(1 << 20, 'x');
    std::size_t sent = 0;
    // Until nothing moves for a while: the buffers on the way are finite.
    for (;;) {
        pollfd poll{.fd = a.get(), .events = POLLOUT, .revents = 0};
        if (::poll(&poll, 1, 500) != 1) break;
        const ssize_t n = ::send(a.get(), block.data(), block.size(), MSG_NOSIGNAL);
        if (n > 0) sent += static_cast<std::size_t>(n);
        ASSERT_LT(sent, std::size_t{256} << 20) << "no back-pressure";
    }
    ::shutdown(a.get(), SHUT_WR);
    EXPECT_EQ(read_all(b).size(), sent);
    ::shutdown(b.get(), SHUT_WR);
    EXPECT_EQ(wait_end().a_to_b, sent);
}

TEST_F(RelayTest, ResetReachesASideThatDoesNotRead) {
    ::fcntl(a.get(), F_SETFL, O_NONBLOCK);
    const std::string block(1 << 20, 'x');
    for (pollfd poll{.fd = a.get(), .events = POLLOUT, .revents = 0}; ::poll(&poll, 1, 500) == 1;)
        if (::send(a.get(), block.data(), block.size(), MSG_NOSIGNAL) < 0 && errno != EAGAIN) break;
    reset(a);
    EXPECT_EQ(wait_end().error, ECONNRESET);
}

TEST_F(RelayTest, UrgentByteDoesNotStopTheStream) {
    send_text(a, "before");
    ASSERT_EQ(::send(a.get(), "!", 1, MSG_OOB), 1);
    send_text(a, "after");
    ::shutdown(a.get(), SHUT_WR);
    EXPECT_EQ(read_all(b), "before!after");
    ::shutdown(b.get(), SHUT_WR);
    EXPECT_EQ(wait_end().error, 0);
}

TEST_F(RelayTest, UrgentBytesStayWhereTheyAre) {
    // First of all, at once after others and after a pause, in both directions.
    for (const auto& [from, to] : {std::pair(&a, &b), std::pair(&b, &a)}) {
        ASSERT_EQ(::send(from->get(), "!", 1, MSG_OOB), 1);
        EXPECT_EQ(read_some(*to, 1), "!");
        for (int i = 0; i < 200; i++) {
            std::string expected = "left";
            send_text(*from, expected);
            if (i % 2) {
                EXPECT_EQ(read_some(*to, 4), std::exchange(expected, ""));
            }
            ASSERT_EQ(::send(from->get(), "?", 1, MSG_OOB), 1);
            send_text(*from, "right");
            expected += "?right";
            EXPECT_EQ(read_some(*to, expected.size()), expected);
            // Where urgent bytes are not read like others, the second lets the kernel forget the first.
            ASSERT_EQ(::send(from->get(), "1", 1, MSG_OOB), 1);
            ASSERT_EQ(::send(from->get(), "2", 1, MSG_OOB), 1);
            EXPECT_EQ(read_some(*to, 2), "12");
        }
    }
    ::shutdown(a.get(), SHUT_WR);
    ::shutdown(b.get(), SHUT_WR);
    EXPECT_EQ(wait_end().error, 0);
}

TEST_F(RelayTest, MayEndAsItBegins) {
    Poller loop;
    Relay other(loop);
    auto left = connected(), right = connected();
    Descriptor from(loop, std::move(left.ours)), to(loop, std::move(right.ours));
    send_text(left.theirs, "x");
    reset(right.theirs);
    std::optional<RelayEnd> told;
    Timer joined(loop);
    joined.start(std::chrono::milliseconds(1), [&] {  // both are known to have news
        other.join(std::move(from), std::move(to), [&](const RelayEnd& result) {
            told = result;
            loop.stop();
        });
    });
    loop.run();
    ASSERT_TRUE(told.has_value());
    EXPECT_NE(told->error, 0);
    EXPECT_EQ(other.active(), 0u);
    a.reset();
    b.reset();
    wait_end();
}

TEST_F(RelayTest, ItsEndIsAReset) {
    send_text(a, "x");
    EXPECT_EQ(read_some(b, 1), "x");
    poller.post([this] {
        relay.reset();
        poller.stop();
    });
    thread.join();
    int error = 0;
    EXPECT_EQ(read_all(a, &error), "");
    EXPECT_EQ(error, ECONNRESET);
    EXPECT_FALSE(end.has_value());
}

// A pair whose sockets may be given back; on this thread.
class RelayReuseTest : public RelayTest {
  protected:
    void SetUp() override { std::signal(SIGPIPE, SIG_IGN); }
    // Until it has ended, and what follows if sockets are given back; `finish` sees to its end, at the far ends.
    void run(const std::function<void(Fd&, Fd&)>& finish, const std::function<void()>& then = nullptr) {
        Timer limit(loop), begin(loop);
        pair.join(Descriptor(loop, std::move(left.ours)), Descriptor(loop, std::move(right.ours)),
                  [&](const RelayEnd&) {
                      // What is given back comes later, if it does.
                      loop.defer([&] {
                          loop.defer([&] {
                              if (!back || !then) loop.stop();
                          });
                      });
                  },
                  [&](Descriptor first, Descriptor second) {
                      back.emplace(std::move(first), std::move(second));
                      if (then) then();
                  });
        limit.start(std::chrono::seconds(20), [&] {
            ADD_FAILURE() << "it does not end";
            loop.stop();
        });
        begin.start(std::chrono::milliseconds(1), [&] { finish(left.theirs, right.theirs); });
        loop.run();
    }

    static void set_receive_buffer(const Fd& fd, int size) { ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size); }

    Poller loop;
    Relay pair{loop};
    Connected left = connected(), right = connected();
    std::optional<std::pair<Descriptor, Descriptor>> back;
};

TEST_F(RelayReuseTest, SocketsThatAreOverConnectOnceMore) {
    std::array<Fd, 2> peers;
    std::jthread far;
    bool again = false;
    const auto connect_again = [&] {
        ASSERT_TRUE(back->first && back->second);
        EXPECT_EQ(read_all(left.theirs), "");  // the peers have seen an end
        EXPECT_EQ(read_all(right.theirs), "");
        const Fd listener(::socket(AF_INET, SOCK_STREAM, 0));
        sockaddr_in at{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
        socklen_t size = sizeof at;
        ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
        ASSERT_EQ(::listen(listener.get(), 2), 0);
        ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size), 0);
        // Either may come in the other's place.
        std::array sockets{std::move(back->second), std::move(back->first)};
        for (std::size_t i = 0; i < 2; i++) {
            sockets[i].renew();
            const int connected = ::connect(sockets[i].get(), reinterpret_cast<sockaddr*>(&at), size);
            ASSERT_TRUE(connected == 0 || errno == EINPROGRESS) << std::strerror(errno);
            peers[i] = Fd(::accept4(listener.get(), nullptr, nullptr, 0));
            ASSERT_TRUE(peers[i]);
        }
        pair.join(std::move(sockets[0]), std::move(sockets[1]), [&](const RelayEnd& result) { end = result; },
                  [&](Descriptor first, Descriptor second) {
                      again = first && second;
                      loop.stop();
                  });
        far = std::jthread([&] {
            send_text(peers[0], "over");
            EXPECT_EQ(read_some(peers[1], 4), "over");
            send_text(peers[1], "and back");
            EXPECT_EQ(read_some(peers[0], 8), "and back");
            ::shutdown(peers[0].get(), SHUT_WR);
            EXPECT_EQ(read_all(peers[1]), "");
            ::shutdown(peers[1].get(), SHUT_WR);
            EXPECT_EQ(read_all(peers[0]), "");
        });
    };
    run(
        [](Fd& a_far, Fd& b_far) {
            ::shutdown(a_far.get(), SHUT_WR);
            ::shutdown(b_far.get(), SHUT_WR);
        },
        connect_again);
    ASSERT_TRUE(end.has_value());
    EXPECT_EQ(end->error, 0);
    EXPECT_EQ(end->a_to_b, 4u);
    EXPECT_EQ(end->b_to_a, 8u);
    EXPECT_TRUE(again);
}

// Their buffers have grown.
TEST_F(RelayReuseTest, SocketsThatHaveCarriedMuchAreClosed) {
    std::jthread reader([this] { EXPECT_EQ(read_all(right.theirs).size(), 200'000u); });
    run([](Fd& writer, Fd& other) {
        send_text(writer, std::string(200'000, 'x'));
        ::shutdown(writer.get(), SHUT_WR);
        ::shutdown(other.get(), SHUT_WR);
    });
    EXPECT_FALSE(back.has_value());
    EXPECT_EQ(read_all(left.theirs), "");
}

TEST_F(RelayReuseTest, SocketsThatWereResetAreClosed) {
    run([](Fd& far, Fd&) { reset(far); });
    EXPECT_FALSE(back.has_value());
    int error = 0;
    EXPECT_EQ(read_all(right.theirs, &error), "");
    EXPECT_EQ(error, ECONNRESET);
}

// Nobody has acknowledged its end yet: it is for the kernel to see to that.
TEST_F(RelayReuseTest, ASocketWhoseEndIsOnItsWayIsClosed) {
    run([](Fd& reader, Fd& writer) {
        // The left one takes no more, so the end stays behind what it has not taken.
        const std::string much(60'000, 'x');
        set_receive_buffer(reader, 4096);
        std::size_t sent = 0;
        while (sent < much.size()) {
            const ssize_t n = ::send(writer.get(), much.data(), much.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n <= 0) break;
            sent += static_cast<std::size_t>(n);
        }
        ::shutdown(writer.get(), SHUT_WR);
        ::shutdown(reader.get(), SHUT_WR);
    });
    ASSERT_TRUE(back.has_value());
    EXPECT_FALSE(back->first);
    EXPECT_TRUE(back->second);
    set_receive_buffer(left.theirs, 1 << 18);
    int error = 0;
    EXPECT_EQ(read_all(left.theirs, &error).size(), 60'000u);
    EXPECT_EQ(error, 0);
}

}  // namespace
}  // namespace mprox
