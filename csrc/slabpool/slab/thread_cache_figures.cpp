// Figures of a pool from the counters of its thread caches: sums, and the peak of live bytes.
#include <algorithm>
#include <mutex>

#include "slabpool/slab/thread_cache.hpp"

namespace slabpool {

CacheSet::Sums CacheSet::sums() const noexcept {
  const std::lock_guard lock(revokers_);
  return sums_locked();
}

CacheSet::Sums CacheSet::sums_locked() const noexcept {
  // The counters only grow, so two equal passes in a row are sums of one instant. After four passes the last one is
  // returned; it may be off by the operations of other threads during the call.
  Sums sums{};
  for (int round = 0; round < 4; ++round) {
    const std::uint64_t before = sums.counts[0] + sums.counts[1];
    sums = Sums{};
    for (const auto& cache : caches_) {
      for (unsigned i = 0; i < kCounts; ++i)
        sums.counts[i] += cache->counts_[i].load(std::memory_order_acquire);
      sums.live += cache->live_.load(std::memory_order_acquire);
      sums.unretained += cache->unretained_.load(std::memory_order_relaxed);
    }
    if (round > 0 && before == sums.counts[0] + sums.counts[1]) break;
  }
  // The sum was higher than now if one thread's live bytes were, and no other thread has done anything since.
  const std::uint64_t all = sums.counts[0] + sums.counts[1];
  std::int64_t above = 0;
  for (const auto& cache : caches_) {
    if (cache->others_operations_.load(std::memory_order_relaxed) + cache->operations() != all) continue;
    above = std::max(above, cache->highest_live_.load(std::memory_order_relaxed) -
                                cache->live_.load(std::memory_order_relaxed));
  }
  raise_peak(sums.live + above);
  sums.peak_live = peak_live_.load(std::memory_order_relaxed);
  return sums;
}

void CacheSet::raise_peak(std::int64_t live) const noexcept {
  // Relaxed: for reports; written under revokers_.
  if (live > peak_live_.load(std::memory_order_relaxed))
    peak_live_.store(live, std::memory_order_relaxed);
  window_peak_ = std::max(window_peak_, live);
}

// Starts a window of time. Returns the highest live bytes of the last two, and writes those of now; with `stale`, what
// happened long ago does not count. While several threads work, the sum of their peaks counts, which may be too high.
std::int64_t CacheSet::start_window(bool stale, std::int64_t& live) noexcept {
  const std::lock_guard lock(revokers_);
  std::int64_t now = 0;
  std::int64_t highest = 0;
  for (const auto& cache : caches_) {
    const std::int64_t its = cache->live_.load(std::memory_order_relaxed);
    now += its;
    highest += std::max(its, cache->highest_live_.load(std::memory_order_relaxed));
    // As in update_peak(). Relaxed: for reports, and for how much is kept.
    cache->highest_live_.store(its, std::memory_order_relaxed);
    cache->set_update_above(its);
  }
  live = std::max<std::int64_t>(now, 0);
  const std::int64_t here = std::max({window_peak_, highest, live});
  const std::int64_t peak = stale ? live : std::max(here, window_peak_before_);
  window_peak_before_ = stale ? live : here;
  window_peak_ = live;
  return peak;
}

// A thread updates the peak when its own live bytes have risen by peak_step_ since the last update by any thread. So
// the peak is exact while one thread works. While several work it is never too high, and at most one step per thread
// too low.
void ThreadCache::update_peak() noexcept {
  const std::int64_t live = live_.load(std::memory_order_relaxed);
  const std::unique_lock lock(set_.revokers_, std::try_to_lock);
  // try_to_lock: the thread that has the mutex is updating the peak itself, or collecting all caches.
  if (lock.owns_lock()) {
    std::int64_t others_live = 0;
    std::uint64_t others_operations = 0;
    for (const auto& cache : set_.caches_) {
      if (cache.get() == this) continue;
      const std::int64_t its = cache->live_.load(std::memory_order_relaxed);
      others_live += its;
      others_operations += cache->operations();
      // The other thread may have been higher, but not at the same time as this one. Relaxed: for reports.
      cache->highest_live_.store(its, std::memory_order_relaxed);
      cache->set_update_above(its);
    }
    const bool alone = others_operations == others_operations_.load(std::memory_order_relaxed);
    set_.raise_peak(others_live + (alone ? highest_live_.load(std::memory_order_relaxed) : live));
    others_operations_.store(others_operations, std::memory_order_relaxed);
    set_update_above(live);
  }
  highest_live_.store(live, std::memory_order_relaxed);
}

// Under revokers_, as the next. Relaxed: see CacheSet::bound(). The highest is forgotten, so that no rise up to it is missed.
void ThreadCache::set_bounds(const UseSteps& step) noexcept {
  rise_above_.store(step.above(looked_at_), std::memory_order_relaxed);
  fall_below_.store(step.below(looked_at_), std::memory_order_relaxed);
  highest_live_.store(looked_at_, std::memory_order_relaxed);
  set_update_above(looked_at_);
}

// Beyond a bound it stays where it is: the next look sets it.
void ThreadCache::set_update_above(std::int64_t live) noexcept {
  update_above_.store(std::min(live + set_.peak_step_, rise_above_.load(std::memory_order_relaxed)),
                      std::memory_order_relaxed);
}

}  // namespace slabpool
