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
// Chunks one direction may move before the other flows of this thread get their turn.
constexpr int turn = 8;
constexpr std::size_t pipes_kept = 64;
// Up to so many bytes cost less to copy than to send their pages through a pipe. Whoever sends more at once is spliced.
constexpr std::size_t small = 8 * 1024;
// Up to so many bytes go through a connection whose sockets are used again.
constexpr std::uint64_t short_most = 64 * 1024;

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
    explicit Side(Descriptor socket) : fd(std::move(socket)) {}
    Descriptor fd;
    // The direction that starts here.
    Pipe pipe;
    std::size_t in_pipe = 0;
    std::uint64_t moved = 0;
    int writes = 0;        // to this side; counted up to two
    bool streams = false;  // has lately sent more at once than is copied
    bool blocked = false;  // until the other side takes more
    bool waits = false;    // for its next turn
    bool ended = false;    // the peer will send no more
    bool passed = false;   // and the other side has been told
    bool told = false;     // this side, that the other one has ended
};

}  // namespace

namespace {
struct Pair;
}

struct Relay::State {
    State(Poller& owner, std::optional<Totals> counters) : poller(owner), totals(counters) {}
    Poller& poller;
    std::optional<Totals> totals;
    std::vector<Pipe> spare;
    std::unordered_set<std::shared_ptr<Pair>> pairs;
    Timer watch{poller};

    void watch_long_lived();
};

namespace {

struct Pair : std::enable_shared_from_this<Pair> {
    Pair(Relay::State& owner, Descriptor a, Descriptor b, Relay::Done done, Relay::Reuse reuse)
        : state(&owner), sides{Side(std::move(a)), Side(std::move(b))}, on_done(std::move(done)), on_reuse(std::move(reuse)) {}

    Relay::State* state;  // null once the pair has ended
    bool kept_alive = false;
    std::array<Side, 2> sides;
    Relay::Done on_done;
    Relay::Reuse on_reuse;

