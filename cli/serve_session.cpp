// SPDX-License-Identifier: MIT
#include "cli/serve_session.hpp"

#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

namespace mprox {
namespace {

using namespace std::chrono_literals;

// A refused client is listened to a little longer: closing over unread bytes resets the connection, and the
// reset can overtake the reply.
constexpr auto drain_time = 2s;
constexpr std::size_t drain_bytes = 256 * 1024;

mproto_reason reason_of(int error) {
    switch (error) {
        case 0:
            return MPROTO_OK;
        case ECONNREFUSED:
            return MPROTO_CONNECTION_REFUSED;
        case EHOSTUNREACH:
        case EHOSTDOWN:
            return MPROTO_HOST_UNREACHABLE;
        case ENETUNREACH:
        case ENETDOWN:
        case EAFNOSUPPORT:
            return MPROTO_NETWORK_UNREACHABLE;
        case ETIMEDOUT:
            return MPROTO_TIMED_OUT;
        case EACCES:
        case EPERM:
            return MPROTO_NOT_ALLOWED;
        default:
            return MPROTO_GENERAL_FAILURE;
    }
}

struct Session {
    Session(Poller& owner, Names& resolver, const ServeSettings& given, Fd fd, std::string name)
        : settings(given),
          poller(owner),
          client(poller, std::move(fd)),
          names(resolver),
          deadline(poller),
          peer(std::move(name)) {
        mproto_acceptor_start(&acceptor, settings.required ? &*settings.required : nullptr);
    }

    const ServeSettings& settings;
    Poller& poller;
    Descriptor client, upstream;
    Names& names;
    std::weak_ptr<Lookup> lookup;  // under way
    Timer deadline;
    bool expired = false;
    bool was_reset = false;  // by the destination, as soon as it was connected
    std::string peer;
    mproto_acceptor acceptor;
    std::array<std::uint8_t, 2048> in;
    std::array<std::uint8_t, MPROTO_OUT_MAX> out;
    std::span<const std::uint8_t> early;  // of `in`: what came after the request, the destination's first bytes

    void log(std::string_view what) const {
        if (!settings.verbose) return;
        if (!acceptor.protocol) return spdlog::info("{} {}", peer, what);
        const auto* protocol = mproto_protocol_text(static_cast<mproto_protocol>(acceptor.protocol));
        if (acceptor.destination.kind == MPROTO_HOST_NONE) return spdlog::info("{} {} {}", peer, protocol, what);
        char destination[MPROTO_TEXT_MAX];
        mproto_endpoint_format(&acceptor.destination, destination);
        spdlog::info("{} {} {} {}", peer, protocol, destination, what);
    }

    void allow(std::chrono::steady_clock::duration time) {
        expired = false;
        deadline.start(time, [this] {
            expired = true;
            client.cancel();
            upstream.cancel();
            if (const auto under_way = lookup.lock()) under_way->cancel();
        });
    }

    // False when the time is up.
    asio::awaitable<bool> ready(Descriptor& descriptor, std::uint32_t events) {
        if (expired) co_return false;
        bool happened = descriptor.is(events);
        if (!happened) happened = co_await descriptor.wait(events);
        co_return happened && !expired;
    }

    // As recv(2), but never EAGAIN: waits. ETIMEDOUT when the time is up.
    asio::awaitable<ssize_t> receive(std::span<std::uint8_t> into) {
        for (;;) {
            const ssize_t n = client.receive(into);
            if (n >= 0 || (errno != EAGAIN && errno != EINTR)) co_return n;
            const bool more = co_await ready(client, Descriptor::reading);
            if (!more) {
                errno = ETIMEDOUT;
                co_return -1;
            }
        }
    }

    asio::awaitable<bool> send(Descriptor& to, std::span<const std::uint8_t> bytes) {
        while (!bytes.empty()) {
            const ssize_t n = to.send(bytes);
            if (n >= 0) {
                bytes = bytes.subspan(static_cast<std::size_t>(n));
                continue;
            }
            if (errno != EAGAIN && errno != EINTR) co_return false;
            const bool room = co_await ready(to, Descriptor::writing);
            if (!room) co_return false;
        }
        co_return true;
    }

    asio::awaitable<void> drain() {
        ::shutdown(client.get(), SHUT_WR);
        allow(drain_time);
        for (std::size_t total = 0; total < drain_bytes;) {
            const ssize_t n = co_await receive(in);
            if (n <= 0) break;
            total += static_cast<std::size_t>(n);
        }
    }

    // True when a request stands in the acceptor.
    asio::awaitable<bool> handshake() {
        allow(settings.timeout);
        for (;;) {
            const ssize_t n = co_await receive(in);
            if (n <= 0) {
                log(n == 0    ? "closed before it asked for anything"
                    : expired ? "did not finish its request in time"
                              : "broke before it asked for anything");
                co_return false;
            }
            early = std::span(in).first(static_cast<std::size_t>(n));
            auto progress = MPROTO_MORE;
            while (progress == MPROTO_MORE && !early.empty()) {
                std::size_t consumed = 0, length = 0;
                progress =
                    mproto_acceptor_feed(&acceptor, early.data(), early.size(), &consumed, out.data(), &length);
                early = early.subspan(consumed);
                const bool sent = co_await send(client, std::span(out).first(length));
                if (!sent) co_return false;
            }
            if (progress == MPROTO_DONE) co_return true;
            if (progress == MPROTO_REFUSED) {
                acceptor.destination.kind = MPROTO_HOST_NONE;
                log("turned away: its request is not allowed or not understood");
                co_await drain();
                co_return false;
            }
        }
    }

