// Memory promised to a request: reserved pages, and the arenas that its small blocks are cut from.
//
// Small blocks of a promise are cut one after another, whatever their sizes, out of a range of pages that only this
// request uses. In slabs, which other requests fill too, parts of pages would stay unused, and the last promised bytes
// could not be allocated. Blocks that are returned to the promise can be allocated from it again.
//
// A promise may be made inside another one, `from` (reserve_nested.cpp). Its pages are those of `from`, as far as that has
// any left. When it has none left it draws on `from`. When it is closed its pages go back to `from`: at once, or as they are
// returned. So a promise loses nothing by those that were made in it.
//
// Not thread-safe: the depot's mutex guards every call except reserved_pages().
//
// Invariants:
//   pages in use + reserved_pages() <= capacity,   so every promise can be kept
//   reserved_pages() = sum of pages_left over all promises
//   sum over the arenas of a promise of (span.pages - span.drawn) <= pages_left
//   holds = pages that spans have drawn from a promise and not returned + promises made in it that are open or sign-posts
//   span.drawn = pages_for(arena.used),   span.count = arena.live        (while the arena has its span)
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "slabpool/slab/page_heap.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

struct Reserve;

// A caller's reference to a promise. The serial tells when it is stale, because the promise was closed.
struct ReserveRef {
  Reserve* reserve = nullptr;
  std::uint64_t serial = 0;
};

// A range that blocks are cut from, front to back. Its span has kind arena. When the promise is closed while some blocks are
// in use, the span is cut into several around those blocks, and the other pages are freed. A block that returns later frees
// the pages that only it used.
struct Arena {
  Span* span = nullptr;        // null once it was cut into several
  std::uint64_t used = 0;      // bytes cut so far
  std::uint64_t touched = 0;   // bytes from this offset on are known to be zero
  std::uint64_t live = 0;      // blocks not returned yet
  Reserve* reserve = nullptr;  // null: the promise is closed
  Arena* next = nullptr;       // of the same promise
  std::vector<Block*> blocks;  // by address; a free block has no span
  Block* free[kSlabClasses] = {};
};

struct Reserve {
  std::uint64_t serial = 0;      // 0: not in use
  std::uint64_t pages_left = 0;  // promised and not drawn
  Arena* arenas = nullptr;       // blocks are cut from the first
  ReserveRef from;               // the promise that it was made in; null: none
  // What was promised: pages that it got at its opening from `from`, and others. Less what has left it since (leave()).
  std::uint64_t base = 0;
  std::uint64_t extra = 0;
  std::uint64_t borrowed = 0;    // pages that it got from `from` later: they go back there first
  std::uint64_t owed = 0;        // of pages that return here: those that nothing promises any more
  std::uint64_t gone_bytes = 0;  // of blocks that have left, less than a page: not owed yet
  // Closed, while spans still have pages of it: the promise that these return to.
  ReserveRef into;
  std::uint64_t holds = 0;
  Reserve* next_spare = nullptr;
};

// How a block that moves to another request leaves the promises that it was drawn from: see Reserves::plan_leaving().
struct Leaving {
  static constexpr unsigned kMost = 8;
  // Of one promise that the block leaves: bytes by which it gets smaller, and how many of them were those of the promise
  // around it.
  struct Step {
    const Reserve* of = nullptr;
    std::uint64_t own = 0;
    std::uint64_t own_above = 0;
    std::uint64_t borrowed = 0;  // pages beside them that it had borrowed
  };
  Step steps[kMost];
  unsigned count = 0;
  std::uint64_t drawn = 0;  // bytes of the block that were drawn from any of the promises
  std::uint64_t stays = 0;  // of these: what stays drawn from a promise that the block does not leave
};

class Reserves {
 public:
  Reserves(PageHeap& pages, std::uint64_t capacity_pages)
      : pages_(pages), capacity_pages_(capacity_pages) {}
  Reserves(const Reserves&) = delete;
  Reserves& operator=(const Reserves&) = delete;
  ~Reserves();

  // Null if there is no room for what `from`, if it is open, has not left. Throws std::bad_alloc.
  ReserveRef open(std::uint64_t pages, ReserveRef from = {});
  // How many of the pages of a new promise must be room that nothing promises.
  static std::uint64_t needed(std::uint64_t pages, ReserveRef from) noexcept {
    return pages - std::min(pages, drawable(from));
  }
  // Pages that were not drawn become room for others (or go back to `from`) at once, and those that are drawn as they are
  // returned. Allocates nothing.
  void close(ReserveRef ref) noexcept;

  // A block of a size class. Null without system_refused: the promise has too few pages left.
  struct Cut {
    Block* block = nullptr;
    bool system_refused = false;
  };
  Cut cut(ReserveRef ref, unsigned size_class, std::uint64_t align);

  // Whether cut() finds a block, or pages for one.
  static bool can_cut(ReserveRef ref, unsigned size_class, std::uint64_t align) noexcept;

  // For a span or growing tensor. prepare(): how many of its `pages` new pages the promise can supply, with those that it
  // gets from the promises around it. draw(): subtracts them, once the span has them. give_up(): the span got none. A span
  // draws from one promise only.
  std::uint64_t prepare(ReserveRef ref, std::uint64_t pages) noexcept;
  void draw(ReserveRef ref, std::uint64_t pages, Span* span) noexcept;
  void give_up(ReserveRef ref) noexcept;
  static bool may_draw(ReserveRef ref, const Span& span) noexcept {
    return span.reserve_pages == 0 || (span.reserve == ref.reserve && span.reserve_serial == ref.serial);
  }

