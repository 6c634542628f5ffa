// SPDX-License-Identifier: MIT
#include "engine/relay.hpp"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <asio/error.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <unordered_set>
#include <utility>
#include <vector>

namespace mprox {
namespace {

// Bytes one splice may take from a socket. Also the bound of what a direction holds while its reader sleeps.
constexpr std::size_t chunk = 512 * 1024;
// Slots: large enough that a chunk of page-sized fragments fits.
constexpr int pipe_bytes = 512 * 1024;
// A read shorter than this has most likely emptied the socket: waiting costs less than trying again.
constexpr ssize_t short_read = 32 * 1024;
// Chunks one direction may move before the other flows of this thread get their turn.
constexpr int turn = 8;
constexpr std::size_t pipes_kept = 64;
// Up to so many bytes cost less to copy than to send their pages through a pipe. Whoever sends more at once is spliced.
constexpr std::size_t small = 8 * 1024;

struct Pipe {
    Fd out, in;
};

// A path that has died without a word must end the pair, and so must an application's socket that was closed long ago
// while the server says nothing. Most pairs are gone before that matters: those that are still there after this time
// are seen to.
constexpr auto long_lived = std::chrono::seconds(30);

void keep_alive(int fd) {
    const auto set = [fd](int level, int option, int value) { ::setsockopt(fd, level, option, &value, sizeof value); };
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, 120);  // seconds; how often and how long is the system's choice
}

struct Side {
    explicit Side(asio::posix::stream_descriptor socket) : fd(std::move(socket)) {}
    asio::posix::stream_descriptor fd;
    // The direction that starts here.
    Pipe pipe;
    std::size_t in_pipe = 0;
    std::uint64_t moved = 0;
    bool streams = false;  // has lately sent more at once than is copied
    bool ended = false;  // the peer will send no more
    bool passed = false;  // and the other side has been told
    // What is being waited for; at most one wait of a kind.
    bool waiting_read = false, waiting_write = false, waiting_error = false;
};

}  // namespace

namespace {
struct Pair;
}

struct Relay::State {
    State(asio::io_context& context, std::optional<Totals> counters) : io(context), totals(counters) {}
    asio::io_context& io;
    std::optional<Totals> totals;
    std::vector<Pipe> spare;
    std::unordered_set<std::shared_ptr<Pair>> pairs;
    asio::steady_timer watch{io};
    bool watching = false;

    void watch_long_lived();
};

namespace {

struct Pair : std::enable_shared_from_this<Pair> {
    Pair(Relay::State& owner, asio::posix::stream_descriptor a, asio::posix::stream_descriptor b, Relay::Done done)
        : state(&owner), sides{Side(std::move(a)), Side(std::move(b))}, on_done(std::move(done)) {}

    Relay::State* state;  // null once the pair has ended
    bool kept_alive = false;
    std::array<Side, 2> sides;
    Relay::Done on_done;

