// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include "tests/unit/proto_talk.hpp"

using namespace proto_test;

namespace {

struct Parsed {
    bool ok;
    mproto_server server;
    mproto_parse_error error;
};

Parsed parse(std::string_view uri) {
    Parsed p{};
    p.ok = mproto_server_parse(uri.data(), uri.size(), &p.server, &p.error);
    return p;
}

std::string formatted(const mproto_server& server) {
    char out[MPROTO_TEXT_MAX];
    return {out, mproto_server_format(&server, out)};
}

TEST(Uri, Accepted) {
    const struct {
        std::string_view uri, formatted, user, password;
        bool credentials;
    } rows[] = {
        {"socks5://10.0.0.1:1080", "socks5://10.0.0.1:1080", "", "", false},
        {"SOCKS5H://Proxy.example", "socks5h://Proxy.example:1080", "", "", false},
        {"socks4://1.2.3.4", "socks4://1.2.3.4:1080", "", "", false},
        {"socks4a://me@a-b_c.d.", "socks4a://a-b_c.d.:1080", "me", "", true},
        {"http://[2001:DB8::1]/", "http://[2001:db8::1]:8080", "", "", false},
        {"localhost:3128", "http://localhost:3128", "", "", false},
        {"10.0.0.1", "http://10.0.0.1:8080", "", "", false},
        {"u:p@host:1", "http://host:1", "u", "p", true},
        {"socks5://user:pa%20ss%3a%40%ff@[::1]:65535", "socks5://[::1]:65535", "user", "pa ss:@\xff", true},
        {"socks5://us%65r:p%41@h", "socks5://h:1080", "user", "pA", true},
        {"http://a:b@c@h:1", "http://h:1", "a", "b@c", true},
        {"http://a:b:c@h:1", "http://h:1", "a", "b:c", true},
        {"http://@h:1", "http://h:1", "", "", false},
        {"http://:@h:1", "http://h:1", "", "", true},
        {"http://:p@h:1", "http://h:1", "", "p", true},
        {"http://h:00080", "http://h:80", "", "", false},
        {"http://1.2.3.4.example", "http://1.2.3.4.example:8080", "", "", false},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.uri);
        Parsed p = parse(row.uri);
        ASSERT_TRUE(p.ok) << p.error.reason << " at " << p.error.column;
        EXPECT_EQ(formatted(p.server), row.formatted);
        const auto& c = p.server.credentials;
        EXPECT_EQ(c.present, row.credentials);
        EXPECT_EQ(std::string_view(c.user, c.user_len), row.user);
        EXPECT_EQ(std::string_view(c.password, c.password_len), row.password);
        EXPECT_EQ(c.user[c.user_len], 0);
        EXPECT_EQ(c.password[c.password_len], 0);
        Parsed again = parse(formatted(p.server));
        ASSERT_TRUE(again.ok);
        EXPECT_EQ(0, std::memcmp(&again.server.at, &p.server.at, sizeof(p.server.at)));
    }
}

