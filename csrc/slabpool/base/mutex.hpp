// A mutex that is inlined where it is free: ten instructions for a lock and its unlock, two of them locked.
//
// As std::mutex, for sections that are short or rarely contended; std::mutex is a call into the C library each way, of
// fifty-five instructions together. A thread that finds it taken sleeps (std::atomic::wait). It is not fair.
#pragma once

#include <atomic>

#include "slabpool/base/assert.hpp"

namespace slabpool {

class Mutex {
 public:
  Mutex() noexcept = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // Acquire and release: a holder sees what the holders before it wrote.
  void lock() noexcept {
    if (!try_lock()) [[unlikely]]
      lock_after();
  }
  bool try_lock() noexcept {
    int now = kFree;
    return state_.compare_exchange_strong(now, kTaken, std::memory_order_acquire,
                                          std::memory_order_relaxed);
  }
  void unlock() noexcept {
    const int before = state_.exchange(kFree, std::memory_order_release);
    SLABPOOL_ASSERT(before != kFree, "only a mutex that is taken is unlocked");
    if (before == kAwaited) [[unlikely]]
      wake();
  }

 private:
  static constexpr int kFree = 0;
  static constexpr int kTaken = 1;
  static constexpr int kAwaited = 2;  // taken, and a thread may sleep

  [[gnu::noinline, gnu::cold]] void lock_after() noexcept {
    // A thread that slept takes it as awaited: others may sleep still. So its unlock may wake for nothing, and none is forgotten.
    while (state_.exchange(kAwaited, std::memory_order_acquire) != kFree)
      state_.wait(kAwaited, std::memory_order_relaxed);
  }
  [[gnu::noinline, gnu::cold]] void wake() noexcept { state_.notify_one(); }

  std::atomic<int> state_{kFree};
};

}  // namespace slabpool