    void start() {
        for (Side& side : sides) {
            // Whatever kills us, the peers must not take a cut stream for a finished one.
            reset_on_close(side.fd.native_handle());
            // An urgent byte would otherwise stop splice for ever.
            const int on = 1;
            ::setsockopt(side.fd.native_handle(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
        }
        wait_read(0);
        wait_read(1);
    }

    void wait_read(int from) {
        Side& side = sides[from];
        if (side.waiting_read) return;
        side.waiting_read = true;
        side.fd.async_wait(asio::posix::descriptor_base::wait_read, [self = shared_from_this(), from](std::error_code) {
            self->sides[from].waiting_read = false;
            if (self->state) self->pump(from, true);
        });
    }

    void wait_write(int from) {
        Side& to = sides[1 - from];
        if (to.waiting_write) return;
        to.waiting_write = true;
        to.fd.async_wait(asio::posix::descriptor_base::wait_write, [self = shared_from_this(), from](std::error_code) {
            self->sides[1 - from].waiting_write = false;
            if (self->state) self->pump(from, false);
        });
    }

    // While nothing is read from a side its reset must still be seen, and passed on at once.
    void wait_error(int from) {
        Side& side = sides[from];
        if (side.waiting_error || side.waiting_read) return;
        side.waiting_error = true;
        side.fd.async_wait(asio::posix::descriptor_base::wait_error, [self = shared_from_this(), from](std::error_code) {
            Side& woken = self->sides[from];
            woken.waiting_error = false;
            if (!self->state) return;
            pollfd poll{.fd = woken.fd.native_handle(), .events = 0, .revents = 0};
            if (::poll(&poll, 1, 0) == 1 && (poll.revents & POLLERR)) self->finish(self->pending_error(from));
        });
    }

    int pending_error(int from) {
        int error = 0;
        socklen_t size = sizeof error;
        ::getsockopt(sides[from].fd.native_handle(), SOL_SOCKET, SO_ERROR, &error, &size);
        return error ? error : ECONNRESET;
    }

    bool borrow_pipe(Side& side) {
        if (side.pipe.out) return true;
        if (!state->spare.empty()) {
            side.pipe = std::move(state->spare.back());
            state->spare.pop_back();
            return true;
        }
        int ends[2];
        if (::pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return false;
        side.pipe = {Fd(ends[0]), Fd(ends[1])};
        ::fcntl(ends[1], F_SETPIPE_SZ, pipe_bytes);  // a smaller one works too
        return true;
    }

    void return_pipe(Side& side) {
        if (!side.pipe.out || side.in_pipe > 0) return;
        if (state->spare.size() < pipes_kept)
            state->spare.push_back(std::move(side.pipe));
        else
            side.pipe = {};
    }

    // Passes on what has arrived, if that is little; what the other side does not take at once stays in the pipe.
    // 0 at the end of the stream; -1 with errno.
    ssize_t copy(int from) {
        Side& side = sides[from];
        char bytes[small];
        const ssize_t n = ::recv(side.fd.native_handle(), bytes, sizeof bytes, MSG_DONTWAIT);
        if (n <= 0) return n;
        side.streams = static_cast<std::size_t>(n) == sizeof bytes;
        const ssize_t sent = std::max<ssize_t>(
            0, ::send(sides[1 - from].fd.native_handle(), bytes, static_cast<std::size_t>(n), MSG_NOSIGNAL | MSG_DONTWAIT));
        count(from, static_cast<std::uint64_t>(sent));
        // An empty pipe has room. If the other side is broken, splice will hear it.
        side.in_pipe = static_cast<std::size_t>(n - sent);
        if (sent < n && ::write(side.pipe.in.get(), bytes + sent, side.in_pipe) != n - sent) return -1;
        return n;
    }

    // Takes what has arrived into the pipe. As copy().
    ssize_t take(Side& side, bool told_readable) {
        const int fd = side.fd.native_handle();
        ssize_t n = ::splice(fd, nullptr, side.pipe.in.get(), nullptr, chunk, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n == 0 || (n < 0 && errno == EAGAIN && told_readable)) {
            // splice stops in front of an urgent byte, and calls it the end if the peer has finished; recv knows.
            char byte;
            n = ::recv(fd, &byte, 1, MSG_DONTWAIT);
            if (n == 1) n = ::write(side.pipe.in.get(), &byte, 1);
        }
        side.streams = n >= static_cast<ssize_t>(small);
        side.in_pipe = n > 0 ? static_cast<std::size_t>(n) : 0;
        return n;
    }

    void count(int from, std::uint64_t bytes) {
        sides[from].moved += bytes;
        if (state->totals)
            (from == 0 ? state->totals->a_to_b : state->totals->b_to_a).fetch_add(bytes, std::memory_order_relaxed);
    }

    // Moves bytes from one side to the other until there are none, or they cannot be passed on, or it is
    // somebody else's turn.
    void pump(int from, bool told_readable) {
        Side& side = sides[from];
        Side& to = sides[1 - from];
        // Out of descriptors: the bytes go the slow way, but they go.
        if (!borrow_pipe(side)) return pump_by_copy(from);
        for (int moved = 0; moved < turn; moved++) {
            bool emptied = false;
            if (side.in_pipe == 0 && !side.ended) {
                const ssize_t least = side.streams ? short_read : static_cast<ssize_t>(small);
                const ssize_t n = side.streams ? take(side, told_readable) : copy(from);
                told_readable = false;
                if (n < 0) {
                    if (errno != EAGAIN && errno != EINTR) return finish(errno);
                    break;
                }
                side.ended = n == 0;
                emptied = n > 0 && n < least;
            }
            while (side.in_pipe > 0) {
                const ssize_t n = ::splice(side.pipe.out.get(), nullptr, to.fd.native_handle(), nullptr, side.in_pipe,
                                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
                if (n < 0 && errno == EINTR) continue;
                if (n < 0 && errno == EAGAIN) {
                    wait_error(from);
                    return wait_write(from);
                }
                if (n < 0) return finish(errno);
                side.in_pipe -= static_cast<std::size_t>(n);
                count(from, static_cast<std::uint64_t>(n));
            }
            if (side.ended) {
                return_pipe(side);
                return end_direction(from);
            }
            if (emptied) break;
        }
        return_pipe(side);
        wait_read(from);
    }

    // Without a pipe: looks at what has arrived, passes on what the other side takes, and only that is taken away.
    // So nothing is held here, whoever sleeps.
    void pump_by_copy(int from) {
        Side& side = sides[from];
        Side& to = sides[1 - from];
        char buffer[16384];
        const ssize_t seen = ::recv(side.fd.native_handle(), buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT);
        if (seen < 0) return errno == EAGAIN || errno == EINTR ? wait_read(from) : finish(errno);
        if (seen == 0) {
            side.ended = true;
            return end_direction(from);
        }
        const ssize_t sent = ::send(to.fd.native_handle(), buffer, static_cast<std::size_t>(seen), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            wait_error(from);
            return wait_write(from);
        }
        if (sent < 0) return finish(errno);
        // MSG_TRUNC: taken away, not copied (tcp(7)).
        ::recv(side.fd.native_handle(), nullptr, static_cast<std::size_t>(sent), MSG_TRUNC | MSG_DONTWAIT);
        count(from, static_cast<std::uint64_t>(sent));
        wait_read(from);
    }

    // This side will send no more, and all it sent has been passed on.
    void end_direction(int from) {
        Side& side = sides[from];
        Side& to = sides[1 - from];
        const bool told = std::exchange(side.passed, true);
        if (to.passed) return finish(0);  // which closes the other side: that tells it as well
        if (!told) ::shutdown(to.fd.native_handle(), SHUT_WR);
        wait_error(from);
    }

    void finish(int error) {
        const RelayEnd end{.a_to_b = sides[0].moved, .b_to_a = sides[1].moved, .error = error};
        close(error == 0);
        if (on_done) on_done(end);
    }

    void close(bool cleanly) {
        const auto self = shared_from_this();
        for (Side& side : sides) {
            if (cleanly) reset_on_close(side.fd.native_handle(), false);
            return_pipe(side);
            std::error_code ignored;
            side.fd.close(ignored);
        }
        state->pairs.erase(self);
        state = nullptr;
    }
};

}  // namespace

void Relay::State::watch_long_lived() {
    if (std::exchange(watching, true)) return;
    watch.expires_after(long_lived);
    watch.async_wait([this](std::error_code error) {
        if (error) return;  // we are gone
        for (const auto& pair : pairs) {
            if (std::exchange(pair->kept_alive, true)) continue;
            for (Side& side : pair->sides) keep_alive(side.fd.native_handle());
        }
        watching = false;
    });
}

Relay::Relay(asio::io_context& io, std::optional<Totals> totals) : state_(std::make_unique<State>(io, totals)) {}

Relay::~Relay() {
    while (!state_->pairs.empty()) {
        const auto pair = *state_->pairs.begin();
        pair->on_done = nullptr;
        pair->close(false);
    }
}

void Relay::join(Fd a, Fd b, Done done) {
    join(asio::posix::stream_descriptor(state_->io, a.release()), asio::posix::stream_descriptor(state_->io, b.release()),
         std::move(done));
}

void Relay::join(asio::posix::stream_descriptor a, asio::posix::stream_descriptor b, Done done) {
    const auto pair = std::make_shared<Pair>(*state_, std::move(a), std::move(b), std::move(done));
    state_->pairs.insert(pair);
    state_->watch_long_lived();
    pair->start();
}

std::size_t Relay::unsent() const {
    std::size_t sum = 0;
    for (const auto& pair : state_->pairs)
        for (Side& side : pair->sides) {
            int bytes = 0;
            if (::ioctl(side.fd.native_handle(), SIOCOUTQ, &bytes) == 0) sum += static_cast<std::size_t>(bytes);
        }
    return sum;
}

std::size_t Relay::active() const { return state_->pairs.size(); }

}  // namespace mprox