TEST(Uri, RefusedWithReasonAndColumn) {
    const struct {
        std::string_view uri;
        std::size_t column;
        std::string_view reason;  // a part of it
    } rows[] = {
        {"", 0, "missing"},
        {"socks5://", 9, "missing"},
        {"socks5://u:p@", 13, "missing"},
        {"ftp://h", 0, "unknown scheme"},
        {"://h", 0, "unknown scheme"},
        {"https://h", 0, "https"},
        {"socks://h", 0, "does not say which"},
        {"http://h:0", 9, "port"},
        {"http://h:65536", 9, "port"},
        {"http://h:", 9, "port"},
        {"http://h:8a", 9, "port"},
        {"http://h:000080", 9, "port"},
        {"http://h/x", 8, "path"},
        {"http://h?x", 8, "path"},
        {"http://h#", 8, "path"},
        {"http://h//", 8, "path"},
        {"http://a b", 8, "space"},
        {"http://h\n", 8, "space"},
        {"http://h\0"sv, 8, "space"},
        {"http://h\x7f", 8, "space"},
        {"http://u%00:p@h", 8, "NUL"},
        {"http://u:%0@h", 9, "hexadecimal"},
        {"http://u:%@h", 9, "hexadecimal"},
        {"http://u:x%zz@h", 10, "hexadecimal"},
        {"http://::1:80", 7, "brackets"},
        {"http://[::1", 7, "']'"},
        {"http://[1.2.3.4]", 8, "IPv6"},
        {"http://[fe80::1%25eth0]", 8, "IPv6"},
        {"http://[::1]x", 12, "port"},
        {"http://256.1.1.1", 7, "IPv4"},
        {"http://1.2.3", 7, "IPv4"},
        {"http://01.2.3.4", 7, "IPv4"},
        {"http://x.1", 7, "IPv4"},
        {"http://a..b", 9, "empty label"},
        {"http://.", 7, "empty label"},
        {"http://h%41", 8, "name"},
        {"http://b\xc3\xbc.de", 8, "name"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.uri);
        mproto_server untouched;
        std::memset(&untouched, 0x5A, sizeof(untouched));
        mproto_server server = untouched;
        mproto_parse_error error{};
        ASSERT_FALSE(mproto_server_parse(row.uri.data(), row.uri.size(), &server, &error));
        EXPECT_EQ(error.column, row.column);
        EXPECT_NE(std::string_view(error.reason).find(row.reason), std::string_view::npos) << error.reason;
        EXPECT_EQ(0, std::memcmp(&server, &untouched, sizeof(server)));
    }
}

TEST(Uri, LongParts) {
    const std::string u255(255, 'u'), p255(255, 'p'), label(63, 'x');
    const std::string name = label + "." + label + "." + label + "." + label;  // 255
    Parsed p = parse("socks5://" + u255 + ":" + p255 + "@" + name + ":1");
    ASSERT_TRUE(p.ok);
    EXPECT_EQ(p.server.credentials.user_len, 255);
    EXPECT_EQ(p.server.credentials.password_len, 255);
    EXPECT_EQ(p.server.at.name_len, 255);
    EXPECT_EQ(formatted(p.server), "socks5://" + name + ":1");
    EXPECT_FALSE(parse("http://" + u255 + "u:p@h").ok);
    EXPECT_FALSE(parse("http://u:" + p255 + "p@h").ok);
    EXPECT_FALSE(parse("http://" + name + ".").ok);
    EXPECT_FALSE(parse("http://" + label + "x").ok);
}

