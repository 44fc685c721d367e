// A lock that one thread, its owner, takes very often and other threads, revokers, rarely.
//
// The owner enters with plain stores and a load: no locked instruction. A thread that needs the owner's cache (memory
// has run out, trim) revokes the lock first: it sets a flag, makes every running thread of the process execute a memory
// barrier (membarrier(2)), and waits until the owner is outside. Where the kernel lacks that call, and under
// ThreadSanitizer, which does not understand it, the owner uses a locked exchange instead.
//
// Revokers exclude each other by a mutex of their own. An owner that finds its lock revoked waits on that mutex too.
// It comes before the depot's mutex in the lock order.
//
// Invariants:
//   revoked_ = 1  =>  a thread holds the revokers' mutex
//   between the returns of wait() and restore(), the owner is not past enter()
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/export.hpp"

namespace slabpool {

// True if barrier_all_threads() works. Decided once, when the library is loaded.
SLABPOOL_API extern const bool kAsymmetricBarrier;

// When it returns, every running thread of this process has executed a full memory barrier.
SLABPOOL_API void barrier_all_threads() noexcept;

class OwnerLock {
 public:
  // By the owner only.
  void enter(std::mutex& revokers) noexcept {
    if (!try_enter()) [[unlikely]]
      enter_after(revokers);
  }
  // As enter(), but returns false where enter() would wait. The owner calls leave() in either case.
  bool try_enter() noexcept {
    SLABPOOL_ASSERT(inside_.load(std::memory_order_relaxed) == 0,
                    "the owner enters once before it leaves");
    if (asymmetric_) [[likely]] {
      // Relaxed; the compiler fence keeps the order. The processor may still execute the load below before the store,
      // which the revoker's barrier_all_threads() accounts for.
      inside_.store(1, std::memory_order_relaxed);
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      // Sequentially consistent, as are the revoker's store and load: one of the two threads sees the other.
      inside_.exchange(1, std::memory_order_seq_cst);
    }
    // Acquire pairs with restore(): the revoker's changes of the cache are visible. The stronger order is needed for
    // the exchange above.
    return revoked_.load(std::memory_order_seq_cst) == 0;
  }
  // Release: the owner's changes are visible to a revoker that waits for this store.
  void leave() noexcept {
    SLABPOOL_ASSERT(inside_.load(std::memory_order_relaxed) == 1, "only an owner that entered leaves");
    inside_.store(0, std::memory_order_release);
  }

  // By a thread that holds the revokers' mutex: revoke() on every lock it needs, barrier_all_threads() once, wait() on
  // each. It then owns the caches until restore().
  void revoke() noexcept {
    SLABPOOL_ASSERT(revoked_.load(std::memory_order_relaxed) == 0, "one revoker at a time");
    revoked_.store(1, std::memory_order_seq_cst);
  }
  void wait() const noexcept {
    SLABPOOL_ASSERT(revoked_.load(std::memory_order_relaxed) == 1, "a revoker revokes before it waits");
    // The owner is inside for a few instructions, unless the kernel deschedules it there.
    while (inside_.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
  }
  void restore() noexcept {
    SLABPOOL_ASSERT(revoked_.load(std::memory_order_relaxed) == 1, "only a revoked lock is restored");
    revoked_.store(0, std::memory_order_release);
  }

 private:
  [[gnu::noinline]] void enter_after(std::mutex& revokers) noexcept {
    do {
      leave();
      const std::lock_guard wait(revokers);
    } while (!try_enter());
  }

  std::atomic<std::uint32_t> inside_{0};
  std::atomic<std::uint32_t> revoked_{0};
  const bool asymmetric_ = kAsymmetricBarrier;  // a copy on the cache line that enter() needs anyway
};

}  // namespace slabpool
