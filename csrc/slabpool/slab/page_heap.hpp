// The reserved range, cut into spans of whole pages.
//
// Every page belongs to exactly one span; neighbouring free spans of one kind are always merged.
// Free spans are committed (their bytes are cached) or uncommitted (address space only). An
// allocation takes the smallest committed span that fits, else commits new pages, giving back other
// cached pages first where `commit_limit` would be passed: the range is many times larger than the
// capacity, so address space is never what runs out. Nothing here is thread-safe: the depot's mutex
// guards every call but lookups of spans that somebody holds.
//
// Memory is committed in *granules* of the memory resource: of host memory that is a page, of a GPU's 2 MiB.
// Each granule is committed as a whole or not at all, so uncommitted free spans are whole granules, and of
// cached pages only the granules that are free from end to end can be given back.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/memory/virtual_array.hpp"
#include "slabpool/slab/block.hpp"
#include "slabpool/slab/page_bits.hpp"

namespace slabpool {

enum class SpanKind : std::uint8_t { committed_free, uncommitted_free, slab, large, arena, growing };

struct Arena;
struct Reserve;

struct Span {
  Block large;  // the block of a span that is one tensor
  std::uint64_t first_page = 0;
  std::uint64_t pages = 0;
  Span* prev = nullptr;  // in a list of free spans, or of slabs with free blocks
  Span* next = nullptr;
  SpanKind kind = SpanKind::uncommitted_free;
  bool zero = false;  // known to hold only zero bytes

  // A slab's part. blocks[0..carved) have been handed out at least once since the slab was made.
  std::uint32_t size_class = 0;
  std::uint32_t count = 0;  // of its blocks; of an arena's, those that are live
  std::uint32_t carved = 0;
  std::uint32_t free_blocks = 0;  // the uncarved ones included
  Block* blocks = nullptr;
  Block* free_list = nullptr;

  // A range's part (an arena, or a tensor that grows): the first `committed` pages are, and the first
  // `drawn` of them count as in use.
  Arena* arena = nullptr;
  std::uint64_t committed = 0;
  std::uint64_t drawn = 0;

  // A tensor's part: the promise that some of its pages were drawn from.
  Reserve* reserve = nullptr;
  std::uint64_t reserve_serial = 0;
  std::uint64_t reserve_pages = 0;
};

// Intrusive list of spans.
class SpanList {
 public:
  Span* front() const noexcept { return head_; }
  void push(Span* span) noexcept {
    span->prev = nullptr;
    span->next = head_;
    if (head_ != nullptr) head_->prev = span;
    head_ = span;
  }
  void remove(Span* span) noexcept {
    (span->prev != nullptr ? span->prev->next : head_) = span->next;
    if (span->next != nullptr) span->next->prev = span->prev;
    span->prev = span->next = nullptr;
  }

 private:
  Span* head_ = nullptr;
};

// Free spans of one kind, by size: sixteen lists to a doubling and a bit for each list that is not
// empty. Within a list the search is best fit, lowest address first, over a bounded number of spans.
class FreeSpans {
 public:
  void insert(Span* span) noexcept;
  void remove(Span* span) noexcept;
  Span* best_fit(std::uint64_t pages) const noexcept;
  Span* largest() const noexcept;
  // The first that `fits`, from the largest down, of at most `tries`.
  template <typename Fits>
  Span* search(int tries, Fits&& fits) const noexcept {
    for (unsigned word = kLists / 64; word-- > 0;) {
      for (std::uint64_t bits = used_[word]; bits != 0;) {
        const unsigned top = 63 - static_cast<unsigned>(std::countl_zero(bits));
        bits &= ~(std::uint64_t{1} << top);
        for (Span* span = lists_[word * 64 + top].front(); span != nullptr; span = span->next) {
          if (fits(*span)) return span;
          if (--tries == 0) return nullptr;
        }
      }
    }
    return nullptr;
  }

 private:
  static constexpr unsigned kLists = 640;  // up to 2^40 pages
  static unsigned list_of(std::uint64_t pages) noexcept;
  int next_used(unsigned from) const noexcept;

  SpanList lists_[kLists];
  std::uint64_t used_[kLists / 64] = {};
};

class PageHeap {
 public:
  // `grow_step`: pages committed at least at a time, where the limit allows.
  PageHeap(MemoryResource& memory, std::uint64_t grow_step);
  PageHeap(const PageHeap&) = delete;
  PageHeap& operator=(const PageHeap&) = delete;
  ~PageHeap();

  struct Result {
    Span* span = nullptr;         // null: not to be had
    bool system_refused = false;  // the system, not the limit, said no
  };

  // A committed span of `pages` pages, the first aligned to `align_pages` (a power of two), of kind
  // large until the caller says otherwise. With granules of several pages it may fail below the limit, where too
  // few of the cached pages are whole granules.
  Result allocate(std::uint64_t pages, std::uint64_t align_pages, std::uint64_t commit_limit);
  void free(Span* span) noexcept;

