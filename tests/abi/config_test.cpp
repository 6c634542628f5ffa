// SPDX-License-Identifier: MIT
// Writing a configuration: the directives, their limits, the errors; each by write(), writev() and SET_CONFIG.
#include <poll.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <regex>

#include "tests/abi/descriptor.hpp"

namespace conformance {
namespace {

using Way = int (*)(const Fd&, std::string_view);

int by_writev(const Fd& fd, std::string_view text) {
    // Cut where it hurts: a provider that took each piece for a write would see half a line.
    const std::size_t middle = text.size() / 2;
    char* const start = const_cast<char*>(text.data());
    const iovec pieces[] = {{start, middle}, {start + middle, 0}, {start + middle, text.size() - middle}};
    const ssize_t n = ::writev(fd.get(), pieces, 3);
    const int error = error_of(n);
    if (n >= 0) {
        EXPECT_EQ(static_cast<std::size_t>(n), text.size()) << "a short write";
    }
    return error;
}

int by_ioctl(const Fd& fd, std::string_view text) {
    return error_of(::mprox_set_config(fd.get(), text.data(), text.size()));
}

class Config : public testing::TestWithParam<Way> {
  protected:
    int set(std::string_view text) { return GetParam()(fd, text); }

    const Fd fd = create();
};

std::string many(const std::string& what, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += what + "\n";
    return text;
}

TEST_P(Config, ServersAreTakenAndShown) {
    const struct {
        const char *line, *shown;  // the beginning of the snapshot's line, after the index
    } rows[] = {
        {"server socks5://10.0.0.1:1080",
         "socks5://10.0.0.1:1080 weight=1 priority=0 state=up connected=0 refused=0 failed=0"},
        {"server socks5://10.0.0.1", "socks5://10.0.0.1:1080 "},
        {"server socks5h://proxy.example:9", "socks5h://proxy.example:9 "},
        {"server socks4://10.0.0.1", "socks4://10.0.0.1:1080 "},
        {"server socks4a://me@10.0.0.1", "socks4a://10.0.0.1:1080 "},
        {"server http://10.0.0.1", "http://10.0.0.1:8080 "},
        {"server http://[2001:DB8::1]", "http://[2001:db8::1]:8080 "},
        {"server socks5://us%65r:p%40ss@10.0.0.1", "socks5://10.0.0.1:1080 "},
        {"server socks5://10.0.0.1 weight=1000 priority=1000", "socks5://10.0.0.1:1080 weight=1000 priority=1000 "},
        {"server socks5://10.0.0.1 priority=7", "socks5://10.0.0.1:1080 weight=1 priority=7 "},
        {" \tserver\t \tsocks5://10.0.0.1\tweight=2 \t", "socks5://10.0.0.1:1080 weight=2 priority=0 "},
        {"server socks5://10.0.0.1 # the old one", "socks5://10.0.0.1:1080 "},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.line);
        ASSERT_EQ(set(row.line), 0);
        const Snapshot snapshot = read_snapshot(fd);
        ASSERT_EQ(snapshot.servers.size(), 1u) << snapshot.text;
        EXPECT_TRUE(snapshot.servers[0].starts_with(std::string("0 ") + row.shown)) << snapshot.servers[0];
        EXPECT_EQ(snapshot["servers"], "1");
        EXPECT_EQ(snapshot["error"], "none");
    }
}

TEST_P(Config, SettingsAreTakenAndShown) {
    const struct {
        const char *line, *key, *value;
    } rows[] = {
        {"", "strategy", "failover"},
        {"strategy round-robin", "strategy", "round-robin"},
        {"strategy random", "strategy", "random"},
        {"strategy failover", "strategy", "failover"},
        {"", "on-close", "direct"},
        {"on-close refuse", "on-close", "refuse"},
        {"on-close direct", "on-close", "direct"},
        {"", "udp", "direct"},
        {"udp block", "udp", "block"},
        {"udp direct", "udp", "direct"},
        {"", "timeout", "60"},
        {"timeout 1", "timeout", "1"},
        {"timeout 3600", "timeout", "3600"},
        {"", "bypass", "0"},
        {"bypass 10.0.0.0/8", "bypass", "1"},
        {"bypass 10.0.0.0/8:443\nbypass ::1\nbypass [2001:db8::]/32:443\nbypass 0.0.0.0/0\nbypass ::/0", "bypass",
         "5"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.line);
        ASSERT_EQ(set(std::string("# a comment: héllo\n\n \t\n") + row.line + "\n  # another"), 0);
        const Snapshot snapshot = read_snapshot(fd);
        EXPECT_EQ(snapshot[row.key], row.value);
        EXPECT_TRUE(snapshot.servers.empty()) << "what was before is replaced";
    }
}

TEST_P(Config, EveryWriteReplacesEverything) {
    ASSERT_EQ(set("server socks5://10.0.0.1\nbypass 10.0.0.0/8\nstrategy random\non-close refuse\nudp "
                  "block\ntimeout 5\n"),
              0);
    ASSERT_EQ(set("server http://10.0.0.2\nserver socks4://10.0.0.3\n"), 0);
    const Snapshot snapshot = read_snapshot(fd);
    ASSERT_EQ(snapshot.servers.size(), 2u);
    EXPECT_TRUE(snapshot.servers[0].starts_with("0 http://10.0.0.2:8080 "));
    EXPECT_TRUE(snapshot.servers[1].starts_with("1 socks4://10.0.0.3:1080 "));
    EXPECT_EQ(snapshot["strategy"], "failover");
    EXPECT_EQ(snapshot["on-close"], "direct");
    EXPECT_EQ(snapshot["udp"], "direct");
    EXPECT_EQ(snapshot["timeout"], "60");
    EXPECT_EQ(snapshot["bypass"], "0");
}

TEST_P(Config, BadLinesAreExplainedAndChangeNothing) {
    const struct {
        std::string_view line;
        std::size_t from, to;  // columns, from 1, where the fault may be said to lie
    } rows[] = {
        {"serve socks5://h", 1, 6},
        {"SERVER socks5://h", 1, 7},
        {"server", 1, 7},
        {"server ", 1, 8},
        {"server gopher://10.0.0.1", 8, 14},
        {"server https://10.0.0.1", 8, 13},
        {"server socks5://", 17, 17},
        {"server socks5://10.0.0.1:0", 26, 26},
        {"server socks5://10.0.0.1:65536", 26, 30},
        {"server socks5://10.0.0.1/path", 25, 25},
        {"server socks5://10.0.0.256", 17, 26},
        {"server socks5://::1", 17, 19},
        {"server socks5://u:p%zz@10.0.0.1", 20, 22},
        {"server socks5://u:p%00@10.0.0.1", 20, 22},
        {"server socks5://10.0.0.1 weight=0", 26, 33},
        {"server socks5://10.0.0.1 weight=1001", 26, 36},
        {"server socks5://10.0.0.1 weight=-1", 26, 34},
        {"server socks5://10.0.0.1 weight=", 26, 33},
        {"server socks5://10.0.0.1 weight=1x", 26, 34},
        {"server socks5://10.0.0.1 weight=99999999999999999999", 26, 52},
        {"server socks5://10.0.0.1 weight=4294967297", 26, 42},
        {"server socks5://10.0.0.1 weight=1 weight=1", 35, 42},
        {"server socks5://10.0.0.1 priority=1001", 26, 38},
        {"server socks5://10.0.0.1 priority=", 26, 35},
        {"server socks5://10.0.0.1 speed=9", 26, 32},
        {"server socks5://10.0.0.1 socks5://10.0.0.2", 26, 42},
        {"bypass", 1, 7},
        {"bypass 10.0.0.0/33", 17, 18},
        {"bypass 10.0.0.1/8", 8, 17},
        {"bypass 10.0.0.0/8:0", 19, 19},
        {"bypass example.org", 8, 18},
        {"bypass 10.0.0.0/8 10.1.0.0/16", 19, 29},
        {"strategy", 1, 9},
        {"strategy best", 10, 13},
        {"strategy random failover", 17, 24},
        {"strategy random\nstrategy random", 1, 15},
        {"on-close", 1, 9},
        {"on-close maybe", 10, 14},
        {"on-close refuse\non-close refuse", 1, 15},
        {"udp proxy", 5, 9},
        {"udp block\nudp block", 1, 9},
        {"timeout", 1, 8},
        {"timeout 0", 9, 9},
        {"timeout 3601", 9, 12},
        {"timeout -5", 9, 10},
        {"timeout 1.5", 9, 11},
        {"timeout 60s", 9, 11},
        {"timeout 9\ntimeout 9", 1, 9},
        {std::string_view("timeout 9\0", 10), 9, 10},
        {std::string_view("\0", 1), 1, 1},
        {"\x1b[2J", 1, 4},
    };
    ASSERT_EQ(set("server socks5://10.0.0.1\nbypass 10.0.0.0/8\ntimeout 7\n"), 0);
    const std::string config = config_of(fd);
    drain(fd);
    for (const auto& row : rows) {
        SCOPED_TRACE(std::string(row.line));
        ASSERT_EQ(set("# one\n\nbypass ::1 # three\n" + std::string(row.line) + "\nnor is this one\n"), EINVAL);
        EXPECT_EQ(config_of(fd), config);
        const Snapshot snapshot = read_snapshot(fd);
        const std::string error = snapshot["error"];
        std::smatch parts;
        ASSERT_TRUE(std::regex_match(error, parts, std::regex("line ([0-9]+), column ([0-9]+): (.+)"))) << error;
        EXPECT_EQ(parts[1], row.line.find('\n') == std::string_view::npos ? "4" : "5") << error;
        EXPECT_GE(std::stoul(parts[2]), row.from) << error;
        EXPECT_LE(std::stoul(parts[2]), row.to) << error;
        for (const char c : error) EXPECT_TRUE(static_cast<unsigned char>(c) >= ' ') << "a control character";
        ASSERT_EQ(snapshot.servers.size(), 1u);
        EXPECT_TRUE(snapshot.servers[0].starts_with("0 socks5://10.0.0.1:1080 "));
    }
    ASSERT_EQ(set("timeout 8\n"), 0);
    EXPECT_EQ(read_snapshot(fd)["error"], "none") << "a good configuration clears the error";
}

TEST_P(Config, TheLastLineNeedsNoNewline) {
    ASSERT_EQ(set("timeout 9"), 0);
    EXPECT_EQ(read_snapshot(fd)["timeout"], "9");
    ASSERT_EQ(set("timeout 10\r\n"), 0);
    EXPECT_EQ(read_snapshot(fd)["timeout"], "10");
}

TEST_P(Config, AsManyServersAsTheLimit) {
    ASSERT_EQ(set(many("server socks5://10.0.0.1", MUTEX_PROXY_SERVERS_MAX)), 0);
    EXPECT_EQ(set(many("server socks5://10.0.0.1", MUTEX_PROXY_SERVERS_MAX + 1)), EINVAL);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_EQ(snapshot.servers.size(), std::size_t{MUTEX_PROXY_SERVERS_MAX});
    EXPECT_TRUE(snapshot["error"].starts_with("line 65, column ")) << snapshot["error"];
}

TEST_P(Config, AsManyBypassLinesAsTheLimit) {
    ASSERT_EQ(set(many("bypass 10.0.0.0/8", MUTEX_PROXY_BYPASS_MAX)), 0);
    EXPECT_EQ(set(many("bypass 10.0.0.0/8", MUTEX_PROXY_BYPASS_MAX + 1)), EINVAL);
    const Snapshot snapshot = read_snapshot(fd);
    EXPECT_EQ(snapshot["bypass"], std::to_string(MUTEX_PROXY_BYPASS_MAX));
    EXPECT_TRUE(snapshot["error"].starts_with("line 1025, column ")) << snapshot["error"];
}

TEST_P(Config, AsMuchTextAsTheLimit) {
    std::string text = "timeout 9\n#";
    text.resize(MUTEX_PROXY_CONFIG_MAX, 'x');
    ASSERT_EQ(set(text), 0);
    EXPECT_EQ(read_snapshot(fd)["timeout"], "9");
    const std::string config = config_of(fd);
    for (const std::size_t size :
         {MUTEX_PROXY_CONFIG_MAX + 1, 2 * MUTEX_PROXY_CONFIG_MAX, 16 * MUTEX_PROXY_CONFIG_MAX}) {
        text.assign("timeout 8\n#");
        text.resize(size, 'x');
        EXPECT_EQ(set(text), E2BIG) << size;
    }
    EXPECT_EQ(config_of(fd), config);
}

TEST_P(Config, NeverShort) {
    const std::string line = "bypass 10.0.0.0/8 # " + std::string(48, '.') + "\n";
    for (int lines = 1; lines * line.size() <= MUTEX_PROXY_CONFIG_MAX && lines <= MUTEX_PROXY_BYPASS_MAX;
         lines += 17) {
        std::string text;
        for (int i = 0; i < lines; ++i) text += line;
        ASSERT_EQ(set(text), 0) << text.size();
        ASSERT_EQ(set(text.substr(0, text.size() - 1)), 0) << text.size() - 1;
    }
}

TEST_P(Config, TheSameTextAgainIsAccepted) {
    for (int i = 0; i < 3; ++i) ASSERT_EQ(set("server socks5://10.0.0.1\n"), 0);
    EXPECT_EQ(read_snapshot(fd).servers.size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Ways, Config, testing::Values(write_error, by_writev, by_ioctl),
                         [](const auto& way) -> std::string {
                             return way.param == write_error ? "Write"
                                    : way.param == by_writev ? "Writev"
                                                             : "Ioctl";
                         });

TEST(ConfigMemory, WhatCannotBeReadChangesNothing) {
    const Fd fd = create();
    configure(fd, "timeout 9\n");
    const std::string config = config_of(fd);
    drain(fd);
    const Edge edge;
    std::memcpy(edge.last(8), "# text \n", 8);
    EXPECT_EQ(error_of(::write(fd.get(), edge.last(8), 16)), EFAULT) << "half of it can be read";
    EXPECT_EQ(error_of(::write(fd.get(), edge.beyond(), 16)), EFAULT);
    EXPECT_EQ(error_of(::mprox_set_config(fd.get(), edge.last(8), 16)), EFAULT);
    EXPECT_EQ(error_of(::mprox_set_config(fd.get(), nullptr, 16)), EFAULT);
    EXPECT_EQ(error_of(::mprox_set_config(fd.get(), reinterpret_cast<char*>(~0ull << 20), 16)), EFAULT);
    EXPECT_EQ(config_of(fd), config);
    EXPECT_EQ(write_error(fd, std::string_view(edge.last(8), 8)), 0) << "up to the edge";
}

}  // namespace
}  // namespace conformance
