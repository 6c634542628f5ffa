// SPDX-License-Identifier: MIT
// SOCKS5 as a program speaks it that knows of its proxy: what anything that proxies unseen is measured against.
#pragma once

#include <netinet/in.h>

#include <string>

#include "proto/mproto.h"

namespace bench {

/// The server at `HOST:PORT`, an IPv4 address, which wants no password. Throws on anything else.
mproto_server socks_server(const std::string& text);

/// Connects the blocking socket `fd` to the server and, through it, to `to`: two writes and two reads, no byte of the
/// destination's among them. False, and errno, when either cannot be reached.
bool connect_through(int fd, const mproto_server& server, const sockaddr_in& to);

}  // namespace bench
