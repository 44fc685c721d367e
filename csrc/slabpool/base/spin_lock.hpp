// A lock for sections of a few instructions. It yields the processor while another thread holds it.
#pragma once

#include <atomic>
#include <thread>

namespace slabpool {

class SpinLock {
 public:
  // Acquire and release: a holder sees what the holders before it wrote.
  void lock() noexcept {
    while (!try_lock()) std::this_thread::yield();
  }
  bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> taken_{false};
};

}  // namespace slabpool
