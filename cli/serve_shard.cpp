// SPDX-License-Identifier: MIT
#include "cli/serve_shard.hpp"

#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <asio/co_spawn.hpp>
#include <asio/detached.hpp>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace mprox {
namespace {

using namespace std::chrono_literals;

// A paused listener looks again after this time even when none of its own shard's connections has ended: the
// room may have come from another shard, or from outside.
constexpr auto rest_time = 100ms;
// Clients accepted before the sessions get their turn.
constexpr int batch = 64;

// Says it once a second at most, over all shards.
void complain(std::string_view why) {
    static std::atomic<std::int64_t> last = -1;
    const auto now =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch())
            .count();
    auto before = last.load();
    if (before != now && last.compare_exchange_strong(before, now))
        spdlog::warn("mprox serve: {}; new clients wait until a connection ends", why);
}

std::string text_of(const sockaddr_storage& address) {
    const mproto_endpoint at = to_endpoint(address);
    char text[MPROTO_TEXT_MAX];
    return {text, mproto_endpoint_format(&at, text)};
}

}  // namespace

ServeShard::ServeShard(const ServeSettings& settings, ServeLimit& limit) : settings_(settings), limit_(limit) {}

ServeShard::~ServeShard() { ending_ = true; }

void ServeShard::listen(Fd socket) {
    auto& listener = listeners_.emplace_back(poller_, std::move(socket));
    if (!listener.socket) throw std::system_error(errno, std::generic_category(), "cannot watch a listening socket");
    asio::co_spawn(poller_.handlers(), accept(listener), asio::detached);
}

void ServeShard::slot_freed() {
    limit_.now--;
    if (ending_) return;  // the listeners may be gone already
    for (auto& listener : listeners_)
        listener.pause.hasten();
}

asio::awaitable<void> ServeShard::accept(Listener& listener) {
    for (int accepted = 0;;) {
        if (++accepted % batch == 0) co_await yield(poller_);
        if (++limit_.now > limit_.most) {
            limit_.now--;
            complain("the limit of " + std::to_string(limit_.most) + " connections is reached");
            co_await sleep(listener.pause, rest_time);
            continue;
        }
        sockaddr_storage address{};
        socklen_t size = sizeof address;
        Fd client(::accept4(listener.socket.get(), reinterpret_cast<sockaddr*>(&address), &size,
                            SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (client) {
            auto peer = settings_.verbose ? text_of(address) : std::string();
            asio::co_spawn(
                poller_.handlers(), serve_session(poller_, relay_, names_, settings_, std::move(client), std::move(peer), ServeSlot(*this)),
                asio::detached);
            continue;
        }
        const int error = errno;
        limit_.now--;
        if (error == EAGAIN) {
            listener.socket.would_block(Descriptor::reading);
            co_await listener.socket.wait(Descriptor::reading);
        } else if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM) {
            complain(std::string("cannot accept: ") + std::strerror(error));
            co_await sleep(listener.pause, rest_time);
        }
        // Anything else is an error of the one connection that was to be accepted (accept(2)).
    }
}

}  // namespace mprox
