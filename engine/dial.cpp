// SPDX-License-Identifier: MIT
#include "engine/dial.hpp"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <asio/redirect_error.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace mprox {

using Stream = asio::posix::stream_descriptor;

// Lets cancel() reach the socket for as long as the dial uses it.
struct DialScope {
    DialScope(DialHandle& handle, Stream& socket) : handle_(handle) {
        handle_.socket_ = &socket;
        handle_.heard_ = false;
    }
    ~DialScope() { handle_.socket_ = nullptr; }
    void heard() const { handle_.heard_ = true; }
    DialHandle& handle_;
};

namespace {

DialRefusal unreachable(const std::string& what, int error) {
    const bool ours = error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
    return {.fault = ours ? Fault::ours : Fault::server,
            .error = ENETUNREACH,
            .text = what + ": " + std::strerror(error)};
}

bool set(int fd, int level, int option, int value) {
    return ::setsockopt(fd, level, option, &value, sizeof value) == 0;
}

// A non-blocking socket on its way to the server.
std::expected<Fd, int> start_connect(const Namespace& ns, const Server& server, const DialOptions& options) {
    Fd socket = ns.socket(server.address.family(), SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP);
    if (!socket) return std::unexpected(errno);
    const int fd = socket.get();
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    // Our first message acknowledges the server's SYN-ACK well enough.
    set(fd, IPPROTO_TCP, TCP_QUICKACK, 0);
    if (options.window) set(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, static_cast<int>(options.window));
    if (options.mark && !set(fd, SOL_SOCKET, SO_MARK, static_cast<int>(options.mark))) return std::unexpected(errno);
    // A server on this host is not reached through a device or an outside address.
    const bool local = server.address.is_loopback();
    if (options.device && !local && !set(fd, SOL_SOCKET, SO_BINDTOIFINDEX, static_cast<int>(options.device)))
        return std::unexpected(errno);
    if (!options.bound.is_unset() && !local && options.bound.family() == server.address.family()) {
        SocketAddress from(options.bound);
        set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
        if (::bind(fd, &from.any, from.size) != 0) return std::unexpected(errno);
    }
    const SocketAddress to(server.address);
    if (::connect(fd, &to.any, to.size) != 0 && errno != EINPROGRESS) return std::unexpected(errno);
    return socket;
}

int pending_error(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
}

// One way of I/O each: try, and wait only when there is nothing to do. Return the errno, or 0.
asio::awaitable<int> send_all(Stream& socket, const std::uint8_t* data, std::size_t size, bool wait_first = false) {
    while (size > 0) {
        if (std::exchange(wait_first, false)) {
            std::error_code error;
            co_await socket.async_wait(Stream::wait_write, asio::redirect_error(asio::use_awaitable, error));
            if (error) co_return error.value();
        }
        const ssize_t n = ::send(socket.native_handle(), data, size, MSG_NOSIGNAL);
        if (n >= 0) {
            data += n;
            size -= static_cast<std::size_t>(n);
        } else if (errno == EAGAIN) {
            wait_first = true;
        } else if (errno != EINTR) {
            co_return errno == EPIPE ? ECONNRESET : errno;
        }
    }
    co_return 0;
}

asio::awaitable<int> receive(Stream& socket, std::uint8_t* data, std::size_t size, std::size_t& got) {
    for (;;) {
        // The answer is on its way at best: waiting first saves a call.
        std::error_code error;
        co_await socket.async_wait(Stream::wait_read, asio::redirect_error(asio::use_awaitable, error));
        if (error) co_return error.value();
        const ssize_t n = ::recv(socket.native_handle(), data, size, 0);
        if (n >= 0) {
            got = static_cast<std::size_t>(n);
            co_return 0;
        }
        if (errno != EAGAIN && errno != EINTR) co_return errno;
    }
}

// What we say to the server, and have to say next.
struct Conversation {
    mproto_client client;
    std::uint8_t out[MPROTO_OUT_MAX];
    std::size_t out_size = 0;

