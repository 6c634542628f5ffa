// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>

namespace mprox {

/// Exit statuses of `mprox run` itself, as env(1) and docker use them.
enum RunExit { run_failed = 125, run_not_executable = 126, run_not_found = 127 };

/// main's arguments. Processes that live on overwrite them, since a proxy's password may stand there.
struct Arguments {
    int count;
    char** values;
};

/// Adds `run`. `after_mark` is what followed `--`, if `marked`: the parser does not get to see it.
void add_run_command(CLI::App& app, Arguments arguments, bool marked, const std::vector<std::string>& after_mark,
                     int& exit_code);

}  // namespace mprox
