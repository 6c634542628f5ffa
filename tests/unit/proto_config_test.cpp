// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "proto/config.h"

namespace {

struct Parsed {
    bool ok = false;
    std::vector<mproto_config_server> servers;
    std::vector<mproto_prefix> bypass;
    mproto_config_reader reader{};
};

Parsed parse(std::string_view text, mproto_config_limits limits = {64, 1024}) {
    Parsed p;
    mproto_config_server server{};
    mproto_prefix bypass{};
    mproto_config_start(&p.reader, &limits, text.data(), text.size());
    for (;;) {
        switch (mproto_config_next(&p.reader, &server, &bypass)) {
        case MPROTO_CONFIG_SERVER: p.servers.push_back(server); break;
        case MPROTO_CONFIG_BYPASS: p.bypass.push_back(bypass); break;
        case MPROTO_CONFIG_END: p.ok = true; return p;
        case MPROTO_CONFIG_ERROR: return p;
        }
    }
}

std::string formatted(const mproto_config_server& server) {
    char out[MPROTO_TEXT_MAX];
    return {out, mproto_server_format(&server.server, out)};
}

std::string formatted(const mproto_prefix& prefix) {
    char out[MPROTO_PREFIX_TEXT_MAX];
    return {out, mproto_prefix_format(&prefix, out)};
}

TEST(Config, EmptyIsDefaults) {
    for (std::string_view text : {"", "\n", "\n\n", "# nothing\n", "  \t \r\n", "\t# nothing"}) {
        SCOPED_TRACE(text);
        Parsed p = parse(text);
        ASSERT_TRUE(p.ok);
        EXPECT_TRUE(p.servers.empty());
        EXPECT_EQ(p.reader.settings.strategy, MPROTO_FAILOVER);
        EXPECT_EQ(p.reader.settings.on_close, MPROTO_ON_CLOSE_DIRECT);
        EXPECT_EQ(p.reader.settings.udp, MPROTO_UDP_DIRECT);
        EXPECT_EQ(p.reader.settings.timeout, 60);
    }
}

TEST(Config, Whole) {
    Parsed p = parse("# proxies\n"
                     "server socks5://user:pa%20ss@10.0.0.1:1080\tweight=3  priority=7 # the first\r\n"
                     "\n"
                     "  server http://[::1] priority=1000\n"
                     "strategy round-robin\n"
                     "bypass 10.0.0.0/8\n"
                     "bypass [2001:db8::]/32:443\n"
                     "on-close refuse\n"
                     "timeout 3600\n"
                     "udp block");
    ASSERT_TRUE(p.ok) << p.reader.error.reason;
    ASSERT_EQ(p.servers.size(), 2u);
    EXPECT_EQ(formatted(p.servers[0]), "socks5://10.0.0.1:1080");
    EXPECT_STREQ(p.servers[0].server.credentials.password, "pa ss");
    EXPECT_EQ(p.servers[0].weight, 3);
    EXPECT_EQ(p.servers[0].priority, 7);
    EXPECT_EQ(p.servers[0].line, 2u);
    EXPECT_EQ(formatted(p.servers[1]), "http://[::1]:8080");
    EXPECT_EQ(p.servers[1].weight, 1);
    EXPECT_EQ(p.servers[1].priority, 1000);
    EXPECT_EQ(p.servers[1].line, 4u);
    ASSERT_EQ(p.bypass.size(), 2u);
    EXPECT_EQ(formatted(p.bypass[0]), "10.0.0.0/8");
    EXPECT_EQ(formatted(p.bypass[1]), "[2001:db8::]/32:443");
    EXPECT_EQ(p.reader.settings.strategy, MPROTO_ROUND_ROBIN);
    EXPECT_EQ(p.reader.settings.on_close, MPROTO_ON_CLOSE_REFUSE);
    EXPECT_EQ(p.reader.settings.udp, MPROTO_UDP_BLOCK);
    EXPECT_EQ(p.reader.settings.timeout, 3600);
}

TEST(Config, RefusedWithLineColumnAndReason) {
    using namespace std::string_view_literals;
    const struct {
        std::string_view text;
        unsigned line;
        std::size_t column;  // from 0
        std::string_view reason;  // a part of it
    } rows[] = {
        {"Server socks5://h", 1, 0, "unknown directive"},
        {"servers socks5://h", 1, 0, "unknown directive"},
        {"\n\n  what", 3, 2, "unknown directive"},
        {"server", 1, 6, "missing"},
        {"server # socks5://h", 1, 7, "missing"},
        {"server socks5://h:0", 1, 18, "port"},
        {"# one\nserver ftp://h", 2, 7, "unknown scheme"},
        {"server h weight=0", 1, 16, "1 to 1000"},
        {"server h weight=1001", 1, 16, "1 to 1000"},
        {"server h weight=", 1, 16, "1 to 1000"},
        {"server h weight", 1, 15, "1 to 1000"},
        {"server h weight=1x", 1, 16, "1 to 1000"},
        {"server h weight=99999999999999", 1, 16, "1 to 1000"},
        {"server h weight=1 weight=1", 1, 18, "twice"},
        {"server h priority=1001", 1, 18, "0 to 1000"},
        {"server h priority=-1", 1, 18, "0 to 1000"},
        {"server h priority=1 priority=1", 1, 20, "twice"},
        {"server h 7", 1, 9, "only weight"},
        {"server h1 h2", 1, 10, "only weight"},
        {"strategy", 1, 8, "strategy must be"},
        {"strategy fail", 1, 9, "strategy must be"},
        {"strategy failovers", 1, 9, "strategy must be"},
        {"strategy random random", 1, 16, "nothing may follow"},
        {"strategy random\nstrategy random", 2, 0, "twice"},
        {"on-close no", 1, 9, "on-close must be"},
        {"udp yes", 1, 4, "udp must be"},
        {"timeout 0", 1, 8, "1 to 3600"},
        {"timeout 3601", 1, 8, "1 to 3600"},
        {"timeout 1.5", 1, 8, "1 to 3600"},
        {"bypass", 1, 6, "missing"},
        {"bypass 10.0.0.0/33", 1, 16, "0 to 32"},
        {"bypass 10.0.0.1 10.0.0.2", 1, 16, "nothing may follow"},
        {"server h\0"sv, 1, 8, "control"},
        {"server\x01h", 1, 6, "control"},
        {"# \x7f", 1, 2, "control"},
        {"server\rh\n", 1, 6, "control"},
        {"# \xff", 1, 2, "UTF-8"},
        {"# \xc3", 1, 2, "UTF-8"},
        {"# \xc3\n", 1, 2, "UTF-8"},
        {"# \xc0\x80", 1, 2, "UTF-8"},
        {"# \xed\xa0\x80", 1, 2, "UTF-8"},
        {"# \xf4\x90\x80\x80", 1, 2, "UTF-8"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.text);
        Parsed p = parse(row.text);
        ASSERT_FALSE(p.ok);
        EXPECT_EQ(p.reader.line, row.line);
        EXPECT_EQ(p.reader.error.column, row.column);
        EXPECT_NE(std::string_view(p.reader.error.reason).find(row.reason), std::string_view::npos)
            << p.reader.error.reason;
    }
}

TEST(Config, CommentsMayHoldAnyUtf8) {
    EXPECT_TRUE(parse("# \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xf4\x8f\xbf\xbf\n").ok);
}

TEST(Config, Limits) {
    std::string text;
    for (int i = 0; i < 3; i++)
        text += "server h\nbypass ::1\n";
    EXPECT_TRUE(parse(text, {3, 3}).ok);
    Parsed servers = parse(text, {2, 3});
    EXPECT_FALSE(servers.ok);
    EXPECT_EQ(servers.reader.line, 5u);
    EXPECT_STREQ(servers.reader.error.reason, "too many servers");
    Parsed bypass = parse(text, {3, 2});
    EXPECT_FALSE(bypass.ok);
    EXPECT_EQ(bypass.reader.line, 6u);
    EXPECT_STREQ(bypass.reader.error.reason, "too many bypass lines");
}

TEST(Config, AnErrorIsFinal) {
    mproto_config_reader reader;
    mproto_config_limits limits{64, 1024};
    mproto_config_server server{};
    mproto_prefix bypass{};
    std::string_view text = "what\nserver h\n";
    mproto_config_start(&reader, &limits, text.data(), text.size());
    EXPECT_EQ(mproto_config_next(&reader, &server, &bypass), MPROTO_CONFIG_ERROR);
    EXPECT_EQ(mproto_config_next(&reader, &server, &bypass), MPROTO_CONFIG_END);
}

TEST(Config, PrefixesAsText) {
    const struct {
        std::string_view text, formatted;
    } rows[] = {
        {"10.0.0.0/8", "10.0.0.0/8"},       {"10.1.2.3:80", "10.1.2.3/32:80"},
        {"0.0.0.0/0", "0.0.0.0/0"},         {"::/0", "::/0"},
        {"::1", "::1/128"},                 {"2001:db8::/32:443", "[2001:db8::]/32:443"},
        {"255.255.255.255:65535", "255.255.255.255/32:65535"},
        {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff:65535/128",  ""},
        {"[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]/128:65535"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.text);
        mproto_prefix prefix{}, again{};
        mproto_parse_error error{};
        if (row.formatted.empty()) {
            EXPECT_FALSE(mproto_prefix_parse(row.text.data(), row.text.size(), &prefix, &error));
            continue;
        }
        ASSERT_TRUE(mproto_prefix_parse(row.text.data(), row.text.size(), &prefix, &error)) << error.reason;
        std::string text = formatted(prefix);
        EXPECT_EQ(text, row.formatted);
        EXPECT_LT(text.size(), std::size_t{MPROTO_PREFIX_TEXT_MAX});
        ASSERT_TRUE(mproto_prefix_parse(text.data(), text.size(), &again, &error)) << error.reason;
        EXPECT_EQ(formatted(again), text);
    }
}

}  // namespace
