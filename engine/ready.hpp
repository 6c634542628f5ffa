// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "bpf/mprox.h"
#include "engine/programs.hpp"

namespace mprox {

/// Says to the programs that a connection is to be its socket's again.
[[nodiscard]] mprox_take_back take_back_of(const mprox_ready& ready);

/// The connections of one shard that the BPF programs answer a connect() with by themselves, or the ports to make one from;
/// memory that both sides see.
/// A number belongs to the engine while it is free, to the programs while it waits, and to whoever changes its state after
/// that. Used by one thread.
class Ready {
  public:
    static constexpr std::uint32_t most = MPROX_POOL_MOST;

    /// Throws std::system_error.
    Ready(const Programs& programs, const mprox_call& context, std::uint32_t shard);
    Ready(const Ready&) = delete;
    ~Ready();

    /// Lets the programs have a connection, whose first part is filled in. Nothing when there is no room.
    [[nodiscard]] std::optional<std::uint32_t> offer(const mprox_ready& connection);
    /// Has the programs ask for a connect() with this one. The SYN has to be sent again for that. Nothing when they cannot.
    [[nodiscard]] std::optional<std::uint32_t> lend(const mprox_ready& connection, const mprox_event& held);
    /// Takes it back. False: a program has it already.
    [[nodiscard]] bool withdraw(std::uint32_t number);

    [[nodiscard]] mprox_ready_state state(std::uint32_t number) const;
    /// One that does not wait.
    [[nodiscard]] const mprox_ready& at(std::uint32_t number) const { return pool_->ready[number]; }
    /// The engine wants to carry on a connect() that a program has begun, and that is not open yet. False: something has happened.
    [[nodiscard]] bool give_up(std::uint32_t number);
    /// The same of one that is in that state.
    [[nodiscard]] bool give_up(std::uint32_t number, mprox_ready_state from) { return change(number, from, MPROX_READY_STUCK); }
    /// The connection is its socket's again. False: its packets are not what they were.
    [[nodiscard]] bool take_back(std::uint32_t number) const;
    /// Of one that does not wait, and that no program will change any more.
    void free(std::uint32_t number);

    /// How many do not just wait.
    [[nodiscard]] std::size_t busy() const;
    /// How many wait, or do not.
    [[nodiscard]] std::size_t used() const;

    /// An event is sent when no more than so many wait: of the connections, or of the ports.
    void set_low(std::uint32_t count) { pool_->low = count; }
    void set_ports_low(std::uint32_t count) { pool_->ports_low = count; }
    /// The fewest that have waited since the last call.
    [[nodiscard]] std::uint32_t fewest();

  private:
    [[nodiscard]] std::atomic_ref<std::uint32_t> cell(std::uint32_t number) const { return std::atomic_ref(pool_->state[number]); }
    [[nodiscard]] std::optional<std::uint32_t> find_free();
    [[nodiscard]] std::atomic_ref<std::uint32_t> count_of(std::uint32_t number) const {
        return std::atomic_ref(pool_->ready[number].port ? pool_->ports : pool_->waiting);
    }
    bool change(std::uint32_t number, mprox_ready_state from, mprox_ready_state to);

    const Programs& programs_;
    const mprox_call context_;
    const std::uint32_t shard_;
    mprox_pool* pool_;
    std::uint32_t last_ = 0;  // number that was found free
};

}  // namespace mprox
