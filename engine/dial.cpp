// SPDX-License-Identifier: MIT
#include "engine/dial.hpp"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

namespace mprox {

// Lets cancel() reach the socket for as long as the dial uses it.
struct DialScope {
    DialScope(DialHandle& handle, Descriptor& socket, bool heard) : handle_(handle) {
        handle_.socket_ = &socket;
        handle_.heard_ = heard;
    }
    ~DialScope() { handle_.socket_ = nullptr; }
    void heard() const { handle_.heard_ = true; }
    DialHandle& handle_;
};

bool DialHandle::unacknowledged() const {
    tcp_info info{};
    socklen_t size = sizeof info;
    return socket_ && ::getsockopt(socket_->get(), IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_unacked > 0;
}

namespace {

DialRefusal unreachable(const std::string& what, int error) {
    const bool ours = error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS || error == ENOSPC;
    return {.fault = ours ? Fault::ours : Fault::server,
            .error = ENETUNREACH,
            .text = what + ": " + std::strerror(error)};
}

bool set(int fd, int level, int option, int value) {
    return ::setsockopt(fd, level, option, &value, sizeof value) == 0;
}

struct Connecting {
    Fd socket;
    Watch watch;
};

std::expected<Watch, int> set_out(int socket, const Server& server, const DialOptions& options) {
    // Our first message acknowledges the server's SYN-ACK well enough.
    set(socket, IPPROTO_TCP, TCP_QUICKACK, 0);
    const SocketAddress to(server.address);
    if (options.connect) return options.connect(socket, to);
    if (::connect(socket, &to.any, to.size) != 0 && errno != EINPROGRESS) return std::unexpected(errno);
    return Watch{};
}

// A non-blocking socket on its way to the server. One whose port is no good is kept in `taken`: the next gets another.
std::expected<Connecting, int> start_connect(const Namespace& ns, const Server& server, const DialOptions& options,
                                             std::vector<Fd>& taken) {
    Fd socket = ns.socket(server.address.family(), SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_TCP);
    if (!socket) return std::unexpected(errno);
    const int fd = socket.get();
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
    auto watch = set_out(fd, server, options);
    if (!watch) {
        if (watch.error() == EADDRINUSE) taken.push_back(std::move(socket));
        return std::unexpected(watch.error());
    }
    return Connecting{.socket = std::move(socket), .watch = std::move(*watch)};
}

using Bytes = std::vector<std::uint8_t>;

// A coroutine's variables live as long as its dial, and dials may be many at once: messages are made and read here, and
// nothing in here outlives a suspension.
struct Scratch {
    std::uint8_t out[MPROTO_OUT_MAX];
    std::size_t out_size = 0;
    std::uint8_t in[512];
};
Scratch& scratch() {
    thread_local Scratch buffers;
    return buffers;
}

// Sends what fits at once. Returns the errno, or 0; what is left is in `rest`.
int send_now(Descriptor& socket, std::span<const std::uint8_t> message, Bytes& rest) {
    while (!message.empty()) {
        const ssize_t n = socket.send(message);
        if (n >= 0)
            message = message.subspan(static_cast<std::size_t>(n));
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            return errno == EPIPE ? ECONNRESET : errno;
    }
    rest = Bytes(message.begin(), message.end());
    return 0;
}

// Sends the scratch's message. Returns the errno, or 0.
asio::awaitable<int> send_message(Descriptor& socket) {
    Bytes rest;
    int error = send_now(socket, std::span(scratch().out).first(scratch().out_size), rest);
    while (!error && !rest.empty()) {
        if (!socket.is(Descriptor::writing)) {
            const bool happened = co_await socket.wait(Descriptor::writing);
            if (!happened) co_return ECANCELED;
        }
        const Bytes left = std::move(rest);
        error = send_now(socket, left, rest);
    }
    co_return error;
}

// Returns the errno, or 0; nothing is the end.
asio::awaitable<int> receive(Descriptor& socket, Bytes& received) {
    for (;;) {
        const ssize_t n = socket.receive(scratch().in);
        if (n >= 0) {
            received.assign(scratch().in, scratch().in + n);
            co_return 0;
        }
        if (errno == EINTR) continue;
        if (errno != EAGAIN) co_return errno;
        const bool happened = co_await socket.wait(Descriptor::reading);
        if (!happened) co_return ECANCELED;
    }
}

DialRefusal refusal_of(const mproto_client& client) {
    char text[MPROTO_REFUSAL_TEXT_MAX];
    const auto reason = static_cast<mproto_reason>(client.refusal.reason);
    const std::size_t size = mproto_refusal_format(&client.refusal, text);
    return {.fault = mproto_reason_is_servers(reason) ? Fault::server : Fault::destination,
            .error = mproto_reason_errno(reason),
            .text = std::string(text, size)};
}

// Feeds the machine with what was said, as far as it goes without an answer: that one is in the scratch then. Takes off what
// it has taken.
mproto_progress feed(mproto_client& client, Bytes& said) {
    Scratch& buffers = scratch();
    std::size_t consumed = 0;
    const auto progress =
        mproto_client_feed(&client, said.data(), said.size(), &consumed, buffers.out, &buffers.out_size);
    said.erase(said.begin(), said.begin() + static_cast<std::ptrdiff_t>(consumed));
    return progress;
}

// Listens to the server and answers it, until the machine comes to `end`. `said` is what it has said already. Returns what
// came after that end.
asio::awaitable<std::expected<Bytes, DialRefusal>> converse(Descriptor& socket, mproto_client& client, const DialScope& scope,
                                                            mproto_progress end, Bytes said) {
    for (bool first = true;; first = false) {
        if (said.empty()) {
            const int error = co_await receive(socket, said);
            if (error || said.empty()) {
                DialRefusal why = error ? unreachable("lost it during the handshake", error)
                                        : DialRefusal{.error = ENETUNREACH, .text = "it hung up during the handshake"};
                why.unheard = first;
                co_return std::unexpected(std::move(why));
            }
        }
        scope.heard();
        while (!said.empty()) {
            const mproto_progress progress = feed(client, said);
            if (scratch().out_size > 0)
                if (const int error = co_await send_message(socket))
                    co_return std::unexpected(unreachable("lost it during the handshake", error));
            if (progress == MPROTO_REFUSED) co_return std::unexpected(refusal_of(client));
            if (progress == end) co_return std::move(said);
        }
    }
}

// Ends a dial that takes too long.
struct Expiry {
    Expiry(Poller& poller, Descriptor& dialled, const DialHandle& dial) : timer(poller), socket(dialled), handle(dial) {}

    Timer timer;
    Descriptor& socket;
    const DialHandle& handle;
    bool expired = false;

    // `left` of the whole time, of which the server has `now` to be heard.
    void arm(std::chrono::milliseconds now, std::chrono::milliseconds left) {
        timer.start(now, [this, rest = left - now] {
            if (rest.count() > 0 && handle.heard()) return arm(rest, rest);
            expired = true;
            socket.cancel();
        });
    }
};

// Runs one part of a dial within its time. `part` returns what converse() does.
template <typename Part>
asio::awaitable<std::expected<Bytes, DialRefusal>> in_time(Poller& poller, Descriptor& socket, const DialHandle& handle,
                                                           std::chrono::milliseconds limit, Part part) {
    if (limit.count() == 0) co_return co_await std::move(part);
    Expiry expiry(poller, socket, handle);
    expiry.arm(std::min<std::chrono::milliseconds>(first_word, limit), limit);
    auto done = co_await std::move(part);
    if (expiry.expired)
        co_return std::unexpected(DialRefusal{.fault = handle.heard() ? Fault::time : Fault::server,
                                              .error = ETIMEDOUT,
                                              .text = "no answer"});
    co_return done;
}

// Says the first words as soon as the socket is connected, which it may be already: a server on this host, or behind a
// virtual wire, has been connected before connect(2) returned.
asio::awaitable<std::expected<Bytes, DialRefusal>> open(Descriptor& socket, mproto_client& client, const DialScope& scope) {
    const mproto_progress progress =
        mproto_client_start(&client, client.server, nullptr, scratch().out, &scratch().out_size);
    int error = 0;
    if (scratch().out_size > 0) {
        error = co_await send_message(socket);
    } else {
        bool connected = socket.is(Descriptor::writing);
        if (!connected) connected = co_await socket.wait(Descriptor::writing);
        error = connected ? pending_error(socket.get()) : ECANCELED;
    }
    if (error) {
        // A failed connect reports itself on the first write; the socket knows better why.
        const int reason = pending_error(socket.get());
        co_return std::unexpected(unreachable("cannot reach it", reason ? reason : error));
    }
    if (progress == MPROTO_REFUSED) co_return std::unexpected(refusal_of(client));
    if (progress == MPROTO_READY) {
        scope.heard();
        co_return Bytes{};
    }
    co_return co_await converse(socket, client, scope, MPROTO_READY, {});
}

}  // namespace

asio::awaitable<std::expected<Greeted, DialRefusal>> greet(Poller& poller, const Namespace& ns, const Server& server,
                                                           const DialOptions& options, DialHandle& handle,
                                                           std::chrono::milliseconds limit, Descriptor spare) {
    Greeted greeted{.socket = std::move(spare), .watch = {}, .client = {}, .said = {}};
    if (greeted.socket) {
        auto watch = set_out(greeted.socket.get(), server, options);
        if (!watch) co_return std::unexpected(unreachable("cannot reach it", watch.error()));
        greeted.watch = std::move(*watch);
    } else {
        std::vector<Fd> taken;
        auto connecting = start_connect(ns, server, options, taken);
        while (!connecting && connecting.error() == EADDRINUSE && taken.size() < 8)
            connecting = start_connect(ns, server, options, taken);
        taken.clear();
        if (!connecting) co_return std::unexpected(unreachable("cannot reach it", connecting.error()));
        greeted.watch = std::move(connecting->watch);
        greeted.socket = Descriptor(poller, std::move(connecting->socket));
        if (!greeted.socket) co_return std::unexpected(unreachable("cannot watch its socket", errno));
    }
    greeted.client.server = &server.uri;
    const DialScope scope(handle, greeted.socket, false);
    auto said = co_await in_time(poller, greeted.socket, handle, limit, open(greeted.socket, greeted.client, scope));
    if (!said) co_return std::unexpected(std::move(said.error()));
    greeted.said = std::move(*said);
    co_return std::move(greeted);
}

asio::awaitable<std::expected<Dialled, DialRefusal>> ask(Poller& poller, Greeted greeted, const mproto_endpoint& destination,
                                                         DialHandle& handle, std::chrono::milliseconds limit) {
    auto& socket = greeted.socket;
    auto& client = greeted.client;
    if (mproto_client_request(&client, &destination, scratch().out, &scratch().out_size) == MPROTO_REFUSED)
        co_return std::unexpected(refusal_of(client));
    const DialScope scope(handle, socket, true);
    if (const int error = co_await send_message(socket)) {
        auto why = unreachable("lost it during the handshake", error);
        why.unheard = true;
        co_return std::unexpected(std::move(why));
    }
    auto early = co_await in_time(poller, socket, handle, limit, converse(socket, client, scope, MPROTO_DONE, std::move(greeted.said)));
    if (!early) co_return std::unexpected(std::move(early.error()));
    co_return Dialled{.socket = std::move(socket), .watch = std::move(greeted.watch), .early = std::move(*early)};
}

mproto_client greeted_client(const Server& server) {
    mproto_client client;
    Bytes said{SOCKS5, 0};
    mproto_client_start(&client, &server.uri, nullptr, scratch().out, &scratch().out_size);
    feed(client, said);
    return client;
}

std::optional<DialRefusal> cannot_carry(const Server& server, const mproto_endpoint& destination) {
    mproto_client client;
    Scratch& buffers = scratch();
    if (mproto_client_start(&client, &server.uri, &destination, buffers.out, &buffers.out_size) != MPROTO_REFUSED) return {};
    return refusal_of(client);
}

}  // namespace mprox
