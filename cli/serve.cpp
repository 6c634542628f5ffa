// SPDX-License-Identifier: MIT
#include "cli/serve.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstring>
#include <expected>
#include <memory>
#include <thread>

#include "cli/serve_shard.hpp"

namespace mprox {
namespace {

struct ServeOptions {
    std::vector<std::string> listen{"127.0.0.1:1080"};
    std::string user;
    std::size_t max_connections = 20'000;
    unsigned timeout = 30;
    bool verbose = false;
};

constexpr std::size_t threads_most = 4;
// Descriptors of a shard without connections: epoll, timer, wake-up; and some to spare.
constexpr std::size_t shard_descriptors = 16;
// Of a connection: two sockets, and its share of the pipes that connections borrow now and then.
constexpr std::size_t connection_descriptors = 3;

std::optional<sockaddr_storage> parse_listen(std::string_view text) {
    const auto colon = text.rfind(':');
    if (colon == std::string_view::npos) return std::nullopt;
    std::string_view host = text.substr(0, colon), port = text.substr(colon + 1);
    const bool bracketed = host.starts_with('[') && host.ends_with(']');
    if (bracketed) host = host.substr(1, host.size() - 2);
    mproto_endpoint at{};
    if (!mproto_ip_parse(host.data(), host.size(), &at) || bracketed != (at.kind == MPROTO_HOST_IPV6))
        return std::nullopt;
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), at.port);
    if (port.empty() || error != std::errc() || end != port.data() + port.size()) return std::nullopt;
    return to_sockaddr(at);
}

std::string check_listen(const std::string& text) {
    return parse_listen(text) ? "" : "'" + text + "' is not ADDRESS:PORT (127.0.0.1:1080, [::1]:1080)";
}

std::optional<mproto_credentials> parse_user(std::string_view text) {
    const auto colon = text.find(':');
    if (colon == std::string_view::npos || colon == 0) return std::nullopt;
    const auto user = text.substr(0, colon), password = text.substr(colon + 1);
    if (user.size() > MPROTO_CRED_MAX || password.size() > MPROTO_CRED_MAX) return std::nullopt;
    mproto_credentials out{};
    out.present = true;
    out.user_len = static_cast<std::uint8_t>(user.size());
    out.password_len = static_cast<std::uint8_t>(password.size());
    std::memcpy(out.user, user.data(), user.size());
    std::memcpy(out.password, password.data(), password.size());
    return out;
}

std::string check_user(const std::string& text) {
    return parse_user(text) ? "" : "must be USER:PASSWORD, each at most 255 bytes";  // never what was given
}

std::string text_of(const sockaddr_storage& address) {
    const mproto_endpoint at = to_endpoint(address);
    char text[MPROTO_TEXT_MAX];
    return {text, mproto_endpoint_format(&at, text)};
}

