// A mutex that is inlined where it is free: nine instructions for a lock and its unlock, one of them locked.
//
// As std::mutex, for sections that are short or rarely contended; std::mutex is a call into the C library each way, of
// fifty-five instructions together, two of them locked. It is not fair, and it must outlive the last unlock's return: that looks
// for waiters after other threads may have it.
//
// The unlock is a plain store and a load of the number of threads that wait. The processor may execute the load first. So a
// thread that is about to sleep counts itself, has all running threads execute a barrier, and looks once more: either it finds
// the mutex free, or the holder finds the thread counted. Where the kernel has no such barrier, it polls.
#pragma once

#include <atomic>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/export.hpp"

namespace slabpool {

class SLABPOOL_API Mutex {
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
    SLABPOOL_ASSERT(state_.load(std::memory_order_relaxed) == kTaken,
                    "only a mutex that is taken is unlocked");
    state_.store(kFree, std::memory_order_release);
    // The compiler keeps the order of the store and the load; for the processor see lock_after(). Relaxed: a hint to wake.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (waiting_.load(std::memory_order_relaxed) != 0) [[unlikely]]
      wake();
  }

 private:
  static constexpr int kFree = 0;
  static constexpr int kTaken = 1;

  void lock_after() noexcept;
  void wake() noexcept;

  std::atomic<int> state_{kFree};
  std::atomic<int> waiting_{0};  // threads that sleep, or are about to
};

}  // namespace slabpool
