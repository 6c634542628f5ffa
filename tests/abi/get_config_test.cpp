// SPDX-License-Identifier: MIT
// GET_CONFIG: the configuration in force, in canonical form and without passwords.
#include <cerrno>
#include <thread>

#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

TEST(GetConfig, CanonicalFormIsItself) {
    const Fd fd = create();
    for (const char* text : {
             "",
             "server socks5://10.0.0.1",
             "strategy random\n# comment\n  server http://proxy.example weight=3\t priority=2 # more\nserver "
             "[::1]:9\n",
             "udp block\non-close refuse\ntimeout 12\nbypass 10.0.0.0/8:443\nbypass [2001:DB8::]/32\nbypass ::1\n",
         }) {
        SCOPED_TRACE(text);
        configure(fd, text);
        const std::string canonical = config_of(fd);
        configure(fd, canonical);
        EXPECT_EQ(config_of(fd), canonical);
    }
}

TEST(GetConfig, SaysWhatWasConfigured) {
    const Fd fd = create();
    configure(
        fd,
        "server socks5://u:sesame@10.0.0.1 priority=2\nserver http://[::1]:3128 weight=7\nbypass 10.0.0.0/8:443\n"
        "strategy random\non-close refuse\nudp block\ntimeout 12\n");
    const std::string text = config_of(fd);
    EXPECT_NE(text.find("server socks5://10.0.0.1:1080"), std::string::npos) << text;
    EXPECT_NE(text.find("priority=2"), std::string::npos) << text;
    EXPECT_NE(text.find("server http://[::1]:3128 weight=7"), std::string::npos) << text;
    for (const char* line :
         {"bypass 10.0.0.0/8:443", "strategy random", "on-close refuse", "udp block", "timeout 12"})
        EXPECT_TRUE(has_line(text, line)) << line << " is not in:\n" << text;
    EXPECT_EQ(text.find("sesame"), std::string::npos);
}

TEST(GetConfig, NeedsRoomForAllOfIt) {
    const Fd fd = create();
    configure(fd, "server socks5://10.0.0.1\nbypass 10.0.0.0/8\n");
    const std::string whole = config_of(fd);
    std::size_t needed = 0;
    EXPECT_EQ(error_of(::mprox_get_config(fd.get(), nullptr, 0, &needed)), ENOSPC);
    EXPECT_EQ(needed, whole.size());
    std::string room(whole.size(), '!');
    needed = 0;
    EXPECT_EQ(error_of(::mprox_get_config(fd.get(), room.data(), room.size() - 1, &needed)), ENOSPC);
    EXPECT_EQ(needed, whole.size());
    EXPECT_EQ(room, std::string(whole.size(), '!')) << "nothing is stored";
    EXPECT_EQ(::mprox_get_config(fd.get(), room.data(), room.size(), &needed), static_cast<ssize_t>(whole.size()));
    EXPECT_EQ(room, whole);
}

TEST(GetConfig, TheLargestConfiguration) {
    const Fd fd = create();
    std::string text;
    for (int i = 0; i < MUTEX_PROXY_SERVERS_MAX; ++i)
        text += "server socks5h://" + std::string(63, 'a') + "." + std::string(63, 'b') + "." +
                std::string(63, 'c') + "." + std::string(59, 'd') + std::to_string(10 + i) +
                ":65535 weight=1000 priority=1000\n";
    for (int i = 0; i < MUTEX_PROXY_BYPASS_MAX; ++i) text += "bypass 2001:db8::" + std::to_string(i) + "\n";
    ASSERT_LE(text.size(), std::size_t{MUTEX_PROXY_CONFIG_MAX});
    configure(fd, text);
    const std::string canonical = config_of(fd);
    EXPECT_NE(canonical.find("ddd73:65535"), std::string::npos);
    EXPECT_NE(canonical.find("bypass 2001:db8::1023"), std::string::npos);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_EQ(snapshot.servers.size(), std::size_t{MUTEX_PROXY_SERVERS_MAX});
    EXPECT_LE(snapshot.text.size(), std::size_t{MUTEX_PROXY_SNAPSHOT_MAX});
}

TEST(GetConfig, BadPointer) {
    const Fd fd = create();
    configure(fd, "server socks5://10.0.0.1\n");
    const std::string whole = config_of(fd);
    const Edge edge;
    EXPECT_EQ(error_of(::mprox_get_config(fd.get(), edge.beyond(), 65536, nullptr)), EFAULT);
    EXPECT_EQ(error_of(::mprox_get_config(fd.get(), edge.last(4), 65536, nullptr)), EFAULT);
    EXPECT_EQ(error_of(::mprox_get_config(fd.get(), nullptr, 65536, nullptr)), EFAULT);
    EXPECT_EQ(::mprox_get_config(fd.get(), edge.last(whole.size()), 1 << 20, nullptr),
              static_cast<ssize_t>(whole.size()))
        << "only what it takes is touched";
}

// Two configurations in turn, while others look: nobody ever sees a part of each.
TEST(GetConfig, ReplacedAtomically) {
    const Fd fd = create();
    const auto text = [](char kind) {
        std::string out;
        for (int i = 0; i < 40; ++i)
            out += std::string("server socks5h://") + kind + ".example:" + std::to_string(1000 + i) + "\n";
        return out;
    };
    configure(fd, text('a'));
    const std::string a = config_of(fd);
    configure(fd, text('b'));
    const std::string b = config_of(fd);
    ASSERT_NE(a, b);
    std::vector<std::jthread> writers;
    for (const char kind : {'a', 'b'})
        writers.emplace_back([&fd, mine = text(kind)](const std::stop_token& stop) {
            while (!stop.stop_requested())
                if (::write(fd.get(), mine.data(), mine.size()) != static_cast<ssize_t>(mine.size())) return;
        });
    int seen_a = 0, seen_b = 0;
    for (int i = 0; i < 100'000 && (seen_a < 100 || seen_b < 100); ++i) {
        const std::string now = config_of(fd);
        (now == a ? seen_a : seen_b)++;
        ASSERT_TRUE(now == a || now == b) << now;
    }
    EXPECT_GE(seen_a, 100);
    EXPECT_GE(seen_b, 100);
}

}  // namespace
}  // namespace conformance
