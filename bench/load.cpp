// SPDX-License-Identifier: MIT
// bench_load: the program whose connections are measured. Everything it does with a socket is what an ordinary
// program does, and it is linked dynamically, so that a preloaded library can serve it as well as a kernel hook.
#include "bench/load.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <latch>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

#include "bench/socks.hpp"
#include "engine/fd.hpp"

namespace bench {

sockaddr_storage address_of(const std::string& host, std::uint16_t port, Service service) {
    sockaddr_storage storage{};
    auto& address = reinterpret_cast<sockaddr_in&>(storage);
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port + static_cast<std::uint16_t>(service)));
    if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
        throw std::invalid_argument("not an IPv4 address: " + host);
    }
    return storage;
}

namespace {

using mprox::Fd;
using Clock = std::chrono::steady_clock;

struct Options {
    std::string mode;
    std::string host = "0.0.0.0";
    std::uint16_t port = 9000;
    double seconds = 1.0;
    double warmup = 0.2;
    double pause = 0;
    unsigned streams = 1;
    unsigned flows = 10000;
    std::optional<mproto_server> socks;
    bool attended = false;
};

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

void sleep_seconds(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

Fd open_socket(int flags = 0) {
    Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
    if (!fd) fail("socket");
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

bool connect_to(const Fd& fd, const Options& options, Service service) {
    const sockaddr_storage address = address_of(options.host, options.port, service);
    if (options.socks) {
        return connect_through(fd.get(), *options.socks, reinterpret_cast<const sockaddr_in&>(address));
    }
    return connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(sockaddr_in)) == 0;
}

/// One byte there and one byte back.
bool ping(const Fd& fd) {
    char byte = 'x';
    return write(fd.get(), &byte, 1) == 1 && read(fd.get(), &byte, 1) == 1;
}

/// Durations in microseconds, reported as mean and percentiles.
class Latencies {
  public:
    void add(Clock::time_point start) { values_.push_back(seconds_since(start) * 1e6); }
    void add(const Latencies& other) { values_.insert(values_.end(), other.values_.begin(), other.values_.end()); }
    [[nodiscard]] std::size_t count() const { return values_.size(); }
    [[nodiscard]] double mean() const {
        return values_.empty() ? 0 : std::accumulate(values_.begin(), values_.end(), 0.0) / values_.size();
    }
    [[nodiscard]] double percentile(double p) {
        if (values_.empty()) return 0;
        const auto nth = values_.begin() + static_cast<std::ptrdiff_t>(p * (values_.size() - 1));
        std::nth_element(values_.begin(), nth, values_.end());
        return *nth;
    }

  private:
    std::vector<double> values_;
};

/// Moves bytes over N streams, one thread each. What is in flight before and after the measured window is the same,
/// so bytes counted at this end are bytes that went through.
void bulk(const Options& options, bool down) {
    struct alignas(64) Stream {
        Fd fd;
        std::atomic<std::uint64_t> bytes = 0;
        std::thread thread;
    };
    std::vector<Stream> streams(options.streams);
    std::atomic<unsigned> errors = 0;
    std::atomic<bool> stopping = false;
    std::latch connected(options.streams);
    for (auto& stream : streams) {
        stream.fd = open_socket();
        stream.thread = std::thread([&, down] {
            const bool ok = connect_to(stream.fd, options, down ? Service::Source : Service::Sink);
            connected.count_down();
            std::vector<char> buffer(kBulkBuffer, 'x');
            while (ok && !stopping.load(std::memory_order_relaxed)) {
                const ssize_t moved = down ? read(stream.fd.get(), buffer.data(), buffer.size())
                                           : write(stream.fd.get(), buffer.data(), buffer.size());
                if (moved <= 0) break;
                stream.bytes.fetch_add(static_cast<std::uint64_t>(moved), std::memory_order_relaxed);
            }
            if (!stopping) ++errors;
        });
    }
    const auto total = [&] {
        return std::accumulate(streams.begin(), streams.end(), std::uint64_t{0},
                               [](std::uint64_t sum, const Stream& stream) { return sum + stream.bytes; });
    };
    connected.wait();
    sleep_seconds(options.warmup);
    const std::uint64_t before = total();
    const auto start = Clock::now();
    sleep_seconds(options.seconds);
    const std::uint64_t moved = total() - before;
    const double elapsed = seconds_since(start);
    stopping = true;
    for (auto& stream : streams) shutdown(stream.fd.get(), SHUT_RDWR);  // wakes a thread that waits for its peer
    for (auto& stream : streams) stream.thread.join();
    std::printf("{\"gbps\": %.4f, \"bytes\": %llu, \"errors\": %u}\n", moved * 8 / elapsed / 1e9,
                static_cast<unsigned long long>(total()), errors.load());
}

void round_trips(const Options& options) {
    const Fd fd = open_socket();
    unsigned errors = connect_to(fd, options, Service::Echo) ? 0 : 1;
    const auto begin = Clock::now();
    while (!errors && seconds_since(begin) < options.warmup) errors += !ping(fd);
    Latencies latencies;
    const auto measured = Clock::now();
    while (!errors && seconds_since(measured) < options.seconds) {
        const auto start = Clock::now();
        errors += !ping(fd);
        latencies.add(start);
    }
    std::printf("{\"mean_us\": %.2f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"count\": %zu, \"errors\": %u}\n",
                latencies.mean(), latencies.percentile(0.5), latencies.percentile(0.99), latencies.count(), errors);
}

/// Connects, sends a byte, waits for it to come back, closes; over and over, in N threads, which pause before each
/// connection if they are told to. `connect_us`: of connect() alone.
void connects(const Options& options) {
    struct Thread {
        Latencies connect, all;
    };
    std::vector<Thread> latencies(options.streams);
    std::atomic<unsigned> errors = 0;
    const auto begin = Clock::now();
    const double end = options.warmup + options.seconds;
    {
        std::vector<std::jthread> threads;
        for (auto& mine : latencies) {
            threads.emplace_back([&] {
                for (unsigned failed = 0; failed < 10 && seconds_since(begin) < end;) {
                    if (options.pause > 0) sleep_seconds(options.pause);
                    const auto start = Clock::now();
                    const bool counts = seconds_since(begin) >= options.warmup;
                    const Fd fd = open_socket();
                    errno = 0;
                    const bool connected = connect_to(fd, options, Service::Echo);
                    if (connected && counts) mine.connect.add(start);
                    if (connected && ping(fd)) {
                        if (counts) mine.all.add(start);
                    } else {
                        std::fprintf(stderr, "%s: %s\n", connected ? "byte lost" : "connect", std::strerror(errno));
                        ++failed;
                        ++errors;
                    }
                }
            });
        }
    }
    const double elapsed = seconds_since(begin) - options.warmup;
    Latencies connect, all;
    for (const auto& mine : latencies) {
        connect.add(mine.connect);
        all.add(mine.all);
    }
    std::printf(
        "{\"mean_us\": %.2f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"connect_us\": %.2f, \"per_second\": %.1f, "
        "\"count\": %zu, \"errors\": %u}\n",
        all.mean(), all.percentile(0.5), all.percentile(0.99), connect.percentile(0.5), all.count() / elapsed, all.count(),
        errors.load());
}

/// Opens N connections, proves each with one byte there and back, and returns them open.
std::vector<Fd> open_flows(const Options& options) {
    constexpr unsigned kAtOnce = 256;
    const Fd epoll(epoll_create1(EPOLL_CLOEXEC));
    if (!epoll) fail("epoll_create1");
    std::vector<Fd> flows;
    unsigned opened = 0, pending = 0, errors = 0;
    const auto begin = Clock::now();
    const auto finish = [&](int fd, bool ok) {
        epoll_ctl(epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
        errors += !ok;
        --pending;
    };
    while (opened < options.flows || pending > 0) {
        for (; opened < options.flows && pending < kAtOnce; ++opened) {
            Fd fd = open_socket(SOCK_NONBLOCK);
            if (!connect_to(fd, options, Service::Echo) && errno != EINPROGRESS) {
                ++errors;
                continue;
            }
            epoll_event event{.events = EPOLLOUT, .data = {.fd = fd.get()}};
            if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd.get(), &event) < 0) fail("epoll_ctl");
            ++pending;
            flows.push_back(std::move(fd));
        }
        std::array<epoll_event, kAtOnce> events;
        const int count = epoll_wait(epoll.get(), events.data(), events.size(), 20'000);
        if (count == 0) break;  // the rest never answers
        for (int i = 0; i < count; ++i) {
            const int fd = events[i].data.fd;
            char byte = 'x';
            if (events[i].events & EPOLLIN) {
                finish(fd, read(fd, &byte, 1) == 1);
            } else if (events[i].events & EPOLLOUT && write(fd, &byte, 1) == 1) {
                epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
                epoll_ctl(epoll.get(), EPOLL_CTL_MOD, fd, &event);
            } else {
                finish(fd, false);
            }
        }
    }
    errors += pending;
    std::printf("{\"flows\": %u, \"seconds\": %.3f, \"errors\": %u}\n", options.flows - errors,
                seconds_since(begin), errors);
    return flows;
}

/// Where the server saw the connection come from: the proof that a proxy was, or was not, in between.
void peer(const Options& options) {
    const Fd fd = open_socket();
    std::array<char, 64> text{};
    const ssize_t got = connect_to(fd, options, Service::Peer) ? read(fd.get(), text.data(), text.size() - 1) : -1;
    std::printf("{\"address\": \"%s\", \"errors\": %d}\n", text.data(), got <= 0);
}

int run(const Options& options) {
    std::signal(SIGPIPE, SIG_IGN);
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    if (options.mode == "server") return serve(options.host, options.port, std::max(1u, options.streams));
    if (options.attended) {
        std::puts("ready");
        std::fflush(stdout);
        char line[64];
        if (!std::fgets(line, sizeof line, stdin)) return 1;
    }
    std::vector<Fd> held;
    if (options.mode == "down") bulk(options, true);
    if (options.mode == "up") bulk(options, false);
    if (options.mode == "rtt") round_trips(options);
    if (options.mode == "connect") connects(options);
    if (options.mode == "idle") held = open_flows(options);
    if (options.mode == "peer") peer(options);
    std::fflush(stdout);
    while (options.attended && std::fgetc(stdin) != EOF) {
    }
    return 0;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
    bench::Options options;
    CLI::App app{"Makes, and serves, the connections that bench/run measures. Prints one line of JSON."};
    app.add_option("mode", options.mode)
        ->required()
        ->check(CLI::IsMember({"server", "down", "up", "rtt", "connect", "idle", "peer"}));
    app.add_option("host", options.host, "IPv4 address of the server (server: to listen at)");
    app.add_option("--port", options.port, "first of the server's four ports");
    app.add_option("--seconds", options.seconds, "length of the measured window");
    app.add_option("--warmup", options.warmup, "seconds before the window (down, up, rtt, connect)");
    app.add_option("--pause", options.pause, "seconds before each connection (connect)");
    app.add_option("--streams", options.streams, "connections at once (down, up, connect); threads (server)");
    app.add_option("--flows", options.flows, "connections to open (idle)");
    std::string socks;
    app.add_option("--socks", socks, "ADDRESS:PORT of a SOCKS5 server to speak to (down, up, rtt, connect, peer)");
    app.add_flag(
        "--attended", options.attended,
        "print 'ready' and wait for a line before the first connection, for end of input after the result");
    CLI11_PARSE(app, argc, argv);
    try {
        if (!socks.empty() && options.mode == "idle") throw std::invalid_argument("idle has no --socks");
        if (!socks.empty()) options.socks = bench::socks_server(socks);
        return bench::run(options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "bench_load: %s\n", error.what());
        return 1;
    }
}