  // Takes back a block of an arena.
  void give(Block* block) noexcept;
  // Adds pages of a span that were freed to the promise that it has drawn from, if that is still open: as many as it has
  // drawn.
  void refund(Span* span, std::uint64_t freed = ~std::uint64_t{0}) noexcept;
  // How many pages refund() would add to a promise.
  static std::uint64_t refundable(const Span& span) noexcept {
    return returns_to({span.reserve, span.reserve_serial}) != nullptr ? span.reserve_pages : 0;
  }

  // A block moves to a request that is not under the promises `left` (the innermost first), but under `shared`. What was drawn
  // for it goes along: the promises that it leaves get smaller by it, and nothing of it returns to them. Pages that these
  // had from a promise in `shared` stay drawn from that, if the block is a span; an arena's block stays in its arena,
  // which returns them there later. plan_leaving() changes nothing; leave() follows under the same lock.
  Leaving plan_leaving(const Block& block, std::span<const ReserveRef> left,
                       std::span<const ReserveRef> shared) const noexcept;
  void leave(Block& block, const Leaving& leaving) noexcept;

  // Whether what was drawn for a span, or an arena, returns to this promise or to one around it.
  static bool returns_within(const Span& span, ReserveRef ref) noexcept {
    const Reserve* to = span.kind == SpanKind::arena ? span.arena->reserve
                                                     : returns_to({span.reserve, span.reserve_serial});
    for (; to != nullptr && current(ref); ref = ref.reserve->from)
      if (ref.reserve == to) return true;
    return false;
  }
  // The block of an arena's span that contains an address. O(log n) in the blocks of the arena.
  static Block* find(const Span* span, const std::byte* address) noexcept;

  // Promised and not drawn. Relaxed: decisions are made under the mutex.
  std::uint64_t reserved_pages() const noexcept { return reserved_.load(std::memory_order_relaxed); }
  std::uint64_t metadata_bytes() const noexcept {
    return all_.size() * sizeof(Reserve) + all_arenas_.size() * sizeof(Arena) +
           all_blocks_.size() * kRecordBatch * sizeof(Block);
  }
  // Of one promise; 0 once it is closed.
  static std::uint64_t left_of(ReserveRef ref) noexcept {
    return current(ref) ? ref.reserve->pages_left : 0;
  }
  // What can be drawn through a promise: of it and of those around it.
  static std::uint64_t drawable(ReserveRef ref) noexcept {
    std::uint64_t pages = 0;
    for (; current(ref); ref = ref.reserve->from) pages += ref.reserve->pages_left;
    return pages;
  }
  const char* verify() const noexcept;

 private:
  static constexpr std::size_t kRecordBatch = 64;

  static bool names(ReserveRef ref) noexcept {
    return ref.reserve != nullptr && ref.reserve->serial == ref.serial;
  }
  static bool current(ReserveRef ref) noexcept {
    return names(ref) && ref.reserve->into.reserve == nullptr;
  }
  // The open promise that drawn pages return to; null: none.
  static Reserve* returns_to(ReserveRef ref) noexcept {
    for (; names(ref); ref = ref.reserve->into)
      if (ref.reserve->into.reserve == nullptr) return ref.reserve;
    return nullptr;
  }
  bool has_room(std::uint64_t pages) const noexcept {
    return pages_.in_use_pages() + reserved_pages() + pages <= capacity_pages_;
  }
  void set_left(Reserve& reserve, std::uint64_t pages) noexcept;
  Cut cut_from(Reserve& reserve, unsigned size_class, std::uint64_t align);
  void limit_arenas(Reserve& reserve, std::uint64_t most) noexcept;
  void remove_if_empty(Arena& arena) noexcept;
  void top_up(Reserve& reserve, std::uint64_t pages) noexcept;
  bool put_back(Reserve& reserve, std::uint64_t pages) noexcept;
  void merge(Reserve& reserve, Reserve& from) noexcept;
  void drop_holds(ReserveRef ref, std::uint64_t holds) noexcept;
  void retire(Reserve& reserve) noexcept;
  static Block* find_free(const Arena& arena, unsigned size_class, std::uint64_t align) noexcept;
  static Block* reuse(Reserve& reserve, unsigned size_class, std::uint64_t align) noexcept;
  bool set_used(Arena& arena, std::uint64_t bytes) noexcept;
  void add_arena(Reserve& reserve);
  void add_records();
  void roll_back(Arena& arena) noexcept;
  void drop_unused(Arena& arena) noexcept;
  void keep_only_live(Arena& arena) noexcept;
  void free_pages_of(const Block& block, Span* span) noexcept;
  void retire(Arena* arena) noexcept;
  void retire(Block* block) noexcept;

  PageHeap& pages_;
  const std::uint64_t capacity_pages_;
  std::atomic<std::uint64_t> reserved_{0};
  std::uint64_t next_serial_ = 1;
  std::vector<std::unique_ptr<Reserve>> all_;
  Reserve* spare_ = nullptr;
  std::vector<std::unique_ptr<Arena>> all_arenas_;
  Arena* spare_arenas_ = nullptr;
  std::vector<std::unique_ptr<Block[]>> all_blocks_;  // records, not freed while the pool lives
  Block* spare_blocks_ = nullptr;
};

}  // namespace slabpool
