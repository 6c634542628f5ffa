// SPDX-License-Identifier: MIT
#pragma once

#include <unistd.h>

#include <cerrno>
#include <string>

#include "engine/fd.hpp"

namespace mprox {

/// What the engine has to say through a pipe: one line, with its newline; less when the other end is gone. Blocks.
inline std::string read_line(const Fd& pipe) {
    std::string line;
    char buffer[512];
    while (!line.ends_with('\n')) {
        const ssize_t n = ::read(pipe.get(), buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        line.append(buffer, static_cast<std::size_t>(n));
    }
    return line;
}

}  // namespace mprox
