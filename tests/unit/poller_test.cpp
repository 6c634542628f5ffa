// SPDX-License-Identifier: MIT
#include "engine/poller.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace mprox {
namespace {

using namespace std::chrono_literals;

struct Ends {
    Fd ours, theirs;
};

Ends connected() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    return {Fd(ends[0]), Fd(ends[1])};
}

void say(const Fd& end, const std::string& text) {
    ASSERT_EQ(::send(end.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

// Tells when the coroutine that owns it has gone, run or not.
struct Witness {
    explicit Witness(bool& gone) : gone_(&gone) {}
    Witness(Witness&& other) noexcept : gone_(std::exchange(other.gone_, nullptr)) {}
    ~Witness() {
        if (gone_) *gone_ = true;
    }
    bool* gone_;
};

TEST(Poller, TimersAreDueInOrderAndNotTooEarly) {
    Poller poller;
    Timer first(poller), second(poller), never(poller);
    std::string order;
    const auto begun = Timer::Clock::now();
    never.start(10ms, [&] { order += "!"; });
    second.start(30ms, [&] {
        order += "b";
        EXPECT_GE(Timer::Clock::now() - begun, 30ms);
        poller.stop();
    });
    first.start(1h, [&] { order += "!"; });
    first.start(20ms, [&] {  // in place of the other
        order += "a";
        EXPECT_FALSE(first.started());
        never.cancel();
    });
    never.start(25ms, [&] { order += "!"; });
    poller.run();
    EXPECT_EQ(order, "ab");
}

TEST(Poller, ATimerMayStartAndEndItselfWhenItIsDue) {
    Poller poller;
    auto timer = std::make_unique<Timer>(poller);
    int rounds = 0;
    std::function<void()> again = [&] {
        if (++rounds < 3) return timer->start(0ms, [&] { again(); });
        timer.reset();
        poller.stop();
    };
    timer->start(0ms, [&] { again(); });
    poller.run();
    EXPECT_EQ(rounds, 3);
}

TEST(Poller, AHastenedTimerIsDueAtOnce) {
    Poller poller;
    Timer timer(poller), idle(poller);
    timer.start(1h, [&] { poller.stop(); });
    timer.hasten();
    idle.hasten();  // was not started: nothing to be due
    EXPECT_FALSE(idle.started());
    poller.run();
}

TEST(Poller, OtherThreadsWakeIt) {
    Poller poller;
    std::thread::id where;
    std::jthread other([&] {
        poller.post([&] { where = std::this_thread::get_id(); });
        poller.post([&] { poller.stop(); });
    });
    poller.run();
    EXPECT_EQ(where, std::this_thread::get_id());
}

TEST(Poller, DeferredCallsComeAfterWhatHasHappened) {
    Poller poller;
    auto [ours, theirs] = connected();
    Descriptor socket(poller, std::move(ours));
    std::string order;
    int turns = 0;
    std::function<void()> turn = [&] {
        order += "t";
        if (++turns < 100) return poller.defer([&] { turn(); });
        poller.stop();
    };
    socket.listen([&](std::uint32_t events) {
        if (events & Descriptor::reading) order += "r";
    });
    poller.defer([&] {
        turn();
        say(theirs, "x");
    });
    poller.run();
    // Whoever takes turn after turn does not keep the others waiting.
    EXPECT_LT(order.find('r'), 4u) << order;
    EXPECT_EQ(turns, 100);
}

TEST(Poller, EdgesAreToldOnceAndLevelsAgain) {
    for (const bool level : {false, true}) {
        Poller poller;
        auto [ours, theirs] = connected();
        say(theirs, "x");
        Descriptor socket(poller, std::move(ours), level);
        int told = 0;
        socket.listen([&](std::uint32_t) { told++; });
        Timer end(poller);
        int rounds = 0;
        std::function<void()> again = [&] {
            if (++rounds == 5) return poller.stop();
            end.start(0ms, [&] { again(); });
        };
        end.start(0ms, [&] { again(); });
        poller.run();
        if (level)
            EXPECT_GE(told, 4);
        else
            EXPECT_EQ(told, 1);
    }
}

TEST(Poller, ADescriptorKnowsWhatItHasReceived) {
    Poller poller;
    auto [ours, theirs] = connected();
    Descriptor socket(poller, std::move(ours));
    std::uint8_t bytes[8];
    EXPECT_EQ(socket.receive(bytes), -1);  // nothing has been reported
    EXPECT_EQ(errno, EAGAIN);
    say(theirs, "hello");
    socket.listen([&](std::uint32_t events) {
        if (!(events & EPOLLIN)) return;
        EXPECT_EQ(socket.receive(bytes), 5);
        EXPECT_EQ(socket.receive(bytes), -1);  // without asking: there was room for more
        poller.stop();
    });
    poller.run();
    EXPECT_EQ(socket.received(), 5u);
}

TEST(Poller, AListenerMayCloseItsDescriptorAndOthers) {
    Poller poller;
    auto one = connected(), two = connected();
    say(one.theirs, "x");
    say(two.theirs, "x");
    Descriptor first(poller, std::move(one.ours)), second(poller, std::move(two.ours));
    int told = 0;
    for (Descriptor* socket : {&first, &second})
        socket->listen([&](std::uint32_t) {
            told++;
            first.close();
            second.close();
            poller.stop();
        });
    poller.run();
    EXPECT_EQ(told, 1);
    EXPECT_FALSE(first);
}

asio::awaitable<void> wait_for_bytes(Poller& poller, Fd fd, Witness witness, bool cancel, std::string& order) {
    Descriptor socket(poller, std::move(fd));
    if (cancel) poller.defer([&] { socket.cancel(); });
    const bool happened = co_await socket.wait(EPOLLIN);
    order += happened ? "read" : "cancelled";
    co_await sleep(poller, 1ms);
    co_await yield(poller);
    (void)witness;
    poller.stop();
}

TEST(Poller, ARenewedDescriptorForgetsWhatHasHappened) {
    Poller poller;
    auto first = connected(), second = connected();
    std::array sockets{Descriptor(poller, std::move(first.ours)), Descriptor(poller, std::move(second.ours))};
    int told = 0;
    // Both are reported in one turn: the other's news are from before it was renewed.
    for (const int i : {0, 1})
        sockets[i].listen([&, i](std::uint32_t events) {
            if (!(events & EPOLLIN)) return;
            told++;
            sockets[1 - i].renew();
            EXPECT_FALSE(sockets[1 - i].is(Descriptor::reading | Descriptor::writing));
        });
    say(first.theirs, "x");
    say(second.theirs, "y");
    Timer later(poller), end(poller);
    later.start(10ms, [&] {
        EXPECT_EQ(told, 1);
        EXPECT_EQ(sockets[0].renewals() + sockets[1].renewals(), 1u);
        const Fd& end_of_renewed = sockets[0].renewals() ? first.theirs : second.theirs;
        for (auto& socket : sockets)
            socket.listen([&, renewed = socket.renewals() > 0](std::uint32_t events) {
                if (renewed && (events & EPOLLIN)) poller.stop();
            });
        say(end_of_renewed, "z");  // what comes after that is told
    });
    end.start(10s, [&] {
        ADD_FAILURE() << "nothing was told";
        poller.stop();
    });
    poller.run();
}

TEST(Poller, CoroutinesWaitWithIt) {
    for (const bool cancel : {false, true}) {
        Poller poller;
        auto [ours, theirs] = connected();
        bool gone = false;
        std::string order;
        asio::co_spawn(poller.handlers(), wait_for_bytes(poller, std::move(ours), Witness(gone), cancel, order), asio::detached);
        if (!cancel) say(theirs, "x");
        poller.run();
        EXPECT_EQ(order, cancel ? "cancelled" : "read");
    }
}

TEST(Poller, ItsEndIsTheirs) {
    bool waits = false, sleeps = false;
    std::string order;
    auto [ours, theirs] = connected();
    {
        Poller poller;
        asio::co_spawn(poller.handlers(), wait_for_bytes(poller, std::move(ours), Witness(waits), false, order), asio::detached);
        asio::co_spawn(
            poller.handlers(),
            [](Poller& on, Witness) -> asio::awaitable<void> { co_await sleep(on, 1h); }(poller, Witness(sleeps)),
            asio::detached);
        Timer end(poller);
        end.start(1ms, [&] { poller.stop(); });
        poller.run();
        EXPECT_FALSE(waits || sleeps);
    }
    EXPECT_TRUE(waits);
    EXPECT_TRUE(sleeps);
    EXPECT_EQ(order, "");
    char byte;
    EXPECT_EQ(::recv(theirs.get(), &byte, 1, 0), 0);  // closed with it
}

}  // namespace
}  // namespace mprox