    // The errno of connect(2). A destination that was connected and has reset the connection at once was connected: what
    // a client is told is that, and then the reset.
    asio::awaitable<int> connect(mproto_endpoint to) {
        const sockaddr_storage address = to_sockaddr(to);
        Fd socket(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!socket) co_return errno;
        const int fd = socket.get();
        const socklen_t size = address.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
        const bool at_once = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0;
        if (!at_once && errno != EINPROGRESS) co_return errno;
        upstream = Descriptor(poller, std::move(socket));
        if (!upstream) co_return errno;
        if (at_once) co_return 0;
        const bool answered = co_await ready(upstream, Descriptor::writing);
        if (!answered) co_return ETIMEDOUT;
        const int error = pending_error(fd);
        was_reset = error == ECONNRESET;
        co_return was_reset ? 0 : error;
    }

    asio::awaitable<std::vector<mproto_endpoint>> addresses() {
        mproto_endpoint to = acceptor.destination;
        std::vector<mproto_endpoint> found;
        // Clients that leave names to the server send addresses as names, too.
        if (to.kind != MPROTO_HOST_NAME || mproto_ip_parse(to.name, to.name_len, &to)) {
            found.push_back(to);
            co_return found;
        }
        const auto known = co_await names.find(std::string(to.name, to.name_len), lookup);
        for (const sockaddr_storage& address : known) {
            found.push_back(to_endpoint(address));
            found.back().port = to.port;
        }
        co_return found;
    }

    asio::awaitable<mproto_reason> reach() {
        allow(settings.timeout);
        const auto candidates = co_await addresses();
        if (candidates.empty()) co_return expired ? MPROTO_TIMED_OUT : MPROTO_NAME_UNKNOWN;
        int failure = ENETUNREACH;
        for (const auto& candidate : candidates) {
            const int error = co_await connect(candidate);
            if (error == 0) co_return MPROTO_OK;
            // That there is no way to one family says nothing of the host when the other family had an answer.
            if (error != ENETUNREACH && error != EAFNOSUPPORT) failure = error;
            if (expired) break;
        }
        co_return reason_of(failure);
    }
};

}  // namespace

mproto_endpoint to_endpoint(const sockaddr_storage& address) {
    mproto_endpoint at{};
    if (address.ss_family == AF_INET) {
        const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
        at.kind = MPROTO_HOST_IPV4;
        at.port = ntohs(v4.sin_port);
        std::memcpy(at.ip, &v4.sin_addr, 4);
    } else if (address.ss_family == AF_INET6) {
        const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
        at.kind = MPROTO_HOST_IPV6;
        at.port = ntohs(v6.sin6_port);
        std::memcpy(at.ip, &v6.sin6_addr, 16);
    }
    return at;
}

sockaddr_storage to_sockaddr(const mproto_endpoint& at) {
    sockaddr_storage storage{};
    if (at.kind == MPROTO_HOST_IPV4) {
        auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
        v4.sin_family = AF_INET;
        v4.sin_port = htons(at.port);
        std::memcpy(&v4.sin_addr, at.ip, 4);
    } else {
        auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(at.port);
        std::memcpy(&v6.sin6_addr, at.ip, 16);
    }
    return storage;
}

asio::awaitable<void> serve_session(Poller& poller, Relay& relay, Names& names, const ServeSettings& settings, Fd client,
                                    std::string peer, ServeSlot slot) {
    const auto session = std::make_unique<Session>(poller, names, settings, std::move(client), std::move(peer));
    if (!session->client) co_return;
    const bool asked = co_await session->handshake();
    if (!asked) co_return;

    const mproto_reason reason = co_await session->reach();
    mproto_endpoint bound{};
    if (reason == MPROTO_OK) {
        sockaddr_storage local{};
        socklen_t size = sizeof local;
        ::getsockname(session->upstream.get(), reinterpret_cast<sockaddr*>(&local), &size);
        bound = to_endpoint(local);
        session->log("connected");
    } else {
        session->log(std::string("refused: ") + mproto_reason_text(reason));
    }
    std::size_t length = 0;
    mproto_acceptor_reply(&session->acceptor, reason, &bound, session->out.data(), &length);
    session->allow(settings.timeout);
    const bool told = co_await session->send(session->client, std::span(session->out).first(length));
    if (!told) co_return;
    if (reason != MPROTO_OK) {
        co_await session->drain();
        co_return;
    }
    if (session->was_reset) {
        reset_on_close(session->client.get());
        co_return;
    }
    if (!session->early.empty()) send_without_delay(session->upstream.get());
    const bool passed = co_await session->send(session->upstream, session->early);
    if (!passed) co_return;
    relay.join(std::move(session->client), std::move(session->upstream),
               [held = std::move(slot)](const RelayEnd&) {});
}

}  // namespace mprox