    [[nodiscard]] DialRefusal refusal() const {
        char text[MPROTO_REFUSAL_TEXT_MAX];
        const auto reason = static_cast<mproto_reason>(client.refusal.reason);
        const std::size_t size = mproto_refusal_format(&client.refusal, text);
        return {.fault = mproto_reason_is_servers(reason) ? Fault::server : Fault::destination,
                .error = mproto_reason_errno(reason),
                .text = std::string(text, size)};
    }
};

// Holds the conversation with the server, from its first message on. Returns what came after the server's reply.
asio::awaitable<std::expected<std::vector<std::uint8_t>, DialRefusal>> converse(Stream& socket, Conversation& talk,
                                                                                const DialScope& scope) {
    auto& [client, out, out_size] = talk;
    std::uint8_t in[2048];
    constexpr bool still_connecting = true;
    if (const int error = co_await send_all(socket, out, out_size, still_connecting))
        co_return std::unexpected(unreachable("cannot reach it", error));
    const bool greets = client.server->protocol == MPROTO_SOCKS5 || client.server->protocol == MPROTO_SOCKS5H;
    if (!greets) scope.heard();
    for (;;) {
        std::size_t got = 0;
        if (const int error = co_await receive(socket, in, sizeof in, got))
            co_return std::unexpected(unreachable("lost it during the handshake", error));
        if (got == 0)
            co_return std::unexpected(DialRefusal{.error = ENETUNREACH, .text = "it hung up during the handshake"});
        scope.heard();
        std::size_t at = 0;
        while (at < got) {
            std::size_t consumed = 0;
            const mproto_progress progress = mproto_client_feed(&client, in + at, got - at, &consumed, out, &out_size);
            at += consumed;
            if (out_size > 0)
                if (const int error = co_await send_all(socket, out, out_size))
                    co_return std::unexpected(unreachable("lost it during the handshake", error));
            if (progress == MPROTO_REFUSED) co_return std::unexpected(talk.refusal());
            if (progress == MPROTO_DONE) co_return std::vector<std::uint8_t>(in + at, in + got);
        }
    }
}

// Ends a dial that takes too long. Its handlers may run after the dial: they then find no socket.
struct Expiry : std::enable_shared_from_this<Expiry> {
    Expiry(Stream& dialled, const DialHandle& dial) : timer(dialled.get_executor()), socket(&dialled), handle(&dial) {}

    asio::steady_timer timer;
    Stream* socket;
    const DialHandle* handle;
    bool expired = false;

    // `left` of the whole time, of which the server has `now` to be heard.
    void arm(std::chrono::milliseconds now, std::chrono::milliseconds left) {
        timer.expires_after(now);
        timer.async_wait([self = shared_from_this(), rest = left - now](std::error_code error) {
            if (error || !self->socket) return;
            if (rest.count() > 0 && self->handle->heard()) return self->arm(rest, rest);
            self->expired = true;
            self->socket->cancel();
        });
    }
    void disarm() {
        socket = nullptr;
        timer.cancel();
    }
};

// A server that cannot carry the destination is not even connected to.
std::expected<Fd, DialRefusal> begin(const Namespace& ns, const Server& server, const mproto_endpoint& destination,
                                     const DialOptions& options, Conversation& talk) {
    if (mproto_client_start(&talk.client, &server.uri, &destination, talk.out, &talk.out_size) == MPROTO_REFUSED)
        return std::unexpected(talk.refusal());
    auto connecting = start_connect(ns, server, options);
    // The refused socket is still there while the next one chooses its port.
    for (int tries = 0; connecting && options.connecting && !options.connecting(connecting->get()) && tries < 8; tries++)
        connecting = start_connect(ns, server, options);
    if (!connecting) return std::unexpected(unreachable("cannot reach it", connecting.error()));
    return std::move(*connecting);
}

}  // namespace

asio::awaitable<std::expected<Dialled, DialRefusal>> dial(const Namespace& ns, const Server& server,
                                                          const mproto_endpoint& destination,
                                                          const DialOptions& options, DialHandle& handle,
                                                          std::chrono::milliseconds limit) {
    Conversation talk;
    auto connecting = begin(ns, server, destination, options, talk);
    if (!connecting) co_return std::unexpected(std::move(connecting.error()));
    Stream socket(co_await asio::this_coro::executor, connecting->release());
    const DialScope scope(handle, socket);

    const auto expiry = std::make_shared<Expiry>(socket, handle);
    if (limit.count() > 0) expiry->arm(std::min<std::chrono::milliseconds>(first_word, limit), limit);
    auto early = co_await converse(socket, talk, scope);
    expiry->disarm();
    if (expiry->expired)
        co_return std::unexpected(DialRefusal{.fault = handle.heard() ? Fault::time : Fault::server,
                                              .error = ETIMEDOUT,
                                              .text = "no answer"});
    if (!early) {
        // A failed connect reports itself on the first write; the socket knows better why.
        if (const int error = pending_error(socket.native_handle()))
            co_return std::unexpected(unreachable("cannot reach it", error));
        co_return std::unexpected(std::move(early.error()));
    }
    co_return Dialled{.socket = std::move(socket), .early = std::move(*early)};
}

}  // namespace mprox
