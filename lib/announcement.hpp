// SPDX-License-Identifier: MIT
#pragma once

#include <expected>

namespace mprox {

/// What the kernel says of its system call in `directory` (files `syscall_number` and `abi_version`, a decimal
/// number and a newline each): the number to call. Otherwise an errno: ENOSYS when it says nothing, nothing
/// sensible, or an ABI from before the first; else what kept us from reading.
std::expected<long, int> announced_number(const char* directory);

}  // namespace mprox
