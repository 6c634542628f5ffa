// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <expected>
#include <set>
#include <string>
#include <utility>

#include "engine/netns.hpp"
#include "engine/programs.hpp"

namespace mprox {

/// The tc programs that translate spliced connections: one at the egress of lo and one at the ingress of each device that
/// a server is reached through, in every network namespace that has such connections. All engines of the machine share
/// them; what is attached where, and for whom, stands in two pinned maps. They are links of tcx, or filters of a clsact
/// qdisc where the kernel has no tcx. Used by one thread.
class Hooks {
  public:
    Hooks(const Programs& programs, const mprox_call& context) : programs_(programs), context_(context) {}

    /// Makes sure that the packets of `ns` on lo, and of that device, are translated. The error is a reason.
    [[nodiscard]] std::expected<void, std::string> ensure(const Namespace& ns, std::uint32_t device);

  private:
    std::expected<void, std::string> ensure_one(const Namespace& ns, std::uint32_t device);

    const Programs& programs_;
    const mprox_call context_;
    std::set<std::pair<std::uint64_t, std::uint32_t>> ensured_;
};

/// Whether the kernel takes the programs; the error says why not.
[[nodiscard]] std::expected<void, std::string> try_splice_programs(const Programs& programs);

/// Removes what dead engines left behind: ended connections, filters nobody needs. To be called with the lock held.
/// True while a dead engine's connections live.
bool tidy_splices(const Programs& programs);

}  // namespace mprox
