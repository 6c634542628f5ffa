// SPDX-License-Identifier: MIT
#pragma once

#include <sys/types.h>

#include "cli/run.hpp"
#include "engine/fd.hpp"

namespace mprox {

/// Stays in front of `program`, a child in our process group, as a shell would: signals sent to us go on to it, it
/// is stopped and continued with us. Returns its exit status (128+signal) after printing the line that the engine
/// writes into `stats`.
int supervise(pid_t program, Fd stats, Arguments arguments);

}  // namespace mprox
