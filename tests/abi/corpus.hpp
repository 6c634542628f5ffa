// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace conformance {

/// The fuzzers' inputs, compiled in, since a guest has no files but the program: name and bytes.
std::vector<std::pair<std::string_view, std::string>> corpus();

}  // namespace conformance
