// A lock that one thread takes all the time and others almost never.
//
// The owner enters with two plain stores and a load: no locked instruction. Whoever wants to take a
// thread's cache away from it (memory has run out, statistics, trim) revokes first: it raises a flag,
// makes every running thread of the process pass a memory barrier (membarrier(2) on Linux), and
// waits until the owner is outside. Where the kernel has no such call, on other systems, and under
// ThreadSanitizer, which does not know it, the owner uses a locked exchange instead.
//
// Revokers exclude each other by a mutex of their own, which an owner that finds itself revoked also
// waits on; it comes before the depot's mutex in the order of locks.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#include "slabpool/base/export.hpp"

namespace slabpool {

// True if barrier_all_threads() works here: decided once, when the library is loaded.
SLABPOOL_API extern const bool kAsymmetricBarrier;

// Every running thread of this process has executed a full memory barrier when it returns.
SLABPOOL_API void barrier_all_threads() noexcept;

class OwnerLock {
 public:
  // By the owner only.
  void enter(std::mutex& revokers) noexcept {
    if (!try_enter()) [[unlikely]]
      enter_after(revokers);
  }
  // As enter(), but false where that would wait; leave() all the same.
  bool try_enter() noexcept {
    if (asymmetric_) [[likely]] {
      // Relaxed, kept in this order by the compiler fence. The processor may still let the load below
      // pass the store; the revoker's barrier_all_threads() makes up for it.
      inside_.store(1, std::memory_order_relaxed);
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      // Sequentially consistent, as is the revoker's store and load: one of the two sees the other.
      inside_.exchange(1, std::memory_order_seq_cst);
    }
    // Acquire pairs with restore(): what the revoker did to the cache is visible. The stronger order
    // belongs to the exchange above.
    return revoked_.load(std::memory_order_seq_cst) == 0;
  }
  // Release: what the owner did is visible to a revoker that waits for this.
  void leave() noexcept { inside_.store(0, std::memory_order_release); }

  // By whoever holds the revokers' mutex: revoke() on every lock wanted, barrier_all_threads() once,
  // wait() on each; then the cache is the caller's until restore().
  void revoke() noexcept { revoked_.store(1, std::memory_order_seq_cst); }
  void wait() const noexcept {
    // A handful of instructions, unless the owner was descheduled inside them.
    while (inside_.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
  }
  void restore() noexcept { revoked_.store(0, std::memory_order_release); }

 private:
  [[gnu::noinline]] void enter_after(std::mutex& revokers) noexcept {
    do {
      leave();
      const std::lock_guard wait(revokers);
    } while (!try_enter());
  }

  std::atomic<std::uint32_t> inside_{0};
  std::atomic<std::uint32_t> revoked_{0};
  const bool asymmetric_ = kAsymmetricBarrier;  // here, on the line that enter() needs anyway
};

}  // namespace slabpool
