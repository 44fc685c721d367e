// What the pool knows of one piece of memory it hands out.
//
// Kept outside that memory, one cache line each, and never given back to the system while the pool
// lives: a stale pointer to a Block may be read, and its serial says whether it still is the same
// allocation. A block is held by its request, if it has one, and by each of its views; it is free once
// nobody holds it. What one change of `state` says is so: whoever let go saw who else held on.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace slabpool {

struct Span;
class ThreadCache;
struct BlockDebug;

struct alignas(64) Block {
  // serial << 32 | kRequest, if a request holds it, | views. In one word, so that "one more view, if it
  // still is that allocation" is one compare-and-swap. The serial counts the times the block was handed out.
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
  // Slot + 1 of the request it belongs to, 0 for none. Changes while it is held only when the block moves
  // to another request, under the locks of both. Relaxed: whoever finds the block retained in `state`
  // (acquire) sees the last one; to all others it only says whether there is a request.
  std::atomic<std::uint32_t> request{0};
  std::uint16_t bin = 0;  // size class or bin of its size; kBins: too large for a cache
  bool zero = false;      // known to hold only zero bytes
  // For reports, set by whoever holds a block without a request and cleared before it lets go; 0: an
  // ordinary view.
  std::atomic<std::uint8_t> tag{0};

  static constexpr std::uint64_t kView = 1;
  static constexpr std::uint64_t kRequest = std::uint64_t{1} << 31;
  static std::uint32_t holds(std::uint64_t state) noexcept { return static_cast<std::uint32_t>(state); }
  static std::uint32_t views(std::uint64_t state) noexcept {
    return static_cast<std::uint32_t>(state & (kRequest - 1));
  }
  std::uint32_t serial() const noexcept {
    return static_cast<std::uint32_t>(state.load(std::memory_order_relaxed) >> 32);
  }

  // Called by the one thread that took the block off a free list, where its count is 0. Relaxed: others
  // learn of the block through whatever the caller publishes it with.
  void start(std::uint64_t first_holds) noexcept {
    state.store(state.load(std::memory_order_relaxed) + (std::uint64_t{1} << 32) + first_holds,
                std::memory_order_relaxed);
  }
  // Undoes start(), for a block that nobody else has learnt of.
  void abandon() noexcept {
    state.store(state.load(std::memory_order_relaxed) >> 32 << 32, std::memory_order_relaxed);
    next = nullptr;
    request.store(0, std::memory_order_relaxed);
  }

  // One more view, by somebody who already has one. Relaxed: that one orders it.
  void hold() noexcept { state.fetch_add(kView, std::memory_order_relaxed); }

  // One more view, or one less, while the request holds the block; false once it does not, and then nothing
  // has changed. Release publishes what was done with the view, as in drop(); acquire: see `request`.
  bool hold_with_request() noexcept { return change_with_request(kView); }
  bool drop_with_request() noexcept { return change_with_request(-kView); }

  // One more view, by somebody who has none but knows the serial. False if that allocation is gone, or its
  // request has let go of it. Acquire pairs with the release of whoever let go, and is needed only on
  // success.
  bool hold_if(std::uint32_t expected_serial) noexcept {
    std::uint64_t now = state.load(std::memory_order_relaxed);
    do {
      if (now >> 32 != expected_serial || (now & kRequest) == 0) return false;
    } while (!state.compare_exchange_weak(now, now + kView, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    return true;
  }

  // One view less; true if nobody holds the block now. Release publishes this holder's writes to the next
  // owner of the memory, acquire takes in those of the other holders.
  bool drop() noexcept { return holds(state.fetch_sub(kView, std::memory_order_acq_rel)) == 1; }

  // The request lets go: how many views hold on. Orders as in drop().
  std::uint32_t let_go() noexcept {
    return views(state.fetch_and(~kRequest, std::memory_order_acq_rel));
  }
  // The same if there are none; else nothing has changed.
  bool let_go_if_alone() noexcept {
    std::uint64_t now = state.load(std::memory_order_relaxed);
    return holds(now) == kRequest &&
           state.compare_exchange_strong(now, now - kRequest, std::memory_order_acq_rel,
                                         std::memory_order_relaxed);
  }

  // As drop(), for a block without a request: such holds come from holds, so a count of one seen by
  // its holder cannot grow, and the locked instruction can be left out.
  bool drop_private() noexcept {
    const std::uint64_t now = state.load(std::memory_order_acquire);
    if (holds(now) != 1) return drop();
    state.store(now - kView, std::memory_order_relaxed);
    return true;
  }

 private:
  bool change_with_request(std::uint64_t by) noexcept {
    std::uint64_t now = state.load(std::memory_order_acquire);
    while ((now & kRequest) != 0) {
      if (state.compare_exchange_weak(now, now + by, std::memory_order_acq_rel,
                                      std::memory_order_acquire))
        return true;
    }
    return false;
  }
};
static_assert(sizeof(Block) == 64);

}  // namespace slabpool
