// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>

namespace mprox {

/// Adds `serve`: a SOCKS5, SOCKS4, SOCKS4a and HTTP CONNECT server, all on one port.
void add_serve_command(CLI::App& app, int& exit_code);

}  // namespace mprox
