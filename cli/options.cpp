// SPDX-License-Identifier: MIT
#include "cli/options.hpp"

#include <fmt/format.h>
#include <grp.h>
#include <netdb.h>
#include <pwd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>

namespace mprox {
namespace {

// --proxy, else MPROX_PROXY (several, with blanks between), else curl's ALL_PROXY.
std::vector<std::pair<std::string, std::string>> proxy_sources(const std::vector<std::string>& options) {
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& option : options) out.emplace_back("--proxy", option);
    if (!out.empty()) return out;
    for (const char* name : {"MPROX_PROXY", "ALL_PROXY", "all_proxy"}) {
        const char* value = std::getenv(name);
        if (!value || !*value) continue;
        std::istringstream words(value);
        for (std::string word; words >> word;) out.emplace_back(name, word);
        if (!out.empty()) return out;
    }
    return out;
}

std::expected<std::vector<Address>, std::string> resolve(const mproto_endpoint& at) {
    addrinfo hints{}, *list = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_ADDRCONFIG;
    if (const int error = ::getaddrinfo(at.name, nullptr, &hints, &list))
        return std::unexpected(error == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(error));
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, ::freeaddrinfo);
    std::vector<Address> out;
    for (const addrinfo* entry = list; entry; entry = entry->ai_next) {
        SocketAddress address;
        std::memcpy(&address.any, entry->ai_addr, std::min<std::size_t>(entry->ai_addrlen, sizeof address.v6));
        out.push_back(address.address());
        out.back().port = at.port;
    }
    return out;
}

std::string format(const mproto_server& server) {
    char text[MPROTO_TEXT_MAX];
    return {text, mproto_server_format(&server, text)};
}

Address numeric(const mproto_endpoint& at) {
    Address out;
    if (at.kind == MPROTO_HOST_IPV4) {
        out.ip.word[2] = htonl(0xffff);
        std::memcpy(&out.ip.byte[12], at.ip, 4);
    } else {
        std::memcpy(out.ip.byte, at.ip, 16);
    }
    out.port = at.port;
    return out;
}

}  // namespace

std::expected<std::vector<Server>, std::string> read_proxies(const std::vector<std::string>& options) {
    const auto sources = proxy_sources(options);
    if (sources.empty())
        return std::unexpected("no proxy given: use --proxy socks5://HOST:PORT, or set MPROX_PROXY or ALL_PROXY");
    std::vector<Server> servers;
    for (const auto& [source, text] : sources) {
        mproto_server server{};
        mproto_parse_error error{};
        // The text itself is not repeated: it may hold a password.
        if (!mproto_server_parse(text.data(), text.size(), &server, &error))
            return std::unexpected(fmt::format("{}: {} (at character {}); write it like socks5://user:password@host:1080",
                                               source, error.reason, error.column + 1));
        std::vector<Address> addresses;
        if (server.at.kind == MPROTO_HOST_NAME) {
            auto found = resolve(server.at);
            if (!found)
                return std::unexpected(fmt::format("{}: cannot resolve the proxy's name '{}': {}", source, server.at.name, found.error()));
            addresses = std::move(*found);
        } else {
            addresses = {numeric(server.at)};
        }
        for (const Address& address : addresses)
            servers.push_back({.uri = server, .address = address, .text = format(server)});
        mproto_credentials_wipe(&server.credentials);
    }
    return servers;
}

std::expected<std::vector<mproto_prefix>, std::string> read_bypass(const std::vector<std::string>& options,
                                                                   bool with_default) {
    std::vector<mproto_prefix> out;
    const auto add = [&](const std::string& text) -> std::expected<void, std::string> {
        mproto_prefix prefix{};
        mproto_parse_error error{};
        if (!mproto_prefix_parse(text.data(), text.size(), &prefix, &error))
            return std::unexpected(fmt::format("--bypass '{}': {} (at character {}); write it like 10.0.0.0/8 or 10.0.0.0/8:443",
                                               text, error.reason, error.column + 1));
        out.push_back(prefix);
        return {};
    };
    if (with_default)
        for (const char* text : {"127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"})
            if (auto added = add(text); !added) return std::unexpected(added.error());
    for (const auto& text : options)
        if (auto added = add(text); !added) return std::unexpected(added.error());
    return out;
}

std::expected<Identity, std::string> read_user(const std::string& name) {
    const passwd* entry = nullptr;
    if (name.empty()) {
        const char* uid = std::getenv("SUDO_UID");
        if (!uid) return std::unexpected("--user alone means the user who called sudo, but this is not sudo: write --user NAME");
        entry = ::getpwuid(static_cast<uid_t>(std::strtoul(uid, nullptr, 10)));
        if (!entry) return std::unexpected(fmt::format("--user: no user has the number {} (SUDO_UID)", uid));
    } else {
        entry = ::getpwnam(name.c_str());
        if (!entry)
            return std::unexpected(fmt::format("--user: there is no user '{}'; for the user who called sudo write `--user -- {} ...`", name, name));
    }
    return Identity{.uid = entry->pw_uid, .gid = entry->pw_gid, .name = entry->pw_name, .home = entry->pw_dir, .shell = entry->pw_shell};
}

std::expected<void, std::string> become(const Identity& identity) {
    if (::initgroups(identity.name.c_str(), identity.gid) != 0 || ::setgid(identity.gid) != 0 || ::setuid(identity.uid) != 0)
        return std::unexpected(fmt::format("cannot become user '{}': {}", identity.name, std::strerror(errno)));
    ::setenv("HOME", identity.home.c_str(), 1);
    ::setenv("USER", identity.name.c_str(), 1);
    ::setenv("LOGNAME", identity.name.c_str(), 1);
    ::setenv("SHELL", identity.shell.c_str(), 1);
    return {};
}

}  // namespace mprox
