// What the owner of the pool knows of one request, beside the bits of its holders.
//
// A record lives in a slot and is used again for later requests; it is never freed while the pool
// lives, so that an old handle can always be compared with it. `generation` says which request it is.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "slabpool/slab/block.hpp"
#include "slabpool/slab/reserve.hpp"

namespace slabpool {

// A request from outside: two integers, good in any process. Stale ones are recognised.
struct Handle {
  std::uint32_t slot = 0;
  std::uint64_t generation = 0;  // never 0, never used twice in a pool
};

// Where in the user's program something was done. `file` must outlive the pool's last report of it.
struct SourceLocation {
  const char* file = "";
  std::uint32_t line = 0;
};

// A lock for the few instructions that link a block into a request.
class SpinLock {
 public:
  void lock() noexcept {
    while (taken_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
  }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> taken_{false};
};

struct alignas(64) RequestRecord {
  static constexpr std::uint64_t kReleased = std::uint64_t{1} << 63;

  // 0: free slot; with kReleased: over, but views keep some of its blocks. Changed by claim() once for
  // each request, else under the table's mutex.
  std::atomic<std::uint64_t> generation{0};
  // Set while children are linked, so that an ack need not take the mutex to find that there are none.
  std::atomic<std::uint32_t> first_child{0};

  mutable SpinLock lock;    // guards blocks, and that generation does not change while one is linked
  Block* blocks = nullptr;  // chain of all its blocks; taken by whoever claims the release
  // Bytes it keeps from reuse; once released, those that views retain. Relaxed: a figure.
  std::atomic<std::uint64_t> nbytes{0};
  // Views of retained blocks. Those of the others are counted in the blocks, where making and dropping a
  // view needs no second word, and where they go along when a block moves. Signed: a view may be gone
  // before whoever ended the request has counted it. Relaxed: a figure.
  std::atomic<std::int32_t> retained_views{0};
  // 1 while the request is not over, and 1 for each retained block. At 0 the slot is free.
  std::atomic<std::uint32_t> keep{0};
  // Generation of the last request here whose blocks went back, all but those that views retain.
  std::atomic<std::uint64_t> ended{0};

  // Written at open, under the table's mutex.
  std::uint32_t slot = 0;
  std::int64_t opened_ns = 0;
  std::int64_t lease_ns = 0;  // 0: none
  SourceLocation opened_at;
  std::string id;
  std::uint64_t parent_generation = 0;

  // Links, guarded by the table's mutex. Slot + 1, 0 for none.
  std::size_t hash = 0;
  std::uint32_t hash_next = 0;
  std::uint32_t hash_prev = 0;
  std::uint32_t parent = 0;
  std::uint32_t next_sibling = 0;
  std::uint32_t prev_sibling = 0;
  // Written under the mutex, before the host's bit is cleared; attach() reads it without.
  std::atomic<bool> host_left{false};
  bool cancelled = false;

  // A session's memory (keep.cpp), guarded by the table's mutex but for `kept` itself, which is
  // written at open. Requests that may still read a kept one pin it: it is not over before they are.
  bool kept = false;
  std::uint32_t pins = 0;
  std::int64_t idle_since_ns = 0;  // of a kept one without pins
  std::vector<Handle> pinned;      // by this request
  // Whether blocks may be linked into this generation: it is not over, and the host holds. Exact under
  // `lock`.
  bool takes(Handle handle) const noexcept {
    return generation.load(std::memory_order_acquire) == handle.generation &&
           !host_left.load(std::memory_order_relaxed);
  }

  // Of this request or the one it descends from. Written at open; read without a lock, and a stale
  // answer does no harm, because charge() looks again.
  std::atomic<bool> has_budget{false};

  // Budget, guarded by the table's budget mutex. A child charges the request it descends from. An
  // allocation may be under way while its request ends and the slot gets another, so all of this is
  // used only where `charged_for` says whose it is.
  std::uint64_t charged_for = 0;  // generation; 0 once the budget was returned
  Handle root;
  std::uint64_t quota = 0;    // 0: none
  ReserveRef reserve;         // null: none
  std::uint64_t charged = 0;  // by this request alone
  std::uint64_t used = 0;     // by this request and its descendants
};

}  // namespace slabpool
