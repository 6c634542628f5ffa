// SPDX-License-Identifier: MIT
// Both ends of every measurement: the services the server offers, and where a client finds them.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <system_error>

namespace bench {

/// What the server does with a connection. The value is the offset from the server's first port.
enum class Service : std::uint16_t {
    Sink,    ///< reads and forgets
    Source,  ///< writes as long as somebody reads
    Echo,    ///< sends back what it was sent
    Peer,    ///< writes the address the connection came from, then closes
};
inline constexpr Service kServices[] = {Service::Sink, Service::Source, Service::Echo, Service::Peer};

inline constexpr std::size_t kBulkBuffer = 128 * 1024;

/// The socket address of `service` on the server whose first port is `port`. Throws on a bad IPv4 address.
sockaddr_storage address_of(const std::string& host, std::uint16_t port, Service service);

[[noreturn]] inline void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

/// Serves all four services until standard input ends.
int serve(const std::string& host, std::uint16_t port, unsigned threads);

}  // namespace bench
