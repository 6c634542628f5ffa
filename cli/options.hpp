// SPDX-License-Identifier: MIT
#pragma once

#include <expected>
#include <string>
#include <vector>

#include "engine/policy.hpp"

namespace mprox {

/// What `mprox run` was asked to do, as written.
struct RunOptions {
    std::vector<std::string> proxies;
    std::vector<std::string> bypass;
    bool no_default_bypass = false;
    double timeout = 60;  ///< seconds
    std::string data_path = "auto";
    bool no_warm = false;
    bool verbose = false;
    bool stats = false;
    bool block_udp = false;
    bool as_user = false;
    std::string user;  ///< empty with as_user: whoever called sudo
    std::vector<std::string> program;
};

/// The servers in the order given; names become one server per address. Errors are sentences for the user and
/// never show a password.
std::expected<std::vector<Server>, std::string> read_proxies(const std::vector<std::string>& options);

std::expected<std::vector<mproto_prefix>, std::string> read_bypass(const std::vector<std::string>& options,
                                                                   bool with_default);

/// Whom the program runs as.
struct Identity {
    uid_t uid;
    gid_t gid;
    std::string name, home, shell;
};
std::expected<Identity, std::string> read_user(const std::string& name);
/// Becomes that user for good, with its groups and HOME, USER, LOGNAME, SHELL.
std::expected<void, std::string> become(const Identity& identity);

}  // namespace mprox
