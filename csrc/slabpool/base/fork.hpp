// Knowing that this process is a fork of the one that made a pool.
//
// A pool's locks and lists may have been in use by another thread when fork() copied them, so the
// child must not touch them. Each pool remembers the epoch it was made in; the child's epoch differs.
#pragma once

#include <atomic>
#include <cstdint>

#include "slabpool/base/export.hpp"

namespace slabpool {

// Counts the forks between this process and the one that loaded the library.
SLABPOOL_API extern std::atomic<std::uint32_t> g_fork_epoch;

// Relaxed: it changes only in fork's child, before any other thread exists there.
inline std::uint32_t fork_epoch() noexcept { return g_fork_epoch.load(std::memory_order_relaxed); }

}  // namespace slabpool
