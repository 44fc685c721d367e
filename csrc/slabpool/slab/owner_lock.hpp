// A lock that one thread, its owner, takes very often and other threads, revokers, rarely.
//
// The owner enters with plain stores and a load: no locked instruction. A thread that needs the owner's cache (memory
// has run out, trim) revokes the lock first: it sets a flag, makes every running thread of the process execute a memory
// barrier (membarrier(2)), and waits until the owner is outside. Where the kernel lacks that call, and under
// ThreadSanitizer, which does not understand it, the owner uses a locked exchange instead.
//
// The call may start to fail at any time. The revoker that sees it fail tells the owner to use exchanges from then on
// (need_exchange()). It may trust the revocation once the owner has entered by an exchange, or was off its processor
// after revoke(). Until then the lock counts as taken by its owner, and the revoker restores it without waiting.
//
// Revokers exclude each other by a mutex of their own. An owner that finds its lock revoked waits on that mutex too.
// It comes before the depot's mutex in the lock order.
//
// Invariants:
//   kRevoked in word_  =>  a thread holds the revokers' mutex
//   between the returns of wait() and restore(), the owner is not past enter()
//   kExchange stays in word_ once it is there; exchanges_  =>  kExchange
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/barrier.hpp"
#include "slabpool/base/export.hpp"

namespace slabpool {

// Whether the thread of this process with this number was off its processor at some moment during the call, or has
// ended. The kernel executes a full memory barrier when it takes a thread off. False where /proc does not say.
SLABPOOL_API bool was_off_processor(int thread) noexcept;

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
    // Relaxed; the compiler fence keeps the order. The processor may still execute the load below before the store, which
    // the revoker's barrier_all_threads() accounts for.
    inside_.store(1, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    // Acquire pairs with restore(): the revoker's changes of the cache are visible. The stronger order is needed for
    // enter_by_exchange(). An owner that reads an old word without kExchange enters as before, see need_exchange().
    const std::uint32_t word = word_.load(std::memory_order_seq_cst);
    if (word == 0) [[likely]]
      return true;
    return word == kExchange && enter_by_exchange();
  }
  // Release: the owner's changes are visible to a revoker that waits for this store.
  void leave() noexcept {
    SLABPOOL_ASSERT(inside_.load(std::memory_order_relaxed) == 1, "only an owner that entered leaves");
    inside_.store(0, std::memory_order_release);
  }

  // By a thread that holds the revokers' mutex: revoke() on every lock it needs, barrier_all_threads() once, wait() on
  // each. It then owns the caches until restore(). If the barrier fails: need_exchange() on each, and wait() only on
  // locks whose owner exchanges() or was_off_processor().
  void revoke() noexcept {
    [[maybe_unused]] const std::uint32_t before = word_.fetch_or(kRevoked, std::memory_order_seq_cst);
    SLABPOOL_ASSERT((before & kRevoked) == 0, "one revoker at a time");
  }
  void wait() const noexcept {
    SLABPOOL_ASSERT((word_.load(std::memory_order_relaxed) & kRevoked) != 0,
                    "a revoker revokes before it waits");
    // The owner is inside for a few instructions, unless the kernel deschedules it there.
    while (inside_.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
  }
  // From the moment when the owner sees this, it enters by exchanges only. Relaxed: see exchanges().
  void need_exchange() noexcept { word_.fetch_or(kExchange, std::memory_order_relaxed); }
  // Whether every entry of the owner from its latest on is an exchange.
  bool exchanges() const noexcept { return exchanges_.load(std::memory_order_acquire); }
  void restore() noexcept {
    [[maybe_unused]] const std::uint32_t before = word_.fetch_and(~kRevoked, std::memory_order_release);
    SLABPOOL_ASSERT((before & kRevoked) != 0, "only a revoked lock is restored");
  }

 private:
  [[gnu::noinline]] void enter_after(std::mutex& revokers) noexcept {
    do {
      leave();
      const std::lock_guard wait(revokers);
    } while (!try_enter());
  }

  // Without calls, because it is part of the hot path's function.
  bool enter_by_exchange() noexcept {
    // Sequentially consistent, as are the revoker's change of the word and its load of inside_: one of the two threads
    // sees the other.
    inside_.exchange(1, std::memory_order_seq_cst);
    // Release: a revoker that reads this sees the exchange, and what the owner did before it.
    exchanges_.store(true, std::memory_order_release);
    return word_.load(std::memory_order_seq_cst) == kExchange;
  }

  static constexpr std::uint32_t kRevoked = 1;
  static constexpr std::uint32_t kExchange = 2;  // never taken back

  std::atomic<std::uint32_t> inside_{0};
  std::atomic<std::uint32_t> word_{asymmetric_barrier() ? 0 : kExchange};  // kRevoked, kExchange
  std::atomic<bool> exchanges_{(word_.load(std::memory_order_relaxed) & kExchange) != 0};
};

}  // namespace slabpool
