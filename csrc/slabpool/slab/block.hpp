// What the pool knows of one piece of memory it hands out.
//
// Kept outside that memory, one cache line each, and never given back to the system while the pool
// lives: a stale pointer to a Block may be read, and its serial says whether it still is the same
// allocation. A block has a count of holds: the request's, and one a view. It is free at zero.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace slabpool {

struct Span;
class ThreadCache;
struct BlockDebug;

struct alignas(64) Block {
  // serial << 32 | holds. In one word, so that "one more hold, if it still is that allocation" is one
  // compare-and-swap. The serial counts the times the block was handed out.
  std::atomic<std::uint64_t> state{0};
  Block* next = nullptr;      // in a free list, an inbox, or a request's chain
  std::byte* data = nullptr;  // what the user sees
  std::uint64_t bytes = 0;    // what it takes from the pool
  Span* span = nullptr;       // where it was cut from
  union {
    ThreadCache* home = nullptr;  // cache of the thread that allocated it: where it returns to
    Block* prev;                  // of a block cut from an arena, while it is free
  };
  BlockDebug* debug = nullptr;  // only in pools with debug on
  std::uint32_t request = 0;    // slot + 1 of the request it belongs to, 0 for none
  std::uint16_t bin = 0;        // size class or bin of its size; kBins: too large for a cache
  bool zero = false;            // known to hold only zero bytes

  static constexpr std::uint64_t kOne = 1;
  static std::uint32_t holds(std::uint64_t state) noexcept { return static_cast<std::uint32_t>(state); }
  std::uint32_t serial() const noexcept {
    return static_cast<std::uint32_t>(state.load(std::memory_order_relaxed) >> 32);
  }

  // Called by the one thread that took the block off a free list, where its count is 0. Relaxed: others
  // learn of the block through whatever the caller publishes it with.
  void start(std::uint32_t first_holds) noexcept {
    state.store(state.load(std::memory_order_relaxed) + (std::uint64_t{1} << 32) + first_holds,
                std::memory_order_relaxed);
  }
  // Undoes start(), for a block that nobody else has learnt of.
  void abandon() noexcept {
    state.store(state.load(std::memory_order_relaxed) >> 32 << 32, std::memory_order_relaxed);
    next = nullptr;
    request = 0;
  }

  // One more hold, by somebody who already has one. Relaxed: that hold orders it.
  void hold() noexcept { state.fetch_add(kOne, std::memory_order_relaxed); }

  // One more hold, by somebody who has none but knows the serial. False if that allocation is gone.
  // Acquire pairs with the release of whoever let go last, and is needed only on success.
  bool hold_if(std::uint32_t expected_serial) noexcept {
    std::uint64_t now = state.load(std::memory_order_relaxed);
    do {
      if (now >> 32 != expected_serial || holds(now) == 0) return false;
    } while (!state.compare_exchange_weak(now, now + kOne, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    return true;
  }

  // One hold less; true if it was the last. Release publishes this holder's writes to the next
  // owner of the memory, acquire takes in those of the other holders.
  bool drop() noexcept { return holds(state.fetch_sub(kOne, std::memory_order_acq_rel)) == 1; }

  // As drop(), but only by whoever holds it alone; else nothing has changed.
  bool drop_if_alone() noexcept {
    std::uint64_t now = state.load(std::memory_order_relaxed);
    return holds(now) == 1 && state.compare_exchange_strong(now, now - kOne, std::memory_order_acq_rel,
                                                            std::memory_order_relaxed);
  }

  // As drop(), for a block without a request: such holds come from holds, so a count of one seen by
  // its holder cannot grow, and the locked instruction can be left out.
  bool drop_private() noexcept {
    const std::uint64_t now = state.load(std::memory_order_acquire);
    if (holds(now) != 1) return drop();
    state.store(now - kOne, std::memory_order_relaxed);
    return true;
  }
};
static_assert(sizeof(Block) == 64);

}  // namespace slabpool
