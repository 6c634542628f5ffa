// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>

namespace mprox {

/// Adds `doctor`: what this kernel and these privileges allow, one line each, and what to do about each no.
void add_doctor_command(CLI::App& app, int& exit_code);

}  // namespace mprox
