// SPDX-License-Identifier: MIT
// The descriptor under test, what it says of itself, and waiting for it.
#pragma once

#include <gtest/gtest.h>
#include <mprox/mprox.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/fd.hpp"

namespace conformance {

using mprox::Fd;

/// Milliseconds until something counts as hung: MPROX_TEST_PATIENCE seconds, 30 unless told.
int patience();

/// The errno of a call that failed, 0 of one that did not: EXPECT_EQ(error_of(::read(...)), EAGAIN).
int error_of(long result);

/// A new descriptor; the test has failed when it is empty.
Fd create(unsigned flags = 0);
/// Accepted, or the test has failed.
void configure(const Fd& fd, std::string_view text);
/// The error of writing `text`.
int write_error(const Fd& fd, std::string_view text);
/// GET_CONFIG's text.
std::string config_of(const Fd& fd);
mutex_proxy_stats stats_of(const Fd& fd);

/// A snapshot and its lines, `server` lines apart. Ill-formed ones fail the test.
struct Snapshot {
    std::string text;
    std::vector<std::string> keys;  // in their order
    std::map<std::string, std::string, std::less<>> values;
    std::vector<std::string> servers;

    explicit Snapshot(std::string from);
    [[nodiscard]] std::string operator[](std::string_view key) const;
    [[nodiscard]] std::uint64_t number(std::string_view key) const;
};

/// poll(2) says that all of `events` are there now.
bool is_ready(const Fd& fd, short events);
/// Waits until they are; false when patience is at its end.
bool await(const Fd& fd, short events);
/// Waits until the thread sleeps in the kernel.
void await_asleep(pid_t thread);
/// Waits until something can be read, and reads it.
Snapshot read_snapshot(const Fd& fd);
/// Reads the news there is (there must be some), so that only a change makes the descriptor readable again.
void drain(const Fd& fd);
/// Follows the descriptor's news until it has so many members.
void await_members(const Fd& fd, std::uint64_t members);

/// What could be read of it.
std::string file_text(const std::string& path);
std::string fdinfo_of(const Fd& fd);
/// Descriptors that this process has open.
std::size_t open_descriptors();
/// True when the line stands in the text as a whole.
bool has_line(std::string_view text, std::string_view line);

/// A page that can be written, with one behind it that cannot be touched.
class Edge {
  public:
    Edge();
    ~Edge();
    Edge(const Edge&) = delete;
    /// The last `bytes` before the edge.
    [[nodiscard]] char* last(std::size_t bytes) const { return end_ - bytes; }
    [[nodiscard]] char* beyond() const { return end_; }

  private:
    char* end_;
    std::size_t page_;
};

}  // namespace conformance
