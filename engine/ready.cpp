// SPDX-License-Identifier: MIT
#include "engine/ready.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <system_error>

namespace mprox {

static_assert(std::atomic_ref<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(mprox_pool) % 8 == 0, "the kernel pads array elements to 8 bytes");

mprox_take_back take_back_of(const mprox_ready& ready) {
    return {.outward_key = ready.outward_key,
            .inward_key = ready.inward_key,
            .cookie = ready.held.cookie,
            .attempt = ready.held.attempt,
            .device = ready.device,
            .send_next = ready.send_next,
            .receive_next = ready.receive_next};
}

Ready::Ready(const Programs& programs, const mprox_call& context, std::uint32_t shard)
    : programs_(programs), context_(context), shard_(shard) {
    void* memory = ::mmap(nullptr, sizeof(mprox_pool), PROT_READ | PROT_WRITE, MAP_SHARED, programs.pool(shard), 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "cannot map a pool");
    pool_ = static_cast<mprox_pool*>(memory);
}

Ready::~Ready() { ::munmap(pool_, sizeof(mprox_pool)); }

bool Ready::change(std::uint32_t number, mprox_ready_state from, mprox_ready_state to) {
    std::uint32_t expected = from;
    return cell(number).compare_exchange_strong(expected, to);
}

// One that was in use until now comes last: a program that has been held up may still think of it.
std::optional<std::uint32_t> Ready::find_free() {
    for (std::uint32_t step = 1; step <= most; step++)
        if (const std::uint32_t number = (last_ + step) % most; state(number) == MPROX_READY_FREE) return last_ = number;
    return {};
}

std::optional<std::uint32_t> Ready::offer(const mprox_ready& connection) {
    const auto number = find_free();
    if (!number) return {};
    pool_->ready[*number] = connection;
    // Counted before: whoever takes it counts it out.
    count_of(*number)++;
    cell(*number) = MPROX_READY_WAITS;
    return number;
}

std::optional<std::uint32_t> Ready::lend(const mprox_ready& connection, const mprox_event& held) {
    const auto number = find_free();
    if (!number) return {};
    pool_->ready[*number] = connection;
    pool_->ready[*number].number = *number;
    pool_->ready[*number].held = held;
    cell(*number) = MPROX_READY_TAKEN;
    if (programs_.ask({.owner = {.slot = context_.slot, .generation = context_.generation}, .shard = shard_, .number = *number}))
        return number;
    free(*number);
    return {};
}

bool Ready::withdraw(std::uint32_t number) {
    if (!change(number, MPROX_READY_WAITS, MPROX_READY_FREE)) return false;
    count_of(number)--;
    return true;
}

mprox_ready_state Ready::state(std::uint32_t number) const { return static_cast<mprox_ready_state>(cell(number).load()); }

bool Ready::give_up(std::uint32_t number) {
    for (const auto state : {MPROX_READY_DIALLED, MPROX_READY_GREETED, MPROX_READY_ASKED, MPROX_READY_ANSWERED})
        if (change(number, state, MPROX_READY_STUCK)) return true;
    return false;
}

bool Ready::take_back(std::uint32_t number) const { return programs_.take_back(take_back_of(at(number))); }

void Ready::free(std::uint32_t number) { cell(number) = MPROX_READY_FREE; }

std::size_t Ready::busy() const {
    std::size_t count = 0;
    for (std::uint32_t number = 0; number < most; number++) count += state(number) > MPROX_READY_WAITS;
    return count;
}

std::size_t Ready::used() const {
    std::size_t count = 0;
    for (std::uint32_t number = 0; number < most; number++) count += state(number) != MPROX_READY_FREE;
    return count;
}

std::uint32_t Ready::fewest() {
    return std::atomic_ref(pool_->fewest).exchange(std::atomic_ref(pool_->waiting).load());
}

}  // namespace mprox