TEST(Ip, RoundTrip) {
    const struct {
        std::string_view in, out;
    } rows[] = {
        {"0.0.0.0", "0.0.0.0:1"},
        {"255.255.255.255", "255.255.255.255:1"},
        {"::", "[::]:1"},
        {"::1", "[::1]:1"},
        {"1::", "[1::]:1"},
        {"2001:DB8:0:0:1:0:0:1", "[2001:db8::1:0:0:1]:1"},     // RFC 5952 4.2.3: the first of equal runs
        {"2001:db8:0:1:1:1:1:1", "[2001:db8:0:1:1:1:1:1]:1"},  // 4.2.2: one group is not shortened
        {"2001:0:0:1:0:0:0:1", "[2001:0:0:1::1]:1"},
        {"0:0:0:0:0:0:0:0", "[::]:1"},
        {"1:0:0:0:0:0:0:0", "[1::]:1"},
        {"1:2:3:4:5:6:7::", "[1:2:3:4:5:6:7:0]:1"},
        {"::2:3:4:5:6:7:8", "[0:2:3:4:5:6:7:8]:1"},
        {"::ffff:1.2.3.4", "[::ffff:1.2.3.4]:1"},
        {"::ffff:102:304", "[::ffff:1.2.3.4]:1"},
        {"64:ff9b::1.2.3.4", "[64:ff9b::102:304]:1"},
        {"1:2:3:4:5:6:1.2.3.4", "[1:2:3:4:5:6:102:304]:1"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.in);
        mproto_endpoint e{};
        ASSERT_TRUE(mproto_ip_parse(row.in.data(), row.in.size(), &e));
        e.port = 1;
        EXPECT_EQ(text(e), row.out);
    }
    for (std::string_view bad : {"",
                                 "1",
                                 "1.2.3",
                                 "1.2.3.4.",
                                 "1.2.3.4.5",
                                 "1.2.3.256",
                                 "1.2.3.04",
                                 "1..2.3",
                                 " 1.2.3.4",
                                 ":",
                                 ":::",
                                 "1:2",
                                 "1:2:3:4:5:6:7",
                                 "1:2:3:4:5:6:7:8:9",
                                 "1::2::3",
                                 "::1::",
                                 "12345::",
                                 "g::",
                                 "1:2:3:4:5:6:7:8::",
                                 "::1:2:3:4:5:6:7:8",
                                 "1:2:3:4:5:6:7:1.2.3.4",
                                 "::1.2.3",
                                 "::1.2.3.4:1",
                                 "fe80::1%eth0",
                                 "[::1]",
                                 ":1::",
                                 "1:",
                                 "1:2:3:4:5:6:7:"}) {
        SCOPED_TRACE(bad);
        mproto_endpoint e{};
        EXPECT_FALSE(mproto_ip_parse(bad.data(), bad.size(), &e));
    }
}

TEST(Prefix, Accepted) {
    const struct {
        std::string_view in, first;
        int bits, port;
    } rows[] = {
        {"10.0.0.0/8", "[::ffff:10.0.0.0]:0", 104, 0},
        {"10.1.2.3", "[::ffff:10.1.2.3]:0", 128, 0},
        {"10.1.2.3:80", "[::ffff:10.1.2.3]:80", 128, 80},
        {"10.0.0.0/8:443", "[::ffff:10.0.0.0]:443", 104, 443},
        {"0.0.0.0/0", "[::ffff:0.0.0.0]:0", 96, 0},
        {"2001:db8::/32", "[2001:db8::]:0", 32, 0},
        {"2001:db8::/32:443", "[2001:db8::]:443", 32, 443},
        {"::1", "[::1]:0", 128, 0},
        {"::/0", "[::]:0", 0, 0},
        {"[::1]:80", "[::1]:80", 128, 80},
        {"[::1]", "[::1]:0", 128, 0},
        {"[2001:db8::]/32:443", "[2001:db8::]:443", 32, 443},
        {"[2001:db8::/32]:443", "[2001:db8::]:443", 32, 443},
        {"[2001:db8::/32]", "[2001:db8::]:0", 32, 0},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.in);
        mproto_prefix p{};
        mproto_parse_error error{};
        ASSERT_TRUE(mproto_prefix_parse(row.in.data(), row.in.size(), &p, &error)) << error.reason;
        mproto_endpoint e{};
        e.kind = MPROTO_HOST_IPV6;
        std::memcpy(e.ip, p.ip, 16);
        e.port = p.port;
        EXPECT_EQ(text(e), row.first);
        EXPECT_EQ(p.bits, row.bits);
    }
}