  // Ranges: spans of kind arena, committed from the front as they are drawn. take_range() prefers pages
  // that are committed already; null if there is no such run of addresses. draw() moves how many count as
  // in use, both ways; false if the system would not commit them. The rest is noexcept as far as
  // can_split() says that there are records for it.
  Span* take_range(std::uint64_t pages);
  bool draw(Span* range, std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  // After draw() or grow() said no: whether that was the system, and not the limit.
  bool system_refused() const noexcept { return system_refused_; }
  void shrink_range(Span* range, std::uint64_t pages) noexcept;  // to its first pages, one at least
  void free_range(Span* range) noexcept;
  Span* split_range(Span* range, std::uint64_t pages) noexcept;  // of one that is all drawn: the rest
  bool can_split() noexcept;

  // Tensors that grow (page_heap_growing.cpp): spans of kind growing, committed from the front as they are
  // drawn. take_growing() prefers addresses whose first pages are committed already; until they are drawn
  // those stay at hand for anybody who runs short. Null if there is no such run of addresses.
  Span* take_growing(std::uint64_t pages);
  // More pages than are drawn. False, and nothing has changed, if `commit_limit` or the system says no.
  bool grow(Span* growing, std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  void free_growing(Span* growing) noexcept;

  // Gives at least `pages` unused pages back to the system if it can, never touching `keep`:
  // cached ones first, then those that tensors have not grown into yet. Returns how many.
  std::uint64_t decommit(std::uint64_t pages, const Span* keep = nullptr) noexcept;

  // The span that holds an address, null if that is outside the range. Needs no lock where the span is a
  // slab or a tensor of which the caller holds a block: until that is back the span's record, its place in
  // the map and its bit stay as they are, and the caller learnt of the block after they were written.
  Span* lookup(const void* address) const noexcept;

  std::uint64_t granule_up(std::uint64_t page) const noexcept {
    return (page + granule_ - 1) & ~(granule_ - 1);
  }
  std::uint64_t total_pages() const noexcept { return map_.size() - 2; }
  std::uint64_t committed_pages() const noexcept { return committed_; }
  std::uint64_t granule_pages() const noexcept { return granule_; }
  std::uint64_t unused_pages() const noexcept { return cached_ + ahead_; }  // what decommit() can give
  std::uint64_t idle_pages() const noexcept { return idle_; }  // committed in ranges, not drawn
  std::uint64_t arena_idle_pages() const noexcept { return idle_ - ahead_; }
  std::uint64_t in_use_pages() const noexcept { return committed_ - cached_ - idle_; }
  std::uint64_t peak_committed_pages() const noexcept { return peak_committed_; }
  std::byte* address(const Span* span) const noexcept {
    return memory_.base() + (span->first_page << kPageBits);
  }

  // Every span, from the first page to the last.
  template <typename Visit>
  void each(Visit&& visit) const noexcept {
    for (std::uint64_t page = 0; page < total_pages(); page += at(page)->pages) visit(*at(page));
  }

  // Checks every invariant of the header above; null, or what does not hold.
  const char* verify() const noexcept;

 private:
  // Fewest pages (1 MiB) given back at a time when an allocation has to make room: fewer would repeat
  // the system call for every tensor.
  static constexpr std::uint64_t kDecommitStep = 64;

  Span* new_span(std::uint64_t first, std::uint64_t pages, SpanKind kind, bool zero);
  void add_spares();
  void retire(Span* span) noexcept;
  FreeSpans& list_for(SpanKind kind) noexcept {
    return kind == SpanKind::committed_free ? committed_spans_ : uncommitted_spans_;
  }
  void make_free(Span* span) noexcept;  // merges with its neighbours and lists the result
  std::uint64_t granule_down(std::uint64_t page) const noexcept { return page & ~(granule_ - 1); }
  bool commit(std::uint64_t first, std::uint64_t pages) noexcept;
  bool make_room(std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  std::uint64_t decommit_from(Span* span, std::uint64_t want) noexcept;
  void unlist(Span* span) noexcept;
  void mark_ends(Span* span) noexcept;
  Span* carve(Span* span, std::uint64_t pages, std::uint64_t align_pages);
  Span* split_tail(Span* span, std::uint64_t pages);
  Result commit_more(std::uint64_t pages, std::uint64_t align_pages, std::uint64_t commit_limit,
                     bool join);
  void set_ahead(Span* growing, std::uint64_t committed, std::uint64_t drawn) noexcept;
  std::uint64_t decommit_ahead(std::uint64_t pages) noexcept;

  // The map knows the first and the last page of each span, which is what merging needs; starts_ finds the
  // first page from any other, so that a tensor of 64 MiB does not take 4,096 stores. A null guard at each
  // end lets neighbours be looked up without a test.
  // Relaxed: see lookup().
  void put(std::uint64_t page, Span* span) noexcept {
    map_[page + 1].store(span, std::memory_order_relaxed);
  }
  Span* at(std::uint64_t page) const noexcept { return map_[page + 1].load(std::memory_order_relaxed); }

  MemoryResource& memory_;
  VirtualArray<std::atomic<Span*>> map_;
  PageBits starts_;
  FreeSpans committed_spans_;
  FreeSpans uncommitted_spans_;
  Span* spare_ = nullptr;  // records without a span
  std::size_t spares_ = 0;
  std::vector<std::unique_ptr<Span[]>> all_;  // owns every record, until the pool ends
  const std::uint64_t granule_;               // in pages; a power of two
  const std::uint64_t grow_step_;
  bool system_refused_ = false;
  std::uint64_t committed_ = 0;
  std::uint64_t cached_ = 0;
  std::uint64_t idle_ = 0;
  std::uint64_t ahead_ = 0;  // of idle_: in growing spans
  SpanList ahead_spans_;     // growing spans with idle pages
  std::uint64_t peak_committed_ = 0;
};

}  // namespace slabpool
