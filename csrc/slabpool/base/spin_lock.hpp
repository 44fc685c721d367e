// A lock for sections of a few instructions. A thread yields the processor while another one holds it.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace slabpool {

class SpinLock {
 public:
  // Acquire and release: a holder sees what the holders before it wrote.
  void lock() noexcept {
    if (!try_lock()) [[unlikely]]
      wait();
  }
  // For a thread that takes the lock many times in a row: those that wait for it go first, up to kPatience yields. Without
  // that it would have the lock again before a thread that yields looks.
  void lock_last() noexcept {
    for (int i = 0; i < kPatience && waiting_.load(std::memory_order_relaxed) > 0; ++i)
      std::this_thread::yield();
    lock();
  }
  bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  static constexpr int kPatience = 100;

  [[gnu::noinline, gnu::cold]] void wait() noexcept {
    // Relaxed: a hint for lock_last().
    waiting_.fetch_add(1, std::memory_order_relaxed);
    while (!try_lock()) std::this_thread::yield();
    waiting_.fetch_sub(1, std::memory_order_relaxed);
  }

  std::atomic<bool> taken_{false};
  // Threads in wait(). Too low by those that waited while the lock's bytes were cleared (RequestTable::trim).
  std::atomic<std::int32_t> waiting_{0};
};

}  // namespace slabpool