TEST(Prefix, Refused) {
    const struct {
        std::string_view in;
        std::size_t column;
        std::string_view reason;
    } rows[] = {
        {"", 0, "missing"},
        {"x", 0, "address"},
        {"10.0.0.1/8", 0, "past the prefix"},
        {"2001:db8::1/32", 0, "past the prefix"},
        {"10.0.0.0/33", 9, "0 to 32"},
        {"10.0.0.0/", 9, "0 to 32"},
        {"10.0.0.0/-1", 9, "0 to 32"},
        {"10.0.0.0/8:", 11, "port"},
        {"10.0.0.0/8:0", 11, "port"},
        {"10.0.0.0/8:65536", 11, "port"},
        {"::/129", 3, "0 to 128"},
        {"[::/0]/0", 6, "twice"},
        {"[::1", 0, "']'"},
        {"[::1]x", 5, "may follow"},
        {"[10.0.0.1]", 1, "IPv6"},
        {"10.0.0.0 /8", 0, "address"},
        {"1.2.3.4:80:90", 0, "address"},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.in);
        mproto_prefix p{};
        mproto_parse_error error{};
        ASSERT_FALSE(mproto_prefix_parse(row.in.data(), row.in.size(), &p, &error));
        EXPECT_EQ(error.column, row.column) << error.reason;
        EXPECT_NE(std::string_view(error.reason).find(row.reason), std::string_view::npos) << error.reason;
    }
}

TEST(Reason, ErrnoAndText) {
    const struct {
        mproto_reason reason;
        int error;
        bool servers;
    } rows[] = {
        {MPROTO_OK, 0, false},
        {MPROTO_CONNECTION_REFUSED, ECONNREFUSED, false},
        {MPROTO_HOST_UNREACHABLE, EHOSTUNREACH, false},
        {MPROTO_NETWORK_UNREACHABLE, ENETUNREACH, false},
        {MPROTO_TIMED_OUT, ETIMEDOUT, false},
        {MPROTO_NOT_ALLOWED, EHOSTUNREACH, false},
        {MPROTO_NAME_UNKNOWN, EHOSTUNREACH, false},
        {MPROTO_GENERAL_FAILURE, EHOSTUNREACH, false},
        {MPROTO_AUTH_REQUIRED, ENETUNREACH, true},
        {MPROTO_AUTH_REJECTED, ENETUNREACH, true},
        {MPROTO_UNSUPPORTED, ENETUNREACH, true},
        {MPROTO_MALFORMED, ENETUNREACH, true},
    };
    for (const auto& row : rows) {
        EXPECT_EQ(mproto_reason_errno(row.reason), row.error);
        EXPECT_EQ(mproto_reason_is_servers(row.reason), row.servers);
        for (int protocol = MPROTO_SOCKS5; protocol <= MPROTO_HTTP; ++protocol) {
            mproto_refusal refusal{static_cast<std::uint8_t>(row.reason), static_cast<std::uint8_t>(protocol),
                                   65535};
            char out[MPROTO_REFUSAL_TEXT_MAX];
            std::size_t len = mproto_refusal_format(&refusal, out);
            EXPECT_LT(len, sizeof(out));
            EXPECT_EQ(len, std::strlen(out));
        }
    }
    char out[MPROTO_REFUSAL_TEXT_MAX];
    mproto_refusal refusal{MPROTO_CONNECTION_REFUSED, MPROTO_SOCKS5H, 5};
    mproto_refusal_format(&refusal, out);
    EXPECT_STREQ(out, "SOCKS5 reply 5: connection refused");
    refusal = {MPROTO_AUTH_REQUIRED, MPROTO_HTTP, 407};
    mproto_refusal_format(&refusal, out);
    EXPECT_STREQ(out, "HTTP status 407: the proxy wants a user and password");
    refusal = {MPROTO_AUTH_REJECTED, MPROTO_SOCKS4A, 93};
    mproto_refusal_format(&refusal, out);
    EXPECT_STREQ(out, "SOCKS4a reply 93: the proxy rejects the user or password");
    refusal = {MPROTO_MALFORMED, MPROTO_SOCKS5, 0};
    mproto_refusal_format(&refusal, out);
    EXPECT_STREQ(out, "SOCKS5: the server does not speak the proxy protocol");
}

TEST(Credentials, Wiped) {
    mproto_credentials c = credentials("user", "secret"), zero{};
    mproto_credentials_wipe(&c);
    EXPECT_EQ(0, std::memcmp(&c, &zero, sizeof(c)));
}

}  // namespace
