// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace mprox {

/// What an engine counts. Thread-safe.
class Account {
  public:
    std::atomic<std::uint64_t> connections = 0;  ///< that were answered "connected"
    std::atomic<std::uint64_t> up = 0;           ///< bytes from the application
    std::atomic<std::uint64_t> down = 0;         ///< bytes to the application

    /// Counts a refusal under its reason, "SOCKS5 reply 5: connection refused by socks5://10.0.0.1:1080".
    void refused(const std::string& reason) {
        const std::lock_guard lock(mutex_);
        refusals_++;
        // Reasons name servers and replies, so there are few; a hostile server cannot make many.
        if (reasons_.size() < 32 || reasons_.contains(reason)) reasons_[reason]++;
    }

    /// Counts a connection that goes out of the path, or why it does not: true when that is the first one for this reason.
    void spliced() { spliced_++; }
    bool relayed(const std::string& why) {
        const std::lock_guard lock(mutex_);
        return relayed_[why]++ == 0;
    }

    /// "3 connections, 120 bytes up, 5400 bytes down, 1 refused (1 × SOCKS5 reply 5: ...)". `denied` are connects
    /// that the BPF side refused by itself.
    [[nodiscard]] std::string line(std::uint64_t denied) const;

  private:
    mutable std::mutex mutex_;
    std::uint64_t refusals_ = 0;
    std::map<std::string, std::uint64_t> reasons_;
    std::atomic<std::uint64_t> spliced_ = 0;
    std::map<std::string, std::uint64_t> relayed_;
};

}  // namespace mprox
