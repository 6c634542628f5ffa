// SPDX-License-Identifier: MIT
#include "engine/spares.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>

namespace mprox {
namespace {

class SparesTest : public testing::Test {
  protected:
    Descriptor some() {
        Descriptor socket(poller, Fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)));
        EXPECT_TRUE(socket);
        return socket;
    }
    static Address ipv4(std::uint32_t number) {
        Address address{.ip = {}, .port = 957};
        address.ip.word[2] = htonl(0xffff);
        address.ip.word[3] = htonl(0x7f400000 + number);
        return address;
    }
    bool is_offered(std::uint32_t number) const { return std::ranges::count(offered, ipv4(number).ip.word[3]) == 1; }

    Poller poller;
    std::array<std::uint32_t, Spares::most> offered{};
    std::optional<Spares> spares{std::in_place, poller, std::span(offered)};
};

TEST_F(SparesTest, GivesWhatItHasByName) {
    EXPECT_FALSE(spares->take(ipv4(1)));
    Descriptor socket = some();
    const int fd = socket.get();
    spares->keep(ipv4(1), std::move(socket));
    spares->keep(ipv4(2), some());
    EXPECT_EQ(spares->size(), 2u);
    EXPECT_FALSE(spares->take(ipv4(3)));
    Address other = ipv4(1);
    other.port++;
    EXPECT_FALSE(spares->take(other));
    const Descriptor found = spares->take(ipv4(1));
    ASSERT_TRUE(found);
    EXPECT_EQ(found.get(), fd);
    EXPECT_EQ(found.renewals(), 1u);
    EXPECT_FALSE(spares->take(ipv4(1)));
}

TEST_F(SparesTest, OffersTheirAddresses) {
    for (std::uint32_t i = 1; i <= Spares::most; i++) spares->keep(ipv4(i), some());
    for (std::uint32_t i = 1; i <= Spares::most; i++) EXPECT_TRUE(is_offered(i)) << i;
    // Taken by name, and by a program.
    EXPECT_TRUE(spares->take(ipv4(7)));
    EXPECT_FALSE(is_offered(7));
    std::ranges::replace(offered, ipv4(9).ip.word[3], 0u);
    EXPECT_TRUE(spares->take(ipv4(9)));
    // By a program for nobody.
    std::ranges::replace(offered, ipv4(11).ip.word[3], 0u);
    for (const std::uint32_t number : {11, 12, 7}) spares->offer(ipv4(number));
    EXPECT_TRUE(is_offered(11) && is_offered(12));
    EXPECT_FALSE(is_offered(7));
    // IPv6 addresses are not chosen from there.
    Address ipv6{.ip = {}, .port = 958};
    ipv6.ip.word[3] = htonl(1);
    spares->keep(ipv6, some());
    EXPECT_FALSE(std::ranges::count(offered, htonl(1)));
    EXPECT_TRUE(spares->take(ipv6));
    spares->clear();
    EXPECT_EQ(spares->size(), 0u);
    EXPECT_EQ(std::ranges::count(offered, 0u), static_cast<std::ptrdiff_t>(Spares::most));
}

TEST_F(SparesTest, TheOldestMakesRoom) {
    for (std::uint32_t i = 1; i <= Spares::most; i++) spares->keep(ipv4(i), some());
    std::ranges::replace(offered, ipv4(1).ip.word[3], 0u);  // for a connection that never comes
    spares->keep(ipv4(100), some());
    EXPECT_EQ(spares->size(), Spares::most);
    EXPECT_FALSE(spares->take(ipv4(1)));
    EXPECT_TRUE(is_offered(100));
    spares->keep(ipv4(101), some());
    EXPECT_FALSE(is_offered(2));
    EXPECT_TRUE(is_offered(101));
}

TEST_F(SparesTest, NoneIsUsedForEver) {
    Descriptor socket = some();
    for (unsigned uses = 0; uses < Spares::uses_most; uses++) {
        spares->keep(ipv4(1), std::move(socket));
        socket = spares->take(ipv4(1));
        ASSERT_TRUE(socket) << uses;
    }
    spares->keep(ipv4(1), std::move(socket));
    EXPECT_EQ(spares->size(), 0u);
    EXPECT_FALSE(is_offered(1));
}

TEST_F(SparesTest, ThoseThatNobodyAsksForAreClosed) {
    using namespace std::chrono_literals;
    spares->keep(ipv4(1), some());
    spares->keep(ipv4(2), some());
    const auto begun = Timer::Clock::now();
    Timer busy(poller), look(poller);
    busy.start(2s, [&] { spares->keep(ipv4(1), spares->take(ipv4(1))); });
    const std::function<void()> again = [&] {
        if (spares->size() == 0 || Timer::Clock::now() - begun > 60s) return poller.stop();
        look.start(10ms, [&] { again(); });
    };
    again();
    poller.run();
    EXPECT_EQ(spares->size(), 0u);
    EXPECT_GT(Timer::Clock::now() - begun, 6s);  // not in the period in which one was used
    EXPECT_FALSE(is_offered(1) || is_offered(2));
}

TEST_F(SparesTest, ItsEndTakesTheOffersBack) {
    spares->keep(ipv4(1), some());
    spares.reset();
    EXPECT_FALSE(is_offered(1));
}

}  // namespace
}  // namespace mprox
