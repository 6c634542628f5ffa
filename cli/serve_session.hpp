// SPDX-License-Identifier: MIT
#pragma once

#include <sys/socket.h>

#include <asio/awaitable.hpp>
#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "cli/names.hpp"
#include "engine/relay.hpp"
#include "proto/mproto.h"

namespace mprox {

struct ServeSettings {
    std::optional<mproto_credentials> required{};
    std::chrono::seconds timeout{30};  ///< for a client's request, and again for reaching the destination
    bool verbose = false;
};

/// A connection's place under the limit; gives it back when it goes.
class ServeSlot {
  public:
    /// Outlives every slot.
    struct Owner {
        virtual void slot_freed() = 0;

      protected:
        ~Owner() = default;
    };

    explicit ServeSlot(Owner& owner) : owner_(&owner) {}
    ServeSlot(ServeSlot&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
    ServeSlot& operator=(ServeSlot&&) = delete;
    ~ServeSlot() {
        if (owner_) owner_->slot_freed();
    }

  private:
    Owner* owner_;
};

/// One client from its first byte to the relay, or to its refusal. `peer` is only for the log.
/// Everything passed by reference outlives the poller.
asio::awaitable<void> serve_session(Poller& poller, Relay& relay, Names& names, const ServeSettings& settings, Fd client,
                                    std::string peer, ServeSlot slot);

/// Between the operating system's addresses and the protocols'. `at` must not be a name.
mproto_endpoint to_endpoint(const sockaddr_storage& address);
sockaddr_storage to_sockaddr(const mproto_endpoint& at);

}  // namespace mprox