    void start() {
        for (Side& side : sides) {
            // Whatever kills us, the peers must not take a cut stream for a finished one.
            reset_on_close(side.fd.get());
            if (side.fd.renewals() > 0) continue;
            // An urgent byte would otherwise stop splice for ever.
            const int on = 1;
            ::setsockopt(side.fd.get(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
        }
        const auto self = shared_from_this();
        for (const int side : {0, 1}) sides[side].fd.listen([this, side](std::uint32_t events) { happened(side, events); });
        for (const int side : {0, 1}) {
            if (state && sides[side].fd.is(Descriptor::reading)) pump(side);  // it came before
            notice_error(side);
        }
    }

    void happened(int at, std::uint32_t events) {
        const auto self = shared_from_this();
        Side& side = sides[at];
        notice_error(at);
        if (state && (events & Descriptor::reading) && !side.ended && !side.blocked) pump(at);
        if (state && (events & EPOLLOUT) && std::exchange(sides[1 - at].blocked, false)) pump(1 - at);
        notice_error(at);
    }

    // While nothing is read from a side its reset must still be seen, and passed on at once.
    void notice_error(int at) {
        if (state && (sides[at].ended || sides[at].blocked) && sides[at].fd.is(EPOLLERR)) finish(error_of(at));
    }

    // After the other flows of this thread.
    void take_turn(int from) {
        if (std::exchange(sides[from].waits, true)) return;
        state->poller.defer([self = shared_from_this(), from] {
            self->sides[from].waits = false;
            if (self->state && !self->sides[from].blocked && !self->sides[from].ended) self->pump(from);
            self->notice_error(from);
        });
    }

    int error_of(int side) {
        const int error = pending_error(sides[side].fd.get());
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

    // Nagle's algorithm never holds the first write back, and many connections see no more than that.
    void before_write(Side& to) {
        if (to.writes < 2 && ++to.writes == 2) send_without_delay(to.fd.get());
    }

    // Passes on what has arrived, if that is little; what the other side does not take at once stays in the pipe.
    // 0 at the end of the stream; -1 with errno.
    ssize_t copy(int from) {
        Side& side = sides[from];
        std::uint8_t bytes[small];
        const ssize_t n = side.fd.receive(bytes);
        if (n <= 0) return n;
        side.streams = static_cast<std::size_t>(n) == sizeof bytes;
        before_write(sides[1 - from]);
        const ssize_t sent = std::max<ssize_t>(0, sides[1 - from].fd.send(std::span(bytes).first(static_cast<std::size_t>(n))));
        count(from, static_cast<std::uint64_t>(sent));
        // An empty pipe has room. If the other side is broken, splice will hear it.
        side.in_pipe = static_cast<std::size_t>(n - sent);
        if (sent < n && ::write(side.pipe.in.get(), bytes + sent, side.in_pipe) != n - sent) return -1;
        return n;
    }

    // Takes what has arrived into the pipe. As copy(). `first`: since something was reported.
    ssize_t take(Side& side, bool first) {
        const int fd = side.fd.get();
        ssize_t n = ::splice(fd, nullptr, side.pipe.in.get(), nullptr, chunk, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n == 0 || (n < 0 && errno == EAGAIN && (first || side.fd.is(EPOLLPRI)))) {
            // splice stops in front of an urgent byte, and calls it the end if the peer has finished; recv knows.
            char byte;
            n = ::recv(fd, &byte, 1, MSG_DONTWAIT);
            if (n == 1) n = ::write(side.pipe.in.get(), &byte, 1);
        }
        if (n < 0 && errno == EAGAIN) side.fd.would_block(Descriptor::reading);
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
    void pump(int from) {
        Side& side = sides[from];
        // Out of descriptors: the bytes go the slow way, but they go.
        if (!borrow_pipe(side)) return pump_by_copy(from);
        bool first = true;
        for (int moved = 0; moved < turn; moved++) {
            if (side.in_pipe == 0 && !side.ended) {
                if (!side.fd.is(Descriptor::reading)) break;
                const ssize_t n = side.streams ? take(side, first) : copy(from);
                first = false;
                if (n < 0) {
                    if (errno == EINTR) continue;
                    if (errno != EAGAIN) return finish(errno);
                    break;
                }
                side.ended = n == 0;
            }
            while (side.in_pipe > 0) {
                before_write(sides[1 - from]);
                const ssize_t n = ::splice(side.pipe.out.get(), nullptr, sides[1 - from].fd.get(), nullptr, side.in_pipe,
                                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
                if (n < 0 && errno == EINTR) continue;
                if (n < 0 && errno == EAGAIN) return block(from);
                if (n < 0) return finish(errno);
                side.in_pipe -= static_cast<std::size_t>(n);
                count(from, static_cast<std::uint64_t>(n));
            }
            if (side.ended) {
                return_pipe(side);
                return end_direction(from);
            }
        }
        return_pipe(side);
        if (side.fd.is(Descriptor::reading)) take_turn(from);
    }

    // Until the other side has room.
    void block(int from) {
        sides[1 - from].fd.would_block(EPOLLOUT);
        sides[from].blocked = true;
    }

    // Without a pipe: looks at what has arrived, passes on what the other side takes, and only that is taken away.
    // So nothing is held here, whoever sleeps.
    void pump_by_copy(int from) {
        Side& side = sides[from];
        Side& to = sides[1 - from];
        char buffer[16384];
        const ssize_t seen = ::recv(side.fd.get(), buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT);
        if (seen < 0 && errno == EAGAIN) return side.fd.would_block(Descriptor::reading);
        if (seen < 0 && errno != EINTR) return finish(errno);
        if (seen == 0) {
            side.ended = true;
            return end_direction(from);
        }
        if (seen > 0) {
            before_write(to);
            const ssize_t sent = ::send(to.fd.get(), buffer, static_cast<std::size_t>(seen), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent < 0 && errno == EAGAIN) return block(from);
            if (sent < 0 && errno != EINTR) return finish(errno);
            if (sent > 0) {
                // MSG_TRUNC: taken away, not copied (tcp(7)).
                ::recv(side.fd.get(), nullptr, static_cast<std::size_t>(sent), MSG_TRUNC | MSG_DONTWAIT);
                count(from, static_cast<std::uint64_t>(sent));
            }
        }
        take_turn(from);
    }

    // This side will send no more, and all it sent has been passed on.
    void end_direction(int from) {
        Side& side = sides[from];
        Side& to = sides[1 - from];
        side.passed = true;
        if (to.passed) return finish(0);  // which closes the other side: that tells it as well
        tell_end(to);
    }

    void tell_end(Side& side) {
        if (!std::exchange(side.told, true)) ::shutdown(side.fd.get(), SHUT_WR);
    }

    void finish(int error) {
        const RelayEnd end{.a_to_b = sides[0].moved, .b_to_a = sides[1].moved, .error = error};
        close(error == 0);
        if (on_done) on_done(end);
    }

    void close(bool cleanly) {
        const auto self = shared_from_this();
        bool any_left = false;
        for (Side& side : sides) {
            return_pipe(side);
            if (cleanly) reset_on_close(side.fd.get(), false);
            if (cleanly && on_reuse && was_short() && disconnect(side)) {
                any_left = true;
                continue;
            }
            side.fd.close();
        }
        // What is reported of them in this turn is still for us, who have forgotten them.
        if (any_left) state->poller.defer([self] { self->give_back(); });
        state->pairs.erase(self);
        state = nullptr;
    }

    // The buffers of a socket grow with what goes through it, and stay.
    bool was_short() const { return !kept_alive && sides[0].moved + sides[1].moved <= short_most; }

    // A socket whose peer has acknowledged all, the end as well, may connect once more. It keeps its options, and its sequence
    // numbers go on from where they are. False: it has to be closed.
    bool disconnect(Side& side) {
        tell_end(side);
        tcp_info info{};
        socklen_t size = sizeof info;
        const int fd = side.fd.get();
        const sockaddr nobody{.sa_family = AF_UNSPEC, .sa_data = {}};
        return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_state == TCP_CLOSE && pending_error(fd) == 0 &&
               ::connect(fd, &nobody, sizeof nobody) == 0;
    }

    void give_back() {
        for (Side& side : sides)
            if (side.fd) side.fd.listen(nullptr);
        on_reuse(std::move(sides[0].fd), std::move(sides[1].fd));
    }
};

}  // namespace

void Relay::State::watch_long_lived() {
    if (watch.started()) return;
    watch.start(long_lived, [this] {
        for (const auto& pair : pairs) {
            if (std::exchange(pair->kept_alive, true)) continue;
            for (Side& side : pair->sides) keep_alive(side.fd.get());
        }
    });
}

Relay::Relay(Poller& poller, std::optional<Totals> totals) : state_(std::make_unique<State>(poller, totals)) {}

Relay::~Relay() {
    while (!state_->pairs.empty()) {
        const auto pair = *state_->pairs.begin();
        pair->on_done = nullptr;
        pair->close(false);
    }
}

void Relay::join(Descriptor a, Descriptor b, Done done, Reuse reuse) {
    const auto pair = std::make_shared<Pair>(*state_, std::move(a), std::move(b), std::move(done), std::move(reuse));
    state_->pairs.insert(pair);
    state_->watch_long_lived();
    pair->start();
}

std::size_t Relay::unsent() const {
    std::size_t sum = 0;
    for (const auto& pair : state_->pairs)
        for (Side& side : pair->sides) {
            int bytes = 0;
            if (::ioctl(side.fd.get(), SIOCOUTQ, &bytes) == 0) sum += static_cast<std::size_t>(bytes);
        }
    return sum;
}

std::size_t Relay::active() const { return state_->pairs.size(); }

}  // namespace mprox
