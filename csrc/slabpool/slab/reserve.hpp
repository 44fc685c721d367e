// Room promised to a request: pages set aside for it, and the arenas that its small blocks are cut from.
//
// Pages in use and pages set aside together never exceed the capacity, so a promise can be kept whatever
// others do. Small blocks of a promise are cut one after another, whatever their sizes, out of a range of
// pages that is the request's alone: slabs, which others fill too, would leave parts of pages over, and
// the last of what was promised could then not be had. What its children give back serves the request again.
//
// Nothing here is thread-safe: the depot's mutex guards every call but reserved_pages().
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "slabpool/slab/page_heap.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

struct Reserve;

// A promise from outside. A stale one (its request is over) is recognised by its serial.
struct ReserveRef {
  Reserve* reserve = nullptr;
  std::uint64_t serial = 0;
};

// A range that blocks are cut from, front to back. The span is of kind arena; once the promise is over
// it is cut into several, around blocks that views still keep, and pages without one have gone back.
struct Arena {
  Span* span = nullptr;        // null once cut into several
  std::uint64_t used = 0;      // bytes cut so far
  std::uint64_t touched = 0;   // bytes from here on are known to be zero
  std::uint64_t live = 0;      // blocks not given back
  Reserve* reserve = nullptr;  // null: the promise is over
  Arena* next = nullptr;       // of the same reserve
  std::vector<Block*> blocks;  // by address; free ones have no span
  Block* free[kSlabClasses] = {};
};

struct Reserve {
  std::uint64_t serial = 0;      // 0: not in use
  std::uint64_t pages_left = 0;  // set aside and not drawn: at least what its arenas could still draw
  Arena* arenas = nullptr;       // blocks are cut from the first
  Reserve* next_spare = nullptr;
};

class Reserves {
 public:
  Reserves(PageHeap& pages, std::uint64_t capacity_pages)
      : pages_(pages), capacity_pages_(capacity_pages) {}
  Reserves(const Reserves&) = delete;
  Reserves& operator=(const Reserves&) = delete;
  ~Reserves();

  // Null if there is no room. Throws std::bad_alloc.
  ReserveRef open(std::uint64_t pages);
  // What was not drawn is room for others, and so are the pages of arenas as their blocks come back.
  void close(ReserveRef ref) noexcept;

  // A block of a size class; null block without system_refused: not covered by the promise.
  struct Cut {
    Block* block = nullptr;
    bool system_refused = false;
  };
  Cut cut(ReserveRef ref, unsigned size_class, std::uint64_t align);

  // For a tensor that is a span, or grows: how many of its new pages the promise covers, and, once it has
  // them, taking them off what is left. One span draws from one promise.
  std::uint64_t prepare(ReserveRef ref, std::uint64_t pages) noexcept;
  void draw(ReserveRef ref, std::uint64_t pages, Span* span) noexcept;
  static bool may_draw(ReserveRef ref, const Span& span) noexcept {
    return span.reserve_pages == 0 || (span.reserve == ref.reserve && span.reserve_serial == ref.serial);
  }

  // Takes back a block of an arena; what the promise has back of a span that is about to be freed.
  void give(Block* block) noexcept;
  void refund(Span* span) noexcept;

  // The block of an arena's span that holds an address. O(log n) in the blocks of the arena.
  static Block* find(const Span* span, const std::byte* address) noexcept;

  // Set aside for requests and not yet drawn. Relaxed: room is only ever granted under the mutex.
  std::uint64_t reserved_pages() const noexcept { return aside_.load(std::memory_order_relaxed); }
  const char* verify() const noexcept;

 private:
  static bool current(ReserveRef ref) noexcept {
    return ref.reserve != nullptr && ref.reserve->serial == ref.serial;
  }
  bool has_room(std::uint64_t pages) const noexcept {
    return pages_.in_use_pages() + reserved_pages() + pages <= capacity_pages_;
  }
  void set_left(Reserve& reserve, std::uint64_t pages) noexcept;
  static Block* reuse(Reserve& reserve, unsigned size_class, std::uint64_t align) noexcept;
  bool set_used(Arena& arena, std::uint64_t bytes) noexcept;
  void add_arena(Reserve& reserve);
  void add_records();
  void roll_back(Arena& arena) noexcept;
  void drop_unused(Arena& arena) noexcept;
  void keep_only_live(Arena& arena) noexcept;
  void retire(Arena* arena) noexcept;
  void retire(Block* block) noexcept;

  PageHeap& pages_;
  const std::uint64_t capacity_pages_;
  std::atomic<std::uint64_t> aside_{0};
  std::uint64_t next_serial_ = 1;
  std::vector<std::unique_ptr<Reserve>> all_;
  Reserve* spare_ = nullptr;
  std::vector<std::unique_ptr<Arena>> all_arenas_;
  Arena* spare_arenas_ = nullptr;
  std::vector<std::unique_ptr<Block[]>> all_blocks_;  // records; never freed while the pool lives
  Block* spare_blocks_ = nullptr;
};

}  // namespace slabpool
