// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include "tests/unit/proto_talk.hpp"

using namespace proto_test;

namespace {

struct Outcome {
    Talk talk;
    mproto_acceptor acceptor{};
};

Outcome converse(const mproto_credentials* required, std::string_view in, const std::vector<std::size_t>& cuts) {
    Outcome o;
    mproto_acceptor_start(&o.acceptor, required);
    o.talk = feed_in_pieces([&](auto... args) { return mproto_acceptor_feed(&o.acceptor, args...); }, in, cuts);
    return o;
}

Outcome talk(const mproto_credentials* required, std::string_view in) {
    Outcome whole = converse(required, in, {});
    for (const auto& cuts : all_cuts(in.size())) {
        Outcome cut = converse(required, in, cuts);
        EXPECT_EQ(cut.talk, whole.talk) << "cut at " << (cuts.empty() ? 0 : cuts[0]);
        EXPECT_EQ(cut.acceptor.protocol, whole.acceptor.protocol);
        if (whole.talk.progress == MPROTO_DONE) {
            EXPECT_EQ(text(cut.acceptor.destination), text(whole.acceptor.destination));
        }
    }
    return whole;
}

void expect_request(const mproto_credentials* required, std::string_view in, mproto_protocol protocol,
                    std::string_view destination, std::string_view sent) {
    SCOPED_TRACE(in);
    for (std::string_view early : {""sv, "\n\n"sv, "\x16\x03\x01\0"sv}) {
        Outcome o = talk(required, std::string(in) + std::string(early));
        EXPECT_EQ(o.talk.progress, MPROTO_DONE);
        EXPECT_EQ(o.talk.consumed, in.size());
        EXPECT_EQ(o.talk.sent, sent);
        EXPECT_EQ(o.acceptor.protocol, protocol);
        EXPECT_EQ(text(o.acceptor.destination), destination);
    }
}

void expect_refused(const mproto_credentials* required, std::string_view in, std::string_view sent) {
    SCOPED_TRACE(in);
    Outcome o = talk(required, in);
    EXPECT_EQ(o.talk.progress, MPROTO_REFUSED);
    EXPECT_EQ(o.talk.sent.substr(0, sent.empty() ? std::string::npos : sent.size()), sent);
}

const mproto_credentials secret = credentials("me", "secret");
const auto none_ok = "\x05\x00"s;

TEST(Socks5Acceptor, Requests) {
    const auto greet = "\x05\x01\x00"s;
    expect_request(nullptr, greet + "\x05\x01\0\x01\x0a\0\0\x09\0\x50"s, MPROTO_SOCKS5, "10.0.0.9:80", none_ok);
    expect_request(nullptr, greet + "\x05\x01\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x09\x01\xbb"s,
                   MPROTO_SOCKS5, "[2001:db8::9]:443", none_ok);
    expect_request(nullptr,
                   greet +
                       "\x05\x01\0\x03\x09"
                       "a.example\x01\xbb"s,
                   MPROTO_SOCKS5, "a.example:443", none_ok);
    expect_request(nullptr, greet + "\x05\x01\0\x03\xff"s + std::string(255, 'n') + "\0\x01"s, MPROTO_SOCKS5,
                   std::string(255, 'n') + ":1", none_ok);
    expect_request(nullptr, "\x05\x03\x01\x02\0\x05\x01\0\x01\x0a\0\0\x09\0\x50"s, MPROTO_SOCKS5, "10.0.0.9:80",
                   none_ok);
    // A client that offers only a password, where everybody may: any password does.
    expect_request(nullptr, "\x05\x01\x02\x01\x01x\x01y\x05\x01\0\x01\x0a\0\0\x09\0\x50"s, MPROTO_SOCKS5,
                   "10.0.0.9:80", "\x05\x02\x01\0"s);
}

TEST(Socks5Acceptor, Password) {
    const auto request = "\x05\x01\0\x01\x0a\0\0\x09\0\x50"s;
    expect_request(&secret, "\x05\x02\0\x02\x01\x02me\x06secret"s + request, MPROTO_SOCKS5, "10.0.0.9:80",
                   "\x05\x02\x01\0"s);
    expect_refused(&secret, "\x05\x01\0"s, "\x05\xff"s);
    expect_refused(&secret, "\x05\0"s, "\x05\xff"s);
    for (auto wrong :
         {"\x01\x02me\x06secreT"s, "\x01\x02mf\x06secret"s, "\x01\x02me\x05secre"s, "\x01\x02me\x07secret1"s,
          "\x01\x01m\x06secret"s, "\x01\0\0"s, "\x01\x03me\0\x06secret"s, "\x01\x02me\x07secret\0"s})
        expect_refused(&secret, "\x05\x01\x02"s + wrong + request, "\x05\x02\x01\x01"s);
    expect_refused(&secret, "\x05\x01\x02\x05\x02me\x06secret"s, "\x05\x02\x01\x01"s);
    const mproto_credentials longest = credentials(std::string(255, 'u'), std::string(255, 'p'));
    expect_request(&longest,
                   "\x05\x01\x02\x01\xff"s + std::string(255, 'u') + "\xff" + std::string(255, 'p') + request,
                   MPROTO_SOCKS5, "10.0.0.9:80", "\x05\x02\x01\0"s);
    Outcome o = converse(&secret, "\x05\x01\x02\x01\x02me\x06secret"s, {});
    for (auto byte : o.acceptor.buffer) EXPECT_EQ(byte, 0);  // no password stays behind
}

TEST(Socks5Acceptor, Refused) {
    const auto greet = "\x05\x01\x00"s;
    const auto nowhere = "\0\x01\0\0\0\0\0\0"s;
    for (char command : {'\x02', '\x03', '\x00', '\x09'})
        expect_refused(nullptr, greet + "\x05"s + command + "\0\x01\x0a\0\0\x09\0\x50"s,
                       none_ok + "\x05\x07"s + nowhere);
    for (char type : {'\x00', '\x02', '\x05', '\xff'})
        expect_refused(nullptr, greet + "\x05\x01\0"s + type, none_ok + "\x05\x08"s + nowhere);
    expect_refused(nullptr, greet + "\x04", none_ok + "\x05\x01"s + nowhere);
    for (auto name : {""s, "a\0b"s, "a b"s, "a\r\n"s})
        expect_refused(nullptr, greet + "\x05\x01\0\x03"s + char(name.size()) + name + "\0\x50"s,
                       none_ok + "\x05\x01"s + nowhere);
    expect_refused(nullptr, "\x05\x01\x01"s, "\x05\xff"s);
    for (auto garbage : {"\x16\x03\x01"s, "\0"s, "\x06"s, "[::1]"s, " CONNECT"s, "\r\n"s, "\xff"s})
        expect_refused(nullptr, garbage, "");
}

TEST(Socks4Acceptor, Requests) {
    expect_request(nullptr, "\x04\x01\0\x50\x0a\0\0\x09\0"s, MPROTO_SOCKS4, "10.0.0.9:80", "");
    expect_request(nullptr, "\x04\x01\0\x50\x0a\0\0\x09user\0"s, MPROTO_SOCKS4, "10.0.0.9:80", "");
    expect_request(nullptr, "\x04\x01\0\x50\0\0\0\0\0"s, MPROTO_SOCKS4, "0.0.0.0:80", "");
    expect_request(nullptr, "\x04\x01\x01\xbb\0\0\0\x01me\0a.example\0"s, MPROTO_SOCKS4A, "a.example:443", "");
    const auto rejected = "\0\x5b\0\0\0\0\0\0"s;
    expect_refused(nullptr, "\x04\x02\0\x50\x0a\0\0\x09\0"s, rejected);
    expect_refused(nullptr, "\x04\x01\0\x50\0\0\0\x01\0\0"s, rejected);
    expect_refused(nullptr, "\x04\x01\0\x50\0\0\0\x01\0a b\0"s, rejected);
    expect_refused(nullptr, "\x04\x01\0\x50\0\0\0\x01\0"s + std::string(256, 'n'), rejected);
    expect_refused(nullptr, "\x04\x01\0\x50\x0a\0\0\x09"s + std::string(256, 'u'), rejected);
    expect_refused(&secret, "\x04\x01\0\x50\x0a\0\0\x09me\0"s, "\0\x5d\0\0\0\0\0\0"s);
    expect_refused(&secret, "\x04\x01\x01\xbb\0\0\0\x01me\0a.example\0"s, "\0\x5d\0\0\0\0\0\0"s);
}

TEST(HttpAcceptor, Requests) {
    expect_request(nullptr, "CONNECT 10.0.0.9:80 HTTP/1.1\r\nHost: x\r\n\r\n", MPROTO_HTTP, "10.0.0.9:80", "");
    expect_request(nullptr, "CONNECT [2001:DB8::9]:443 HTTP/1.0\r\n\r\n", MPROTO_HTTP, "[2001:db8::9]:443", "");
    expect_request(nullptr, "CONNECT a.example:443 HTTP/1.1\n\n", MPROTO_HTTP, "a.example:443", "");
    expect_request(nullptr, "CONNECT a:1 HTTP/1.1\r\nCookie: " + std::string(1500, 'c') + "\r\n\r\n", MPROTO_HTTP,
                   "a:1", "");
}

TEST(HttpAcceptor, Password) {
    const auto head = "CONNECT a:1 HTTP/1.1\r\n"s;
    for (auto good : {"Proxy-Authorization: Basic bWU6c2VjcmV0", "PROXY-authorization:bASIC  bWU6c2VjcmV0 "})
        expect_request(&secret, head + good + "\r\n\r\n", MPROTO_HTTP, "a:1", "");
    for (auto bad : {"X: y", "Proxy-Authorization: Basic", "Proxy-Authorization: Basic bWU6c2VjcmV1",
                     "Proxy-Authorization: Basic bWU6c2VjcmU=", "Proxy-Authorization: Digest bWU6c2VjcmV0",
                     "Proxy-Authorization: Basic !!!!", "Authorization: Basic bWU6c2VjcmV0",
                     "Proxy-Authorization: Basic bWU6c2VjcmV0AA==", "Proxy-Authorization: Basic ===="}) {
        expect_refused(&secret, head + bad + "\r\n\r\n", "HTTP/1.1 407 ");
        EXPECT_NE(talk(&secret, head + bad + "\r\n\r\n").talk.sent.find("\r\nProxy-Authenticate: Basic realm="),
                  std::string::npos);
    }
    const mproto_credentials colon = credentials("a:b", "c=");
    expect_request(&colon, head + "Proxy-Authorization: Basic YTpiOmM9\r\n\r\n", MPROTO_HTTP, "a:1", "");
}

TEST(HttpAcceptor, Refused) {
    expect_refused(
        nullptr, "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    for (auto line :
         {"CONNECT a HTTP/1.1", "CONNECT a:0 HTTP/1.1", "CONNECT a:65536 HTTP/1.1", "CONNECT :80 HTTP/1.1",
          "CONNECT ::1:80 HTTP/1.1", "CONNECT [::1] HTTP/1.1", "CONNECT [::1:80 HTTP/1.1", "CONNECT a:1",
          "CONNECT a:1 HTTP/2.0", "CONNECT a:1 HTTP/1.1 ", "CONNECT  a:1 HTTP/1.1", "CONNECT http://a:1/ HTTP/1.1",
          "CONNECT u@a:1 HTTP/1.1", "hello", "CONNECT a:1 http/1.1"})
        expect_refused(nullptr, std::string(line) + "\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n");
    expect_refused(nullptr, "CONNECT a:1\0 HTTP/1.1\r\n\r\n"s, "HTTP/1.1 400 ");
    expect_refused(nullptr, "CONNECT a:1 HTTP/1.1\r\nX: \0\r\n\r\n"s, "HTTP/1.1 400 ");
    expect_refused(nullptr, "CONNECT " + std::string(1100, 'a') + ":1 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 ");
    Outcome o = converse(nullptr, "CONNECT a:1 HTTP/1.1\r\nX: " + std::string(MPROTO_HEAD_MAX, 'x'), {});
    EXPECT_EQ(o.talk.progress, MPROTO_REFUSED);
    EXPECT_TRUE(o.talk.sent.starts_with("HTTP/1.1 431 "));
}

std::string answer(mproto_protocol protocol, mproto_reason reason, const mproto_endpoint* bound) {
    mproto_acceptor a{};
    a.protocol = static_cast<std::uint8_t>(protocol);
    std::uint8_t out[MPROTO_OUT_MAX];
    std::size_t len = 0;
    mproto_acceptor_reply(&a, reason, bound, out, &len);
    return {reinterpret_cast<char*>(out), len};
}

TEST(Acceptor, Answers) {
    const mproto_endpoint v4 = endpoint("10.0.0.7", 258), v6 = endpoint("::1", 258);
    EXPECT_EQ(answer(MPROTO_SOCKS5, MPROTO_OK, nullptr), "\x05\0\0\x01\0\0\0\0\0\0"s);
    EXPECT_EQ(answer(MPROTO_SOCKS5, MPROTO_OK, &v4), "\x05\0\0\x01\x0a\0\0\x07\x01\x02"s);
    EXPECT_EQ(answer(MPROTO_SOCKS5, MPROTO_OK, &v6), "\x05\0\0\x04"s + std::string(15, '\0') + "\x01\x01\x02"s);
    EXPECT_EQ(answer(MPROTO_SOCKS4, MPROTO_OK, &v4), "\0\x5a\x01\x02\x0a\0\0\x07"s);
    EXPECT_EQ(answer(MPROTO_SOCKS4A, MPROTO_OK, &v6), "\0\x5a\0\0\0\0\0\0"s);
    EXPECT_EQ(answer(MPROTO_SOCKS4, MPROTO_CONNECTION_REFUSED, nullptr), "\0\x5b\0\0\0\0\0\0"s);
    EXPECT_EQ(answer(MPROTO_HTTP, MPROTO_OK, &v4), "HTTP/1.1 200 Connection established\r\n\r\n");
    EXPECT_EQ(answer(MPROTO_HTTP, MPROTO_CONNECTION_REFUSED, nullptr),
              "HTTP/1.1 502 Bad Gateway\r\nProxy-Status: mprox; error=connection_refused\r\n"
              "Content-Length: 0\r\nConnection: close\r\n\r\n");
    const struct {
        mproto_reason reason;
        char socks5;
        std::string_view status;
    } rows[] = {
        {MPROTO_CONNECTION_REFUSED, 5, "502"}, {MPROTO_NETWORK_UNREACHABLE, 3, "502"},
        {MPROTO_HOST_UNREACHABLE, 4, "502"},   {MPROTO_NAME_UNKNOWN, 4, "502"},
        {MPROTO_TIMED_OUT, 6, "504"},          {MPROTO_NOT_ALLOWED, 2, "403"},
        {MPROTO_GENERAL_FAILURE, 1, "502"},    {MPROTO_UNSUPPORTED, 1, "502"},
    };
    for (const auto& row : rows) {
        EXPECT_EQ(answer(MPROTO_SOCKS5, row.reason, &v4), "\x05"s + row.socks5 + "\0\x01\0\0\0\0\0\0"s);
        EXPECT_EQ(answer(MPROTO_HTTP, row.reason, &v4).substr(9, 3), row.status);
    }
}

// Our client against our acceptor. Returns what the client made of it.
struct Met {
    mproto_progress client;
    mproto_refusal refusal;
    std::string destination;
};

Met meet(const mproto_server& server, const mproto_endpoint& to, const mproto_credentials* required,
         mproto_reason verdict) {
    mproto_client client;
    mproto_acceptor acceptor;
    std::uint8_t out[MPROTO_OUT_MAX];
    std::size_t len = 0;
    mproto_progress ours = mproto_client_start(&client, &server, &to, out, &len), theirs = MPROTO_MORE;
    std::string up(reinterpret_cast<char*>(out), len), down;
    mproto_acceptor_start(&acceptor, required);
    while (ours == MPROTO_MORE && !(up.empty() && down.empty())) {
        std::size_t consumed = 0;
        if (!up.empty()) {
            theirs = mproto_acceptor_feed(&acceptor, reinterpret_cast<std::uint8_t*>(up.data()), up.size(),
                                          &consumed, out, &len);
            up.erase(0, consumed);
            down.append(reinterpret_cast<char*>(out), len);
            if (theirs == MPROTO_DONE) {
                mproto_acceptor_reply(&acceptor, verdict, &server.at, out, &len);
                down.append(reinterpret_cast<char*>(out), len);
            }
        }
        if (!down.empty()) {
            ours = mproto_client_feed(&client, reinterpret_cast<std::uint8_t*>(down.data()), down.size(), &consumed,
                                      out, &len);
            down.erase(0, consumed);
            up.append(reinterpret_cast<char*>(out), len);
        }
    }
    return {ours, client.refusal, text(acceptor.destination)};
}

TEST(ClientAndAcceptor, EveryProtocolAndHost) {
    const mproto_endpoint hosts[] = {endpoint("10.0.0.9", 80), endpoint("2001:db8::9", 65535),
                                     endpoint("::ffff:1.2.3.4", 1), endpoint("a.example", 443),
                                     endpoint(std::string(63, 'x') + "." + std::string(63, 'y') + "." +
                                                  std::string(63, 'z') + "." + std::string(63, 'w'),
                                              7)};
    const mproto_credentials longest = credentials(std::string(255, 'u'), std::string(255, 'p'));
    for (int p = MPROTO_SOCKS5; p <= MPROTO_HTTP; ++p) {
        const auto protocol = static_cast<mproto_protocol>(p);
        const bool socks4 = protocol == MPROTO_SOCKS4 || protocol == MPROTO_SOCKS4A;
        for (const auto& to : hosts) {
            SCOPED_TRACE(mproto_protocol_text(protocol) + " "s + text(to));
            const bool carries = !socks4 || to.kind == MPROTO_HOST_IPV4 ||
                                 (protocol == MPROTO_SOCKS4A && to.kind == MPROTO_HOST_NAME);
            Met met = meet(server(protocol), to, nullptr, MPROTO_OK);
            EXPECT_EQ(met.client, carries ? MPROTO_DONE : MPROTO_REFUSED);
            if (!carries) {
                EXPECT_EQ(met.refusal.reason, MPROTO_UNSUPPORTED);
                continue;
            }
            EXPECT_EQ(met.destination, text(to));

            for (const auto& c : {secret, longest}) {
                mproto_server with = server(protocol);
                with.credentials = c;
                EXPECT_EQ(meet(with, to, &c, MPROTO_OK).client, socks4 ? MPROTO_REFUSED : MPROTO_DONE);
            }
            met = meet(server(protocol), to, &secret, MPROTO_OK);
            EXPECT_EQ(met.refusal.reason, socks4 ? MPROTO_AUTH_REJECTED : MPROTO_AUTH_REQUIRED);
            met = meet(server(protocol, "me", "wrong"), to, &secret, MPROTO_OK);
            EXPECT_EQ(met.refusal.reason, MPROTO_AUTH_REJECTED);

            // What survives the way through each protocol's vocabulary.
            for (int r = MPROTO_CONNECTION_REFUSED; r <= MPROTO_MALFORMED; ++r) {
                met = meet(server(protocol), to, nullptr, static_cast<mproto_reason>(r));
                EXPECT_EQ(met.client, MPROTO_REFUSED);
                mproto_reason expected = static_cast<mproto_reason>(r);
                if (r > MPROTO_GENERAL_FAILURE) expected = MPROTO_GENERAL_FAILURE;
                if (protocol == MPROTO_SOCKS5 || protocol == MPROTO_SOCKS5H)
                    if (r == MPROTO_TIMED_OUT || r == MPROTO_NAME_UNKNOWN) expected = MPROTO_HOST_UNREACHABLE;
                if (socks4) expected = MPROTO_CONNECTION_REFUSED;
                EXPECT_EQ(met.refusal.reason, expected) << mproto_reason_text(static_cast<mproto_reason>(r));
            }
        }
    }
}

}  // namespace
