// SPDX-License-Identifier: MIT
#include "engine/netns.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <set>
#include <string>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace mprox {
namespace {

int own_handle() {
    static const Fd handle(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    return handle.get();
}

// Steps into a namespace for the time of one call. Only this thread moves.
template <typename Call>
auto inside(int handle, Call call) -> decltype(call()) {
    if (::setns(handle, CLONE_NEWNET) != 0) return {};
    auto result = call();
    const int error = errno;
    // A thread that cannot come back would dial from the wrong place: that must never go on.
    if (::setns(own_handle(), CLONE_NEWNET) != 0) std::abort();
    errno = error;
    return result;
}

std::uint64_t cookie_of(const Fd& socket) {
    std::uint64_t cookie = 0;
    socklen_t size = sizeof cookie;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size);
    return cookie;
}

std::uint64_t cookie_inside(int handle) {
    return cookie_of(inside(handle, [] { return Fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)); }));
}

}  // namespace

Fd Namespace::socket(int family, int type, int protocol) const {
    const auto create = [&] { return Fd(::socket(family, type | SOCK_CLOEXEC, protocol)); };
    return handle_ ? inside(handle_.get(), create) : create();
}

int Namespace::raw(int family) {
    Fd& raw = family == AF_INET ? raw4_ : raw6_;
    if (!raw) raw = socket(family, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_RAW);
    return raw.get();
}

void Namespace::visit(const std::function<void()>& call) const {
    const auto run = [&] {
        call();
        return true;
    };
    if (handle_)
        inside(handle_.get(), run);
    else
        run();
}

int Namespace::netlink() {
    if (!netlink_) netlink_ = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    return netlink_.get();
}

Address Namespace::source_towards(const Address& to) const {
    SocketAddress address(to);
    const Fd probe = socket(to.family(), SOCK_DGRAM, 0);
    if (!probe || ::connect(probe.get(), &address.any, address.size) != 0) return {};
    if (::getsockname(probe.get(), &address.any, &address.size) != 0) return {};
    return address.address();
}

Namespaces::Namespaces() {
    own_handle();
    own_ = std::make_shared<Namespace>(Fd(), cookie_of(Fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0))));
}

std::shared_ptr<Namespace> Namespaces::find(std::uint64_t cookie, std::uint32_t tgid) {
    if (cookie == own_->cookie()) return own_;
    if (const auto known = known_.find(cookie); known != known_.end()) {
        if (auto alive = known->second.lock()) return alive;
        known_.erase(known);
    }
    const auto keep = [&](Fd handle) {
        auto found = std::make_shared<Namespace>(std::move(handle), cookie);
        known_[cookie] = found;
        return found;
    };
    Fd handle(::open(("/proc/" + std::to_string(tgid) + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC));
    if (handle && cookie_inside(handle.get()) == cookie) return keep(std::move(handle));

    // The caller has moved on, or its number means nothing in our PID namespace: ask every process once per
    // namespace, then those that are kept by a name (as `ip netns` does).
    std::set<ino_t> seen;
    const auto look = [&](const std::string& directory, const std::string& file) -> Fd {
        const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(directory.c_str()), ::closedir);
        while (const dirent* entry = entries ? ::readdir(entries.get()) : nullptr) {
            if (entry->d_name[0] == '.') continue;
            Fd candidate(::open((directory + "/" + entry->d_name + file).c_str(), O_RDONLY | O_CLOEXEC));
            struct stat status {};
            if (!candidate || ::fstat(candidate.get(), &status) != 0 || !seen.insert(status.st_ino).second) continue;
            if (cookie_inside(candidate.get()) == cookie) return candidate;
        }
        return {};
    };
    if ((handle = look("/proc", "/ns/net"))) return keep(std::move(handle));
    if ((handle = look("/run/netns", ""))) return keep(std::move(handle));
    return nullptr;
}

}  // namespace mprox