// One socket for each shard, all on the address that the first one got. Fails with errno.
std::expected<std::vector<Fd>, int> open_listeners(sockaddr_storage& address, std::size_t count) {
    std::vector<Fd> sockets;
    const int on = 1;
    const auto set = [&](int level, int name) { ::setsockopt(sockets.back().get(), level, name, &on, sizeof on); };
    for (std::size_t i = 0; i < count; i++) {
        sockets.emplace_back(::socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
        if (!sockets.back()) return std::unexpected(errno);
        set(SOL_SOCKET, SO_REUSEADDR);
        set(IPPROTO_TCP, TCP_NODELAY);  // handed down to the accepted sockets
        if (address.ss_family == AF_INET6) set(IPPROTO_IPV6, IPV6_V6ONLY);
        if (i > 0) set(SOL_SOCKET, SO_REUSEPORT);
        socklen_t size = sizeof address;
        if (::bind(sockets.back().get(), reinterpret_cast<sockaddr*>(&address), size) != 0)
            return std::unexpected(errno);
        // The first binds without SO_REUSEPORT: two servers must not share a port without anyone knowing.
        if (i == 0) set(SOL_SOCKET, SO_REUSEPORT);
        ::getsockname(sockets.back().get(), reinterpret_cast<sockaddr*>(&address), &size);
    }
    for (auto& socket : sockets)
        if (::listen(socket.get(), SOMAXCONN) != 0) return std::unexpected(errno);
    return sockets;
}

// As many descriptors as wanted and permitted; returns how many that are.
std::size_t raise_descriptor_limit(std::size_t wanted) {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    const rlimit higher{.rlim_cur = std::max<rlim_t>(limit.rlim_max, wanted),
                        .rlim_max = std::max<rlim_t>(limit.rlim_max, wanted)};
    if (::setrlimit(RLIMIT_NOFILE, &higher) != 0) {  // only root may raise the hard limit
        limit.rlim_cur = limit.rlim_max;
        ::setrlimit(RLIMIT_NOFILE, &limit);
    }
    ::getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

int serve(const ServeOptions& options) {
    ServeSettings settings{.timeout = std::chrono::seconds(options.timeout), .verbose = options.verbose};
    if (!options.user.empty()) settings.required = parse_user(options.user);
    spdlog::set_default_logger(
        std::make_shared<spdlog::logger>("serve", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
    spdlog::set_pattern("%v");
    std::signal(SIGPIPE, SIG_IGN);  // splice(2) has no MSG_NOSIGNAL

    // Each thread has a descriptor table, and so the limit on open files, to itself; the tables start as copies.
    const std::size_t own = 16 + threads_most * (shard_descriptors + options.listen.size());
    const std::size_t descriptors = raise_descriptor_limit(own + connection_descriptors * options.max_connections);
    const std::size_t each = descriptors > own ? std::max<std::size_t>((descriptors - own) / connection_descriptors, 1) : 1;
    const std::size_t enough = (options.max_connections + each - 1) / each;
    const std::size_t threads = std::clamp<std::size_t>(std::max<std::size_t>(std::thread::hardware_concurrency(), enough),
                                                        1, threads_most);
    ServeLimit limit;
    limit.most = std::min(each * threads, options.max_connections);

    // Blocked in every thread, so that only the wait at the end takes them.
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &ends, nullptr);

    std::vector<std::unique_ptr<ServeShard>> shards;
    for (unsigned i = 0; i < threads; i++) shards.push_back(std::make_unique<ServeShard>(settings, limit));
    for (const auto& text : options.listen) {
        sockaddr_storage address = *parse_listen(text);
        auto sockets = open_listeners(address, shards.size());
        if (!sockets) {
            spdlog::error("mprox serve: cannot listen on {}: {}; choose another with --listen", text,
                          std::strerror(sockets.error()));
            return 1;
        }
        for (std::size_t i = 0; i < shards.size(); i++) shards[i]->listen(std::move((*sockets)[i]));
        std::printf("listening on %s\n", text_of(address).c_str());
        std::fflush(stdout);
    }

    std::vector<std::thread> running;
    for (auto& shard : shards)
        running.emplace_back([&shard] {
            own_descriptor_table();
            shard->run();
        });
    int signal = 0;
    ::sigwait(&ends, &signal);
    for (auto& shard : shards) shard->stop();
    for (auto& thread : running) thread.join();
    return 0;
}

}  // namespace

void add_serve_command(CLI::App& app, int& exit_code) {
    auto* command =
        app.add_subcommand("serve", "Be a SOCKS5, SOCKS4, SOCKS4a and HTTP CONNECT proxy, all on one port");
    const auto options = std::make_shared<ServeOptions>();
    command
        ->add_option("--listen", options->listen, "Address to listen on; may be given more than once; port 0: any")
        ->type_name("ADDRESS:PORT")
        ->check(check_listen)
        ->capture_default_str()
        ->allow_extra_args(false);
    command
        ->add_option("--user", options->user, "Let in only who knows these. The environment keeps them out of ps")
        ->type_name("USER:PASSWORD")
        ->check(check_user)
        ->envname("MPROX_SERVE_USER");
    command->add_option("--max-connections", options->max_connections, "Clients beyond this number wait")
        ->type_name("N")
        ->check(CLI::Range(1, 1'000'000))
        ->capture_default_str();
    command
        ->add_option("--timeout", options->timeout,
                     "For a client's request, and again for reaching its destination")
        ->type_name("SECONDS")
        ->check(CLI::Range(1, 86'400))
        ->capture_default_str();
    command->add_flag("-v,--verbose", options->verbose, "A line on stderr for each connection");
    command->callback([options, &exit_code] { exit_code = serve(*options); });
}

}  // namespace mprox
