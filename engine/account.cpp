// SPDX-License-Identifier: MIT
#include "engine/account.hpp"

#include <fmt/format.h>

namespace mprox {

std::string Account::line(std::uint64_t denied) const {
    const std::lock_guard lock(mutex_);
    const std::uint64_t made = connections;
    std::string out = fmt::format("{} connection{}, {} bytes up, {} bytes down, {} refused", made, made == 1 ? "" : "s",
                                  up.load(), down.load(), refusals_ + denied);
    const char* separator = " (";
    for (const auto& [reason, count] : reasons_) {
        out += fmt::format("{}{} × {}", separator, count, reason);
        separator = "; ";
    }
    if (!reasons_.empty()) out += ')';
    if (spliced_ || !relayed_.empty()) out += fmt::format("; {} spliced", spliced_.load());
    for (const auto& [reason, count] : relayed_) out += fmt::format(", {} relayed ({})", count, reason);
    return out;
}

}  // namespace mprox
