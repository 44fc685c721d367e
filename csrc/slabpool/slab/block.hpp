// The record of one block: a piece of memory that the pool hands out.
//
// Records lie outside that memory, one cache line each, and stay readable while the pool lives (RecordChunks). So a stale
// pointer to a Block may be read, and the serial tells whether it still is the same allocation. A block is held by its
// request, if it has one, and by each of its views. Every change of the holds is one atomic operation on `state`, so exactly one
// thread sees the last hold go.
//
// Invariants:
//   state = serial << 32 | (a request holds it) << 31 | views
//   holds(state) = 0  <=>  the block is free
//   serial is another one each time that the block is handed out (modulo 2^32), whatever became of its record meanwhile
//   holds(state) = 0  =>  tag = 0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "slabpool/base/add_alone.hpp"
#include "slabpool/base/assert.hpp"

namespace slabpool {

struct Span;
class ThreadCache;
struct BlockDebug;

struct alignas(64) Block {
  // One word, so that "add a view if it still is that allocation" is one compare-and-swap.
  std::atomic<std::uint64_t> state{0};
  Block* next = nullptr;      // in a free list, an inbox, or a request's chain
  std::byte* data = nullptr;  // first byte of the memory
  std::uint64_t bytes = 0;    // bytes of the pool that it occupies
  Span* span = nullptr;       // the span it was cut from
  union {
    // The cache of the thread that has it in a list, or that allocated it, to which it returns; null, or another's, if no cache
    // keeps it.
    ThreadCache* home = nullptr;
    Block* prev;  // in an arena's free list
  };
  BlockDebug* debug = nullptr;  // only in pools with debug on
  // Slot + 1 of the request it belongs to, 0 for none; of a free block, of the last one or 0. Changes while the block is held
  // only when it moves to another request, under the locks of both. Relaxed: a thread that finds the block retained in `state`
  // (acquire) sees the last value; other threads only test whether there is a request.
  std::atomic<std::uint32_t> request{0};
  std::uint16_t bin = 0;  // size class or bin of its size; kBins: not kept by thread caches
  bool zero = false;      // known to hold only zero bytes
  // For reports. Set by the holder of a block without a request and cleared before the block is released; 0: an
  // ordinary view.
  std::atomic<std::uint8_t> tag{0};

  static constexpr std::uint64_t kView = 1;
  static constexpr std::uint64_t kRequest = std::uint64_t{1} << 31;
  static std::uint32_t holds(std::uint64_t state) noexcept { return static_cast<std::uint32_t>(state); }
  static std::uint32_t views(std::uint64_t state) noexcept {
    return static_cast<std::uint32_t>(state & (kRequest - 1));
  }
  std::uint32_t live_views() const noexcept { return views(state.load(std::memory_order_relaxed)); }
  std::uint32_t serial() const noexcept {
    return static_cast<std::uint32_t>(state.load(std::memory_order_relaxed) >> 32);
  }

  // Called by the thread that took the block off a free list. Relaxed: the caller publishes the block to other threads
  // by other means.
  void start(std::uint64_t first_holds) noexcept {
    SLABPOOL_ASSERT(holds(state.load(std::memory_order_relaxed)) == 0,
                    "a block is handed out while it has a holder", data, serial());
    SLABPOOL_ASSERT(holds(first_holds) != 0 && first_holds <= (kRequest | kView),
                    "a block starts with a holder", first_holds);
    add_alone(state, (std::uint64_t{1} << 32) + first_holds);
  }
  // For a record of zero bytes: no allocation that had a serial up to this one is taken for one of it.
  void start_above(std::uint32_t serial) noexcept {
    state.store(std::uint64_t{serial} << 32, std::memory_order_relaxed);
  }
  // Undoes start(), for a block that was not published.
  void abandon() noexcept {
    state.store(state.load(std::memory_order_relaxed) >> 32 << 32, std::memory_order_relaxed);
    next = nullptr;
    request.store(0, std::memory_order_relaxed);
  }

  // Adds a view. The caller has one already, which orders this: relaxed.
  void hold() noexcept {
    [[maybe_unused]] const std::uint64_t before = state.fetch_add(kView, std::memory_order_relaxed);
    SLABPOOL_ASSERT(holds(before) != 0, "only a held block gets a further view", data, before);
    SLABPOOL_ASSERT(views(before) != kRequest - 1, "views do not run into the request's bit", data,
                    before);
  }

  // Adds or removes a view if the request holds the block; else changes nothing and returns false. Release publishes
  // the accesses through the view, as in drop(); acquire: see `request`.
  bool hold_with_request() noexcept { return change_with_request(kView); }
  bool drop_with_request() noexcept { return change_with_request(-kView); }

  // Adds a view. The caller has none but knows the serial. False if that allocation has ended, or its request has
  // released it. Acquire pairs with the release in drop() and let_go(); it is needed only on success.
  bool hold_if(std::uint32_t expected_serial) noexcept {
    std::uint64_t now = state.load(std::memory_order_relaxed);
    do {
      if (now >> 32 != expected_serial || (now & kRequest) == 0) return false;
    } while (!state.compare_exchange_weak(now, now + kView, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    return true;
  }

  // Removes a view; true if that was the last hold. Release publishes this holder's writes to the next owner of the
  // memory; acquire makes the writes of the other holders visible here.
  bool drop() noexcept {
    const std::uint64_t before = state.fetch_sub(kView, std::memory_order_acq_rel);
    SLABPOOL_ASSERT(views(before) != 0, "a view is removed once", data, before);
    return holds(before) == 1;
  }

  // Removes the request's hold and returns the number of views that remain. Orders as in drop().
  std::uint32_t let_go() noexcept {
    const std::uint64_t before = state.fetch_and(~kRequest, std::memory_order_acq_rel);
    SLABPOOL_ASSERT((before & kRequest) != 0, "a request releases a block once", data, before);
    return views(before);
  }
  // The same if there are no views; else changes nothing and returns false.
  bool let_go_if_alone() noexcept {
    std::uint64_t now = state.load(std::memory_order_relaxed);
    return holds(now) == kRequest &&
           state.compare_exchange_strong(now, now - kRequest, std::memory_order_acq_rel,
                                         std::memory_order_relaxed);
  }

  // As drop(), for a block that no request holds: it has none, or its request has left it. Only a holder of such a block can
  // add a view, so a count of one seen by its holder cannot grow, and no locked instruction is needed.
  bool drop_private() noexcept { return drop_only_view() || drop(); }
  // The same if it is the only view; else changes nothing and returns false.
  bool drop_only_view() noexcept {
    const std::uint64_t now = state.load(std::memory_order_acquire);
    SLABPOOL_ASSERT((now & kRequest) == 0, "no request holds a private block", data, now);
    if (holds(now) != 1) return false;
    subtract_alone(state, kView);
    return true;
  }

 private:
  bool change_with_request(std::uint64_t by) noexcept {
    std::uint64_t now = state.load(std::memory_order_acquire);
    while ((now & kRequest) != 0) {
      SLABPOOL_ASSERT(by == kView || views(now) != 0, "a view is removed once", data, now);
      if (state.compare_exchange_weak(now, now + by, std::memory_order_acq_rel,
                                      std::memory_order_acquire))
        return true;
    }
    return false;
  }
};
static_assert(sizeof(Block) == 64);

}  // namespace slabpool
