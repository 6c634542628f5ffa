// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/fd.hpp"
#include "engine/policy.hpp"
#include "engine/programs.hpp"
#include "engine/splice.hpp"

namespace mprox {

struct SessionSettings {
    std::vector<Server> servers;  ///< in the order they are tried; at least one
    ContextSettings context;
    bool verbose = false;
    Splice splice = Splice::possible;
    bool warm = true;    ///< connections to servers are made before they are needed
};

/// How many threads an engine should have here: one per two processors, more where the limit on open files is low.
std::uint32_t choose_shards();

/// One engine from its start to its end: the only place that knows all stages.
/// To be run in a process of its own, which it makes into a daemon without a terminal; returns the exit status.
///
/// `program` is a pidfd of the process that will join the context. `ready` gets an empty line when connects can be
/// caught, or a line that says why not. `stats`, if given, gets the one line of account when the program has
/// ended. The engine itself ends with the last member, after the last byte has been passed on.
int run_session(Programs programs, const mprox_call& context, const std::string& engines_directory,
                const SessionSettings& settings, Fd program, Fd ready, Fd stats);

}  // namespace mprox
