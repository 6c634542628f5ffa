// SPDX-License-Identifier: MIT
#include "bench/socks.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace bench {

mproto_server socks_server(const std::string& text) {
    const std::string uri = "socks5://" + text;
    mproto_server server{};
    mproto_parse_error error{};
    if (!mproto_server_parse(uri.data(), uri.size(), &server, &error)) {
        throw std::invalid_argument("not a SOCKS5 server: " + text + ": " + error.reason);
    }
    if (server.at.kind != MPROTO_HOST_IPV4) throw std::invalid_argument("not an IPv4 address: " + text);
    return server;
}

bool connect_through(int fd, const mproto_server& server, const sockaddr_in& to) {
    sockaddr_in proxy{};
    proxy.sin_family = AF_INET;
    proxy.sin_port = htons(server.at.port);
    std::memcpy(&proxy.sin_addr, server.at.ip, sizeof proxy.sin_addr);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&proxy), sizeof proxy) < 0) return false;

    mproto_endpoint destination{};
    destination.kind = MPROTO_HOST_IPV4;
    destination.port = ntohs(to.sin_port);
    std::memcpy(destination.ip, &to.sin_addr, sizeof to.sin_addr);

    mproto_client client;
    std::array<std::uint8_t, MPROTO_OUT_MAX> out;
    std::array<std::uint8_t, 10> in;  // a reply with an IPv4 address, and no byte more
    std::size_t length = 0;
    auto progress = mproto_client_start(&client, &server, &destination, out.data(), &length);
    while (progress == MPROTO_MORE) {
        if (length && write(fd, out.data(), length) != static_cast<ssize_t>(length)) return false;
        const ssize_t got = read(fd, in.data(), in.size());
        if (got < 0) return false;
        const auto size = static_cast<std::size_t>(got);
        std::size_t consumed = 0;
        progress = mproto_client_feed(&client, in.data(), size, &consumed, out.data(), &length);
        if (size == 0 || consumed != size) {
            errno = EPROTO;
            return false;
        }
    }
    if (progress == MPROTO_REFUSED) errno = mproto_reason_errno(static_cast<mproto_reason>(client.refusal.reason));
    return progress == MPROTO_DONE;
}

}  // namespace bench
