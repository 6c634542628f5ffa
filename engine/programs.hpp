// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bpf/mprox.h"
#include "engine/fd.hpp"
#include "engine/rundir.hpp"
#include "proto/mproto.h"

namespace mprox {

struct ContextSettings {
    std::vector<mproto_prefix> bypass;
    std::uint32_t timeout_ms = 60'000;
    std::uint32_t shards = 1;  ///< the engine's threads, 1..MPROX_SHARDS
    bool block_udp = false;
};

/// The BPF programs and maps of this machine: one set, pinned, for all contexts. Thread-safe but for the
/// functions that take a RunDir, which are serialised by its lock.
class Programs {
  public:
    /// Finds the pinned set or loads, attaches and pins it; frees contexts whose engine and members are gone.
    static std::expected<Programs, std::string> open(RunDir& dir);

    Programs(Programs&& other) noexcept;
    ~Programs();

    /// Takes a free slot.
    [[nodiscard]] std::expected<mprox_call, std::string> create(RunDir& dir, const ContextSettings& settings);
    /// Gives a slot back, with all that belongs to it.
    void destroy(RunDir& dir, std::uint32_t slot);
    /// Frees what the dead left; when no context is left, removes the programs. Then tidies `dir`.
    void sweep(RunDir& dir);

    /// The calling process becomes a member, or the engine, of a context.
    [[nodiscard]] bool join(mprox_call call) const;
    [[nodiscard]] bool serve(mprox_call call) const;

    /// Shared with the kernel: fields change under the reader.
    [[nodiscard]] volatile mprox_context& context(std::uint32_t slot) const { return contexts_[slot]; }
    /// Its addresses at which a shard has a socket, as it says itself.
    [[nodiscard]] std::span<std::uint32_t> spares(std::uint32_t slot, std::uint32_t shard) const {
        return const_cast<std::uint32_t(&)[MPROX_SPARES]>(contexts_[slot].spares[shard]);
    }
    /// The ring that a shard of a context reads.
    [[nodiscard]] int ring(std::uint32_t shard) const { return rings_[shard].get(); }
    /// The connections that a shard of a context keeps ready. As context().
    [[nodiscard]] int pool(std::uint32_t shard) const { return own_pools_[shard].get(); }
    /// What getsockname() of that application socket shall show. To be told before its connect() is answered.
    void set_local(std::uint64_t cookie, const mprox_ip& ip) const;

    /// Maps of spliced connections, and of what was attached for them.
    [[nodiscard]] int splices() const { return splices_map_.get(); }
    /// Maps that the programs for spliced connections share with those of this set: descriptors by name.
    [[nodiscard]] std::array<std::pair<const char*, int>, 4> shared() const {
        return {{{"splices", splices_map_.get()}, {"contexts", contexts_map_.get()}, {"rings", rings_map_.get()}, {"pools", pools_map_.get()}}};
    }
    [[nodiscard]] int hooks() const { return hooks_map_.get(); }
    [[nodiscard]] int hook_users() const { return hook_users_map_.get(); }
    /// Sockets of this engine on their way to servers: mprox_dial by descriptor.
    [[nodiscard]] int dials() const { return dials_map_.get(); }
    /// From now on packets are translated that were watched.
    [[nodiscard]] mprox_handed hand_over(mprox_hand_over& call) const;
    /// A connection of a pool that the engine has taken is to ask for the connect() that is filled in there; false: it cannot.
    [[nodiscard]] bool ask(mprox_ask call) const;
    /// From now on packets are watched that were translated; false: they are not those that it says.
    [[nodiscard]] bool take_back(mprox_take_back call) const;
    /// Fills in what the two directions have carried.
    void measure(mprox_measure& call) const;
    /// Lets the packets of that direction leave through another device.
    void reroute(const mprox_splice_key& key, std::uint32_t device) const;
    /// Where pins of this set belong: they go when it goes.
    [[nodiscard]] const std::string& directory() const { return directory_; }
    /// A socket filter that takes no packet.
    [[nodiscard]] int deaf() const { return deaf_.get(); }
    [[nodiscard]] bool is_alive(const mprox_member& owner) const {
        return owner.slot < MPROX_SLOTS && contexts_[owner.slot].generation == owner.generation && contexts_[owner.slot].alive;
    }

  private:
    Programs() = default;
    std::expected<void, std::string> load(const std::string& directory);
    std::expected<void, std::string> find(const std::string& directory);
    void purge(std::uint32_t slot);

    std::string directory_;
    Fd contexts_map_, rings_map_, pools_map_, bypass_map_, locals_map_, splices_map_, dials_map_, hooks_map_, hook_users_map_, deaf_;
    Fd join_, serve_, hand_over_, ask_, take_back_, measure_, reroute_;
    std::vector<Fd> links_;  // held as well as pinned: unpinning by hand frees nobody while an engine lives
    std::array<Fd, MPROX_SHARDS> rings_, own_pools_;
    volatile mprox_context* contexts_ = nullptr;
};

}  // namespace mprox
