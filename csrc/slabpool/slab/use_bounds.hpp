// How the live bytes of a pool are watched without a counter that all threads write.
//
// Each thread has two bounds of its own live bytes. As long as every thread is within its bounds, the sum is within what the
// watches allow. A thread that passes one looks at the sum, and all get new bounds. The upper bound costs the hot path
// nothing: it is the one at which a thread updates the peak (ThreadCache::update_above_). The lower one is read by threads
// that return memory while returns are watched (WaitQueue::watch_returns).
//
// A look writes the bounds, makes every running thread execute a memory barrier, and reads the live bytes once more. So a
// thread that changes its live bytes afterwards reads its new bounds. What it changed before, the look has seen.
#pragma once

#include <mutex>

#include "slabpool/slab/thread_cache.hpp"

namespace slabpool {

// steps(live, shares, alone) is how many bytes each of `shares` parties may go up and down before the next look; the threads
// are all but one of them. `alone`: no other thread has a cache. Called once or more, with the live bytes of all threads.
template <typename Steps>
void CacheSet::bound(Steps&& steps) noexcept {
  // Rounds of one look. Each fails only if a thread passed its new bounds within the microseconds of the round before.
  constexpr int kRounds = 8;
  const std::lock_guard lock(revokers_);
  const auto shares = static_cast<std::int64_t>(caches_.size()) + 1;
  const bool alone = caches_.empty() || (caches_.size() == 1 && caches_.front().get() == last());
  for (int round = 0;; ++round) {
    (void)sums_locked();  // updates the peak, before the highest of each thread is forgotten
    std::int64_t live = 0;
    for (const auto& cache : caches_) {
      cache->looked_at_ = cache->live_.load(std::memory_order_acquire);
      live += cache->looked_at_;
    }
    const UseSteps step = steps(live, shares, alone);
    watched_ = step.rise != UseSteps::kUnbounded || step.fall != UseSteps::kUnbounded;
    if (round == kRounds) return;
    for (const auto& cache : caches_) cache->set_bounds(step);
    if (alone || !watched_) return;
    // Without the barrier a change at this moment may be seen by the next look only.
    (void)barrier_all_threads();
    bool within = true;
    for (const auto& cache : caches_) {
      const std::int64_t its = cache->live_.load(std::memory_order_acquire);
      const std::int64_t most = cache->rise_above_.load(std::memory_order_relaxed);
      within = within && its <= most && its >= cache->fall_below_.load(std::memory_order_relaxed) &&
               cache->highest_live_.load(std::memory_order_relaxed) <= most;
    }
    if (within) return;
  }
}

}  // namespace slabpool
