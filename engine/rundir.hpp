// SPDX-License-Identifier: MIT
#pragma once

#include <expected>
#include <string>

#include "engine/fd.hpp"

namespace mprox {

/// /run/mprox: what the mprox processes of one machine share. A private BPF file system (the pins that keep
/// members caught when every process of ours is killed), a lock, and one file per living engine.
/// It is made by the first and removed by the last, also when started inside `ip netns exec`, whose mount
/// namespace ends too early to keep anything.
///
/// Holding a RunDir is holding the lock: nobody else makes or removes anything meanwhile.
class RunDir {
  public:
    /// Waits for the lock. The error is a sentence.
    static std::expected<RunDir, std::string> lock();

    /// Makes sure that the BPF file system is there; returns its path.
    [[nodiscard]] std::expected<std::string, std::string> bpf();

    /// Directory of the engines' files, made when missing.
    [[nodiscard]] std::string engines();

    /// Removes whatever is empty, then the lock.
    void tidy();

  private:
    RunDir(std::string path, Fd lock) : path_(std::move(path)), lock_(std::move(lock)) {}
    std::string path_;
    Fd lock_;
};

}  // namespace mprox
