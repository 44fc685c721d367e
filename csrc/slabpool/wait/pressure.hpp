// Watches of how much of a pool is in use: which are above their bound, which thread waits to hear of it, and how far the
// use is from the next bound.
//
// A watch is *high* from the moment when the use reaches `up` until it is below `down`. A change is *pending* until take()
// has returned it. At most two are pending: of a watch that went up and down, both; of more changes, the last one or two, so
// that the last one taken is the present state.
//
// The pool knows what is in use (Pool::look_at_use). It calls update() with a figure, which returns how many bytes more
// or fewer would change a watch.
//
// A watch is a record of the caller's, as a Waiter is. Nothing here allocates. The mutex comes before CacheSet::revokers_ in
// the order of locks, because the use is read with it held.
//
// Invariants:
//   count_ == number of watches in the list;   a watch is in the list  <=>  its gauge_ is set and it is not closed
//   high_ of the gauge == some watch is high;   pending_ <= 2
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <mutex>

#include "slabpool/base/export.hpp"
#include "slabpool/base/fork.hpp"

namespace slabpool {

class PressureGauge;

// What the caller of a watch hears: the use, in bytes, went up to `up` or above, or below `down`.
struct PressureChange {
  bool high = false;
  std::uint64_t used = 0;
};

class SLABPOOL_API PressureWatch {
 public:
  PressureWatch() noexcept = default;
  PressureWatch(const PressureWatch&) = delete;
  PressureWatch& operator=(const PressureWatch&) = delete;
  ~PressureWatch();

  // Set before it is added. `fd`: an eventfd, written to when there is something to take; -1: none.
  std::uint64_t up = 0;
  std::uint64_t down = 0;  // <= up
  int fd = -1;

  // No further change comes: it was removed, or the pool was closed. Pending changes can still be taken.
  bool closed() const noexcept { return closed_.load(std::memory_order_acquire); }

 private:
  friend class PressureGauge;

  PressureGauge* gauge_ = nullptr;
  // Guarded by the gauge's mutex.
  PressureWatch* prev_ = nullptr;
  PressureWatch* next_ = nullptr;
  bool high_ = false;
  bool has_changed_ = false;  // since the last signals
  std::uint32_t pending_ = 0;
  std::uint64_t used_at_[2] = {};  // when it last became low, high
  std::atomic<bool> closed_{false};
  std::condition_variable news_;
};

class PressureGauge {
 public:
  // How many bytes more, and how many fewer, change no watch. kFar: none would.
  static constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max();
  struct Margins {
    std::int64_t rise = kFar;
    std::int64_t fall = kFar;
  };

  PressureGauge() noexcept = default;
  PressureGauge(const PressureGauge&) = delete;
  PressureGauge& operator=(const PressureGauge&) = delete;
  ~PressureGauge();

  // Relaxed: the look that follows the adding of a watch orders it with allocations (CacheSet::bound).
  bool any() const noexcept { return count_.load(std::memory_order_relaxed) != 0; }

  void add(PressureWatch& watch) noexcept;
  // Ends all waits on it. Repeating it does nothing; nor does a call in a fork's child.
  void remove(PressureWatch& watch) noexcept;
  void close_all() noexcept;

  // Calls read() with the mutex held: it calls update(), any number of times. Then wakes those that have news.
  template <typename Read>
  void look(Read&& read) noexcept {
    const std::lock_guard lock(mutex_);
    read();
    signal();
  }
  // By read().
  Margins update(std::uint64_t used) noexcept;
  bool is_high() const noexcept { return high_; }

  bool has_pending(const PressureWatch& watch) noexcept {
    const std::lock_guard lock(mutex_);
    return watch.pending_ != 0;
  }
  // Takes the first pending change.
  bool take(PressureWatch& watch, PressureChange& change) noexcept;
  // A thread sleeps until there is something to take, the watch is closed (true), or until `until_ns` (monotonic).
  bool wait(PressureWatch& watch, std::int64_t until_ns) noexcept;

 private:
  void unlink(PressureWatch& watch) noexcept;
  void signal() noexcept;
  static void wake(PressureWatch& watch) noexcept;

  const std::uint32_t epoch_ = fork_epoch();
  std::atomic<std::uint32_t> count_{0};
  std::mutex mutex_;
  PressureWatch* first_ = nullptr;
  bool high_ = false;
};

}  // namespace slabpool
