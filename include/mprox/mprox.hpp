// SPDX-License-Identifier: MIT
// Owner types over mprox.h, whose conventions hold but for the first: what can fail returns std::expected with the
// errno as std::error_code (generic category). Nothing throws but for want of memory.
#pragma once

#include <mprox/mprox.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mprox {

template <typename T>
using Result = std::expected<T, std::error_code>;

/// Owns one proxy descriptor and closes it when it goes. Empty (-1) after release() or a move.
/// The context ends with its last descriptor, of which this may be one of several.
class ProxyDescriptor {
  public:
    [[nodiscard]] static Result<ProxyDescriptor> create(unsigned flags = MUTEX_PROXY_CLOEXEC) {
        const int fd = ::mprox_create(flags);
        if (fd < 0) return failure();
        return ProxyDescriptor(fd);
    }

    ProxyDescriptor() = default;
    explicit ProxyDescriptor(int fd) : fd_(fd) {}
    ProxyDescriptor(ProxyDescriptor&& other) noexcept : fd_(other.release()) {}
    ProxyDescriptor& operator=(ProxyDescriptor&& other) noexcept {
        if (this != &other) {
            reset();
            fd_ = other.release();
        }
        return *this;
    }
    ~ProxyDescriptor() { reset(); }

    [[nodiscard]] int get() const { return fd_; }
    [[nodiscard]] explicit operator bool() const { return fd_ >= 0; }
    [[nodiscard]] int release() { return std::exchange(fd_, -1); }
    void reset() {
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
    }

    [[nodiscard]] Result<void> set_config(std::string_view text) {
        return done(::mprox_set_config(fd_, text.data(), text.size()));
    }
    /// Without passwords.
    [[nodiscard]] Result<std::string> config() const {
        std::string text(4096, '\0');
        for (;;) {
            std::size_t needed = 0;
            const ssize_t length = ::mprox_get_config(fd_, text.data(), text.size(), &needed);
            if (length < 0 && errno != ENOSPC) return failure();
            text.resize(length < 0 ? needed : static_cast<std::size_t>(length));
            if (length >= 0) return text;
        }
    }
    [[nodiscard]] Result<void> enable() { return done(::mprox_enable(fd_)); }
    [[nodiscard]] Result<void> disable() { return done(::mprox_disable(fd_)); }
    [[nodiscard]] Result<void> attach(int pidfd) { return done(::mprox_attach(fd_, pidfd)); }
    [[nodiscard]] Result<void> detach(int pidfd) { return done(::mprox_detach(fd_, pidfd)); }

    [[nodiscard]] Result<mutex_proxy_stats> stats() const {
        mutex_proxy_stats stats{};
        stats.size = sizeof stats;
        if (::mprox_get_stats(fd_, &stats) < 0) return failure();
        return stats;
    }
    /// All flows with a greater id; a flow that begins meanwhile may be among them.
    [[nodiscard]] Result<std::vector<mutex_proxy_connection>> connections(std::uint64_t after = 0) const {
        std::vector<mutex_proxy_connection> all;
        for (;;) {
            constexpr std::size_t step = 64;
            const std::size_t had = all.size();
            all.resize(had + step);
            mutex_proxy_connections list{};
            list.size = sizeof list;
            list.connection_size = sizeof all[0];
            list.after = after;
            list.capacity = step;
            list.connections = reinterpret_cast<std::uintptr_t>(&all[had]);
            if (::mprox_get_connections(fd_, &list) < 0) return failure();
            all.resize(had + list.count);
            if (!list.more || !list.count) return all;
            after = all.back().id;
        }
    }
    /// Waits for news, unless the descriptor is non-blocking (then EAGAIN).
    [[nodiscard]] Result<std::string> snapshot() {
        std::string text(MUTEX_PROXY_SNAPSHOT_MAX, '\0');
        const ssize_t length = ::mprox_snapshot(fd_, text.data(), text.size());
        if (length < 0) return failure();
        text.resize(static_cast<std::size_t>(length));
        return text;
    }

  private:
    static std::unexpected<std::error_code> failure() {
        return std::unexpected(std::error_code(errno, std::generic_category()));
    }
    static Result<void> done(int status) {
        if (status < 0) return failure();
        return {};
    }

    int fd_ = -1;
};

}  // namespace mprox
