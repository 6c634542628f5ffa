// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "proto/mproto.h"

// What the protocol tests share: texts to values, and a machine fed in pieces.
namespace proto_test {

using namespace std::string_literals;
using namespace std::string_view_literals;

inline mproto_endpoint endpoint(std::string_view host, std::uint16_t port) {
    mproto_endpoint e{};
    if (!mproto_ip_parse(host.data(), host.size(), &e)) {
        e.kind = MPROTO_HOST_NAME;
        e.name_len = static_cast<std::uint8_t>(host.size());
        std::memcpy(e.name, host.data(), host.size());
    }
    e.port = port;
    return e;
}

inline mproto_credentials credentials(std::string_view user, std::string_view password) {
    mproto_credentials c{};
    c.present = true;
    c.user_len = static_cast<std::uint8_t>(user.size());
    c.password_len = static_cast<std::uint8_t>(password.size());
    std::memcpy(c.user, user.data(), user.size());
    std::memcpy(c.password, password.data(), password.size());
    return c;
}

inline mproto_server server(mproto_protocol protocol) {
    mproto_server s{};
    s.protocol = static_cast<std::uint8_t>(protocol);
    s.at = endpoint("10.0.0.1", 1080);
    return s;
}

inline mproto_server server(mproto_protocol protocol, std::string_view user, std::string_view password) {
    mproto_server s = server(protocol);
    s.credentials = credentials(user, password);
    return s;
}

inline std::string text(const mproto_endpoint& e) {
    char out[MPROTO_TEXT_MAX];
    std::size_t len = mproto_endpoint_format(&e, out);
    return {out, len};
}

/// How a conversation went: all that was sent, the verdict, and how many bytes of the input it took.
struct Talk {
    std::string sent;
    mproto_progress progress = MPROTO_MORE;
    std::size_t consumed = 0;
    bool operator==(const Talk&) const = default;
};

/// Feeds `in`, cut at `cuts` (ascending), with the machine's rules: send what it wrote, feed again what is left.
template <class Feed>
Talk feed_in_pieces(Feed&& feed, std::string_view in, const std::vector<std::size_t>& cuts) {
    Talk talk;
    std::vector<std::size_t> ends = cuts;
    ends.push_back(in.size());
    for (std::size_t end : ends) {
        while (talk.consumed < end && talk.progress == MPROTO_MORE) {
            // A buffer of exactly the piece's size: a sanitizer sees a read past it.
            std::vector<std::uint8_t> piece(in.begin() + static_cast<long>(talk.consumed),
                                            in.begin() + static_cast<long>(end));
            std::uint8_t out[MPROTO_OUT_MAX];
            std::size_t out_len = 0, consumed = 0;
            talk.progress = feed(piece.data(), piece.size(), &consumed, out, &out_len);
            talk.sent.append(reinterpret_cast<char*>(out), out_len);
            talk.consumed += consumed;
            if (consumed > piece.size() || out_len > MPROTO_OUT_MAX || (!consumed && !out_len)) {
                talk.consumed = static_cast<std::size_t>(-1);  // broke the contract: equal to no expectation
                return talk;
            }
        }
    }
    return talk;
}

/// Every way to cut `size` bytes in two, whole, and byte by byte.
inline std::vector<std::vector<std::size_t>> all_cuts(std::size_t size) {
    std::vector<std::vector<std::size_t>> cuts{{}};
    std::vector<std::size_t> each;
    for (std::size_t i = 1; i < size; ++i) {
        cuts.push_back({i});
        each.push_back(i);
    }
    cuts.push_back(each);
    return cuts;
}

}  // namespace proto_test
