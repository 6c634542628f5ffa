// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <map>

#include "tests/unit/proto_talk.hpp"

using namespace proto_test;

namespace {

struct Outcome {
    Talk talk;
    mproto_refusal refusal{};
};

Outcome converse(const mproto_server& server, const mproto_endpoint& to, std::string_view in,
                 const std::vector<std::size_t>& cuts) {
    mproto_client client;
    std::uint8_t out[MPROTO_OUT_MAX];
    std::size_t out_len = 0;
    mproto_progress begun = mproto_client_start(&client, &server, &to, out, &out_len);
    Outcome outcome;
    outcome.talk.progress = begun;
    if (begun == MPROTO_MORE)
        outcome.talk = feed_in_pieces([&](auto... args) { return mproto_client_feed(&client, args...); }, in, cuts);
    outcome.talk.sent.insert(0, reinterpret_cast<char*>(out), out_len);
    outcome.refusal = client.refusal;
    return outcome;
}

// The same with a destination that becomes known only after the greeting; byte by byte.
Outcome converse_later(const mproto_server& server, const mproto_endpoint& to, std::string_view in) {
    mproto_client client;
    std::uint8_t out[MPROTO_OUT_MAX];
    std::size_t out_len = 0;
    Outcome outcome;
    Talk& talk = outcome.talk;
    const auto say = [&] { talk.sent.append(reinterpret_cast<char*>(out), out_len); };
    talk.progress = mproto_client_start(&client, &server, nullptr, out, &out_len);
    say();
    while (talk.progress == MPROTO_READY || (talk.progress == MPROTO_MORE && talk.consumed < in.size())) {
        if (talk.progress == MPROTO_READY) {
            std::size_t taken = 1;
            const auto byte = static_cast<std::uint8_t>(1);
            EXPECT_EQ(mproto_client_feed(&client, &byte, 1, &taken, out, &out_len), MPROTO_READY);
            EXPECT_EQ(taken, 0u);
            talk.progress = mproto_client_request(&client, &to, out, &out_len);
        } else {
            std::size_t taken = 0;
            const auto byte = static_cast<std::uint8_t>(in[talk.consumed]);
            talk.progress = mproto_client_feed(&client, &byte, 1, &taken, out, &out_len);
            talk.consumed += taken;
        }
        say();
    }
    outcome.refusal = client.refusal;
    return outcome;
}

// The conversation whole; every other way to cut the input, and to ask later, has to give the same.
Outcome talk(const mproto_server& server, const mproto_endpoint& to, std::string_view in) {
    Outcome whole = converse(server, to, in, {});
    for (const auto& cuts : all_cuts(in.size())) {
        Outcome cut = converse(server, to, in, cuts);
        EXPECT_EQ(cut.talk, whole.talk) << "cut at " << (cuts.empty() ? 0 : cuts[0]);
        EXPECT_EQ(cut.refusal.reason, whole.refusal.reason);
        EXPECT_EQ(cut.refusal.code, whole.refusal.code);
    }
    // What the protocol cannot carry is refused before the greeting, when it is known before.
    if (!whole.talk.sent.empty()) {
        const Outcome later = converse_later(server, to, in);
        EXPECT_EQ(later.talk, whole.talk);
        EXPECT_EQ(later.refusal.reason, whole.refusal.reason);
        EXPECT_EQ(later.refusal.code, whole.refusal.code);
    }
    return whole;
}

void expect_done(const mproto_server& server, const mproto_endpoint& to, std::string_view in,
                 std::string_view sent) {
    // Application data after the reply, of the kind a careless parser would take for its own.
    for (std::string_view after : {""sv, "\n"sv, "\r\n\r\nHTTP/1.1 500 x\r\n\r\n"sv, "\x05\x01\x00\x00"sv}) {
        Outcome o = talk(server, to, std::string(in) + std::string(after));
        EXPECT_EQ(o.talk.progress, MPROTO_DONE) << mproto_reason_text(mproto_reason(o.refusal.reason));
        EXPECT_EQ(o.talk.consumed, in.size());
        EXPECT_EQ(o.talk.sent, sent);
        EXPECT_EQ(o.refusal.reason, MPROTO_OK);
    }
}

void expect_refused(const mproto_server& server, const mproto_endpoint& to, std::string_view in,
                    mproto_reason reason, int code) {
    Outcome o = talk(server, to, in);
    EXPECT_EQ(o.talk.progress, MPROTO_REFUSED);
    EXPECT_EQ(o.refusal.reason, reason) << mproto_reason_text(mproto_reason(o.refusal.reason));
    EXPECT_EQ(o.refusal.code, code);
    EXPECT_EQ(o.refusal.protocol, server.protocol);
}

const mproto_endpoint v4 = endpoint("10.0.0.9", 80);
const mproto_endpoint v6 = endpoint("2001:db8::9", 443);
const mproto_endpoint name = endpoint("a.example", 443);

const auto greet = "\x05\x01\x00"s;
const auto request4 = "\x05\x01\x00\x01\x0a\x00\x00\x09\x00\x50"s;
const auto request6 = "\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x01\xbb"s;
const auto request_name =
    "\x05\x01\x00\x03\x09"
    "a.example\x01\xbb"s;
const auto ok4 = "\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34"s;

TEST(Socks5Client, Connects) {
    mproto_server s = server(MPROTO_SOCKS5);
    expect_done(s, v4, "\x05\x00"s + ok4, greet + request4);
    expect_done(s, v6, "\x05\x00"s + ok4, greet + request6);
    expect_done(server(MPROTO_SOCKS5H), name, "\x05\x00"s + ok4, greet + request_name);
}

TEST(Socks5Client, Password) {
    mproto_server s = server(MPROTO_SOCKS5, "me", "secret");
    const auto offer = "\x05\x02\x00\x02"s;
    expect_done(s, v4, "\x05\x02\x01\x00"s + ok4, offer + "\x01\x02me\x06secret" + request4);
    expect_done(s, v4, "\x05\x00"s + ok4, offer + request4);  // it does not insist
    expect_refused(s, v4, "\x05\x02\x01\x01"s, MPROTO_AUTH_REJECTED, 0);
    expect_refused(s, v4, "\x05\xff"s, MPROTO_AUTH_REJECTED, 0);
    mproto_server longest = server(MPROTO_SOCKS5, std::string(255, 'u'), std::string(255, 'p'));
    expect_done(longest, v4, "\x05\x02\x01\x00"s + ok4,
                offer + "\x01\xff" + std::string(255, 'u') + "\xff" + std::string(255, 'p') + request4);
    mproto_server empty = server(MPROTO_SOCKS5, "", "");
    expect_done(empty, v4, "\x05\x02\x01\x00"s + ok4, offer + "\x01\0\0"s + request4);
}

TEST(Socks5Client, BoundAddressOfAnyKind) {
    mproto_server s = server(MPROTO_SOCKS5);
    expect_done(s, v4, "\x05\0\x05\0\0\x04"s + std::string(18, 'x'), greet + request4);
    for (int len : {0, 1, 2, 9, 253, 254, 255})
        expect_done(s, v4, "\x05\0\x05\0\0\x03"s + char(len) + std::string(std::size_t(len) + 2, 'x'),
                    greet + request4);
    expect_done(s, v4, "\x05\0\x05\0\x77\x01"s + std::string(6, 'x'), greet + request4);  // reserved not 0
}

TEST(Socks5Client, EveryReply) {
    const std::map<int, mproto_reason> known = {
        {2, MPROTO_NOT_ALLOWED},        {3, MPROTO_NETWORK_UNREACHABLE}, {4, MPROTO_HOST_UNREACHABLE},
        {5, MPROTO_CONNECTION_REFUSED}, {6, MPROTO_HOST_UNREACHABLE},    {7, MPROTO_UNSUPPORTED},
        {8, MPROTO_UNSUPPORTED},
    };
    for (int reply = 1; reply < 256; ++reply) {
        SCOPED_TRACE(reply);
        auto it = known.find(reply);
        mproto_reason reason = it == known.end() ? MPROTO_GENERAL_FAILURE : it->second;
        expect_refused(server(MPROTO_SOCKS5), v4, "\x05\0\x05"s + char(reply) + "\0\x01\0\0\0\0\0\0"s, reason,
                       reply);
        expect_refused(server(MPROTO_SOCKS5), v4, "\x05\0\x05"s + char(reply), reason, reply);  // a curt server
    }
}

TEST(Socks5Client, Malformed) {
    mproto_server s = server(MPROTO_SOCKS5);
    expect_refused(s, v4, "\x05\xff"s, MPROTO_AUTH_REQUIRED, 0);
    expect_refused(s, v4, "\x05\x02"s, MPROTO_MALFORMED, 0);
    expect_refused(s, v4, "\x05\x01"s, MPROTO_MALFORMED, 0);
    expect_refused(server(MPROTO_SOCKS5, "u", "p"), v4, "\x05\x01"s, MPROTO_MALFORMED, 0);
    expect_refused(s, v4, "HTTP/1.1 400 Bad Request\r\n\r\n", MPROTO_MALFORMED, 0);
    expect_refused(s, v4, "\x04"s, MPROTO_MALFORMED, 0);
    expect_refused(s, v4, "\x05\0\x01"s, MPROTO_MALFORMED, 0);
    expect_refused(s, v4, "\x05\0\x05\0\0\x02"s, MPROTO_MALFORMED, 0);
}

TEST(Client, CannotCarry) {
    mproto_endpoint none{}, no_name = endpoint("x", 1), nul = endpoint("a\0b"sv, 1);
    no_name.name_len = 0;
    for (auto protocol : {MPROTO_SOCKS5, MPROTO_SOCKS5H, MPROTO_SOCKS4, MPROTO_SOCKS4A, MPROTO_HTTP})
        for (const auto& to : {none, no_name, nul, endpoint("a b", 1), endpoint("a\r\nX: y", 1)})
            expect_refused(server(protocol), to, "", MPROTO_UNSUPPORTED, 0);
    expect_refused(server(MPROTO_SOCKS4), v6, "", MPROTO_UNSUPPORTED, 0);
    expect_refused(server(MPROTO_SOCKS4A), v6, "", MPROTO_UNSUPPORTED, 0);
    expect_refused(server(MPROTO_SOCKS4), name, "", MPROTO_UNSUPPORTED, 0);
    expect_refused(server(MPROTO_SOCKS4A), endpoint("0.0.0.7", 1), "", MPROTO_UNSUPPORTED, 0);
    for (auto bad : {"a:1", "a/b", "a@b", "a?b", "a#b", "[a]"})
        expect_refused(server(MPROTO_HTTP), endpoint(bad, 1), "", MPROTO_UNSUPPORTED, 0);
    mproto_server unknown = server(MPROTO_HTTP);
    unknown.protocol = 77;
    expect_refused(unknown, v4, "", MPROTO_UNSUPPORTED, 0);
}

TEST(Socks4Client, Connects) {
    const auto ok = "\0\x5a\x12\x34\x01\x02\x03\x04"s;
    expect_done(server(MPROTO_SOCKS4), v4, ok, "\x04\x01\0\x50\x0a\0\0\x09\0"s);
    expect_done(server(MPROTO_SOCKS4, "me", "ignored"), v4, ok, "\x04\x01\0\x50\x0a\0\0\x09me\0"s);
    expect_done(server(MPROTO_SOCKS4A), v4, ok, "\x04\x01\0\x50\x0a\0\0\x09\0"s);
    expect_done(server(MPROTO_SOCKS4A, "me", ""), name, ok, "\x04\x01\x01\xbb\0\0\0\x01me\0a.example\0"s);
}

TEST(Socks4Client, EveryReply) {
    for (int reply = 0; reply < 256; ++reply) {
        if (reply == 90) continue;
        SCOPED_TRACE(reply);
        mproto_reason reason = reply == 91                  ? MPROTO_CONNECTION_REFUSED
                               : reply == 92 || reply == 93 ? MPROTO_AUTH_REJECTED
                                                            : MPROTO_MALFORMED;
        expect_refused(server(MPROTO_SOCKS4), v4, "\0"s + char(reply) + "\0\0\0\0\0\0"s, reason, reply);
    }
    expect_refused(server(MPROTO_SOCKS4), v4, "\x04\x5a\0\0\0\0\0\0"s, MPROTO_MALFORMED, 0);
    expect_refused(server(MPROTO_SOCKS4), v4, "\x05\0"s, MPROTO_MALFORMED, 0);
}

const auto connect4 = "CONNECT 10.0.0.9:80 HTTP/1.1\r\nHost: 10.0.0.9:80\r\n\r\n"s;

TEST(HttpClient, Connects) {
    mproto_server s = server(MPROTO_HTTP);
    for (auto head : {
             "HTTP/1.1 200 Connection established\r\n\r\n",
             "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
             "HTTP/1.1 200\r\n\r\n",
             "HTTP/1.1 299 \nVia: x\n\n",
             "HTTP/1.1 204 x\r\nProxy-Status: p; error=connection_refused\r\n\r\n",
             "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 x\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
         })
        expect_done(s, v4, head, connect4);
    expect_done(s, v4, "HTTP/1.1 200 " + std::string(500, 'r') + "\r\nX: " + std::string(500, 'y') + "\r\n\r\n",
                connect4);
    expect_done(s, v6, "HTTP/1.1 200 OK\r\n\r\n",
                "CONNECT [2001:db8::9]:443 HTTP/1.1\r\nHost: [2001:db8::9]:443\r\n\r\n");
    expect_done(s, name, "HTTP/1.1 200 OK\r\n\r\n",
                "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
}

TEST(HttpClient, Basic) {
    const struct {
        std::string_view user, password, token;
    } rows[] = {
        {"Aladdin", "open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},  // RFC 7617
        {"test", "123\xc2\xa3", "dGVzdDoxMjPCow=="},                 // RFC 7617 2.1
        {"a", "", "YTo="},
        {"a", "b", "YTpi"},
        {"", "", "Og=="},
    };
    for (const auto& row : rows)
        expect_done(server(MPROTO_HTTP, row.user, row.password), v4, "HTTP/1.1 200 OK\r\n\r\n",
                    "CONNECT 10.0.0.9:80 HTTP/1.1\r\nHost: 10.0.0.9:80\r\nProxy-Authorization: Basic " +
                        std::string(row.token) + "\r\n\r\n");
    mproto_server longest = server(MPROTO_HTTP, std::string(255, '\xff'), std::string(255, '\xff'));
    Outcome o = converse(longest, endpoint(std::string(255, 'n'), 65535), "", {});
    EXPECT_EQ(o.talk.sent.size(), 8u + 261 + 17 + 261 + 29 + 684 + 4);
}

TEST(HttpClient, EveryStatus) {
    const std::map<int, mproto_reason> known = {
        {400, MPROTO_UNSUPPORTED},        {401, MPROTO_AUTH_REQUIRED},    {404, MPROTO_NAME_UNKNOWN},
        {405, MPROTO_UNSUPPORTED},        {407, MPROTO_AUTH_REQUIRED},    {408, MPROTO_TIMED_OUT},
        {500, MPROTO_CONNECTION_REFUSED}, {501, MPROTO_UNSUPPORTED},      {502, MPROTO_CONNECTION_REFUSED},
        {503, MPROTO_CONNECTION_REFUSED}, {504, MPROTO_HOST_UNREACHABLE}, {505, MPROTO_UNSUPPORTED},
    };
    for (int status = 300; status < 600; ++status) {
        SCOPED_TRACE(status);
        auto it = known.find(status);
        mproto_reason reason = it != known.end() ? it->second
                               : status < 400    ? MPROTO_MALFORMED
                               : status < 500    ? MPROTO_NOT_ALLOWED
                                                 : MPROTO_GENERAL_FAILURE;
        const std::string head = "HTTP/1.1 " + std::to_string(status) + " x\r\nContent-Length: 9\r\n\r\n";
        expect_refused(server(MPROTO_HTTP), v4, head, reason, status);
        if (reason == MPROTO_AUTH_REQUIRED) reason = MPROTO_AUTH_REJECTED;
        expect_refused(server(MPROTO_HTTP, "u", "p"), v4, head, reason, status);
    }
}

TEST(HttpClient, HeadersSayItBetter) {
    const struct {
        std::string_view header;
        mproto_reason reason;
    } rows[] = {
        {"Proxy-Status: p; error=connection_refused", MPROTO_CONNECTION_REFUSED},
        {"proxy-STATUS:p;error=connection_timeout", MPROTO_TIMED_OUT},
        {"Proxy-Status: p; error=destination_ip_unroutable", MPROTO_NETWORK_UNREACHABLE},
        {"Proxy-Status: p; error=destination_unavailable", MPROTO_HOST_UNREACHABLE},
        {"Proxy-Status: p; error=destination_ip_prohibited", MPROTO_NOT_ALLOWED},
        {"Proxy-Status: p; error=http_request_denied", MPROTO_NOT_ALLOWED},
        {"Proxy-Status: p; error=dns_error; rcode=\"NXDOMAIN\"", MPROTO_NAME_UNKNOWN},
        {"Proxy-Status: p; error=dns_timeout", MPROTO_NAME_UNKNOWN},
        {"Proxy-Status: \"a;error=dns_error\"; \terror=connection_refused", MPROTO_CONNECTION_REFUSED},
        {"Proxy-Status: \"a\\\";error=dns_error\"; error=connection_refused", MPROTO_CONNECTION_REFUSED},
        {"Proxy-Status: a; error=dns_error, b; error=connection_refused", MPROTO_NAME_UNKNOWN},
        {"Proxy-Status: a; error=dns_error\r\nProxy-Status: b; error=connection_refused", MPROTO_NAME_UNKNOWN},
        {"X-Squid-Error: ERR_CONNECT_FAIL 111", MPROTO_CONNECTION_REFUSED},
        {"X-Squid-Error: ERR_CONNECT_FAIL 113", MPROTO_HOST_UNREACHABLE},
        {"X-Squid-Error: ERR_CONNECT_FAIL 101", MPROTO_NETWORK_UNREACHABLE},
        {"X-Squid-Error: ERR_CONNECT_FAIL 110", MPROTO_TIMED_OUT},
        {"X-Squid-Error: ERR_DNS_FAIL 0", MPROTO_NAME_UNKNOWN},
        {"X-Squid-Error: ERR_ACCESS_DENIED 0", MPROTO_NOT_ALLOWED},
        // These say nothing that is known, so the status counts: 599.
        {"Proxy-Status: p; error=connection_refuse", MPROTO_GENERAL_FAILURE},
        {"Proxy-Status: p; error=connection_refused_x", MPROTO_GENERAL_FAILURE},
        {"Proxy-Status: p; myerror=connection_refused", MPROTO_GENERAL_FAILURE},
        {"Proxy-Status: error=connection_refused", MPROTO_GENERAL_FAILURE},
        {"Proxy-Status:", MPROTO_GENERAL_FAILURE},
        {"Proxy-Status: p; error=", MPROTO_GENERAL_FAILURE},
        {"X-Proxy-Status: p; error=dns_error", MPROTO_GENERAL_FAILURE},
        {"Proxy-Status : p; error=dns_error", MPROTO_GENERAL_FAILURE},
        {"X-Squid-Error: ERR_CONNECT_FAIL", MPROTO_GENERAL_FAILURE},
        {"X-Squid-Error: ERR_CONNECT_FAIL 99999999999", MPROTO_GENERAL_FAILURE},
        {" Proxy-Status: p; error=dns_error", MPROTO_GENERAL_FAILURE},
    };
    for (const auto& row : rows) {
        SCOPED_TRACE(row.header);
        const std::string header(row.header);
        expect_refused(server(MPROTO_HTTP), v4, "HTTP/1.1 599 x\r\nA: b\r\n" + header + "\r\n\r\n", row.reason,
                       599);
        expect_refused(server(MPROTO_HTTP), v4, "HTTP/1.1 407 x\r\n" + header + "\r\n\r\n", MPROTO_AUTH_REQUIRED,
                       407);
    }
    // A token that the line buffer cut is no token; one that stands before the cut counts.
    for (std::size_t pad = 0; pad < 90; ++pad) {
        const std::string in =
            "HTTP/1.1 599 x\r\nProxy-Status: " + std::string(pad, 'p') + "; error=connection_refused_not\r\n\r\n";
        expect_refused(server(MPROTO_HTTP), v4, in, MPROTO_GENERAL_FAILURE, 599);
    }
    expect_refused(
        server(MPROTO_HTTP), v4,
        "HTTP/1.1 502 x\r\nProxy-Status: p; error=dns_error; details=\"" + std::string(200, 'd') + "\"\r\n\r\n",
        MPROTO_NAME_UNKNOWN, 502);
}

TEST(HttpClient, Malformed) {
    mproto_server s = server(MPROTO_HTTP);
    for (auto in : {"\x05\0"sv, "SSH-2.0-x\r\n"sv, "HTTP/2 200\r\n\r\n"sv, "HTTP/1.2 200 OK\r\n"sv,
                    "HTTP/1.1 20 OK\r\n"sv, "HTTP/1.1 2000 OK\r\n"sv, "HTTP/1.1  200 OK\r\n"sv,
                    "HTTP/1.1 099 OK\r\n"sv, "HTTP/1.1 600 OK\r\n"sv, "\r\nHTTP/1.1 200 OK\r\n\r\n"sv,
                    "HTTP/1.1\r\n"sv, "HTTP/1.1 2x0 OK\r\n"sv, "http/1.1 200 OK\r\n"sv, "HTTP/1.1 \0"sv})
        expect_refused(s, v4, in, MPROTO_MALFORMED, 0);
    expect_refused(s, v4, "HTTP/1.1 101 Switching\r\n", MPROTO_MALFORMED, 101);
    expect_refused(s, v4, "HTTP/1.1 200 OK\r\nA: \0"sv, MPROTO_MALFORMED, 200);
    expect_refused(s, v4, "HTTP/1.1 200 OK\r\n\0"sv, MPROTO_MALFORMED, 200);
}

TEST(HttpClient, HeadLimit) {
    const std::string start = "HTTP/1.1 200 OK\r\nX: ";
    const std::string fits = start + std::string(MPROTO_HEAD_MAX - start.size() - 4, 'x') + "\r\n\r\n";
    ASSERT_EQ(fits.size(), MPROTO_HEAD_MAX);
    Outcome o = converse(server(MPROTO_HTTP), v4, fits + "data", {7000});
    EXPECT_EQ(o.talk.progress, MPROTO_DONE);
    EXPECT_EQ(o.talk.consumed, fits.size());
    o = converse(server(MPROTO_HTTP), v4, start + std::string(MPROTO_HEAD_MAX - start.size() - 3, 'x') + "\r\n\r\n",
                 {});
    EXPECT_EQ(o.refusal.reason, MPROTO_MALFORMED);
    EXPECT_EQ(o.talk.consumed, MPROTO_HEAD_MAX + 1u);
    std::string interim;
    while (interim.size() <= MPROTO_HEAD_MAX) interim += "HTTP/1.1 100 Continue\r\n\r\n";
    EXPECT_EQ(converse(server(MPROTO_HTTP), v4, interim, {}).refusal.reason, MPROTO_MALFORMED);
}

TEST(Client, EndedMachinesTakeNothing) {
    for (auto reply : {"\0\x5a\0\0\0\0\0\0"s, "\0\x5b\0\0\0\0\0\0"s}) {
        mproto_client client;
        mproto_server s = server(MPROTO_SOCKS4);
        std::uint8_t out[MPROTO_OUT_MAX];
        std::size_t out_len, consumed;
        mproto_client_start(&client, &s, &v4, out, &out_len);
        auto bytes = reinterpret_cast<const std::uint8_t*>(reply.data());
        mproto_progress end = mproto_client_feed(&client, bytes, reply.size(), &consumed, out, &out_len);
        EXPECT_NE(end, MPROTO_MORE);
        EXPECT_EQ(mproto_client_feed(&client, bytes, reply.size(), &consumed, out, &out_len), end);
        EXPECT_EQ(consumed, 0u);
        EXPECT_EQ(out_len, 0u);
    }
}

}  // namespace
