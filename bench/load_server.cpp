// SPDX-License-Identifier: MIT
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include <array>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "bench/load.hpp"
#include "engine/fd.hpp"

namespace bench {
namespace {

using mprox::Fd;

/// One thread's listeners and connections. A connection has no state but its service, so that lives in the event.
class Server {
  public:
    Server(const std::string& host, std::uint16_t port) : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
        if (!epoll_) fail("epoll_create1");
        for (Service service : kServices) {
            Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
            if (!listener) fail("socket");
            const int on = 1;
            setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
            setsockopt(listener.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
            const sockaddr_storage address = address_of(host, port, service);
            if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(sockaddr_in)) < 0) {
                fail("bind");
            }
            if (listen(listener.get(), SOMAXCONN) < 0) fail("listen");
            watch(listener.get(), EPOLLIN, service, true);
            listeners_.push_back(std::move(listener));
        }
    }

    void run() {
        std::array<epoll_event, 256> events;
        for (;;) {
            const int count = epoll_wait(epoll_.get(), events.data(), events.size(), -1);
            if (count < 0 && errno != EINTR) fail("epoll_wait");
            for (int i = 0; i < count; ++i) handle(events[i]);
        }
    }

  private:
    static constexpr std::uint64_t kListening = 1ULL << 63;

    void watch(int fd, std::uint32_t events, Service service, bool listening) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = static_cast<std::uint32_t>(fd) | static_cast<std::uint64_t>(service) << 32 |
                         (listening ? kListening : 0);
        if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
    }

    void handle(const epoll_event& event) {
        const int fd = static_cast<int>(event.data.u64 & 0xffffffff);
        const auto service = static_cast<Service>(event.data.u64 >> 32 & 0xffff);
        if (event.data.u64 & kListening) {
            accept_all(fd, service);
        } else if ((event.events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) || !serve_once(fd, service)) {
            close(fd);
        }
    }

    void accept_all(int listener, Service service) {
        for (;;) {
            sockaddr_in peer{};
            socklen_t size = sizeof peer;
            Fd fd(accept4(listener, reinterpret_cast<sockaddr*>(&peer), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
            if (!fd) {
                if (errno == ECONNABORTED || errno == EINTR) continue;
                if (errno == EAGAIN) return;
                fail("accept4");
            }
            if (service == Service::Peer) {
                std::array<char, INET_ADDRSTRLEN> text{};
                inet_ntop(AF_INET, &peer.sin_addr, text.data(), text.size());
                (void)!write(fd.get(), text.data(), std::char_traits<char>::length(text.data()));
                continue;
            }
            const int on = 1;
            if (service == Service::Echo) setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            watch(fd.get(), service == Service::Source ? EPOLLOUT | EPOLLRDHUP : EPOLLIN, service, false);
            (void)fd.release();  // from here on its event owns it
        }
    }

    /// False when the connection is over.
    bool serve_once(int fd, Service service) {
        if (service == Service::Source) {
            return !over(send(fd, buffer_.data(), buffer_.size(), MSG_NOSIGNAL));
        }
        const ssize_t got = read(fd, buffer_.data(), service == Service::Sink ? buffer_.size() : 4096);
        if (got <= 0) return !over(got);
        return service != Service::Echo || send(fd, buffer_.data(), got, MSG_NOSIGNAL) == got;
    }

    static bool over(ssize_t result) { return result == 0 || (result < 0 && errno != EAGAIN && errno != EINTR); }

    Fd epoll_;
    std::vector<Fd> listeners_;
    std::vector<char> buffer_ = std::vector<char>(kBulkBuffer, 'x');
};

}  // namespace

int serve(const std::string& host, std::uint16_t port, unsigned threads) {
    // Every thread has listeners of its own; the kernel spreads connections over them.
    std::vector<std::unique_ptr<Server>> servers;
    for (unsigned i = 0; i < threads; ++i) servers.push_back(std::make_unique<Server>(host, port));
    for (auto& server : servers) {
        std::thread([owned = std::move(server)] { owned->run(); }).detach();
    }
    std::puts("ready");
    std::fflush(stdout);
    for (char byte; read(STDIN_FILENO, &byte, 1) > 0;) {
    }
    std::_Exit(0);
}

}  // namespace bench
