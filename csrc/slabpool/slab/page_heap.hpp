// The reserved range, cut into spans of whole pages.
//
// A free span is committed (its bytes are cached) or uncommitted (address space only). An allocation takes the smallest
// committed span that fits, else it commits new pages; where that would exceed `commit_limit` it first returns other
// cached pages to the system. The range is many times larger than the capacity, so addresses do not run out.
//
// Memory is committed in *granules* of the memory resource: one page of host memory, 2 MiB of a GPU's. A granule is
// committed as a whole or not at all. So of the cached pages, only granules that are free from end to end can be
// returned to the system.
//
// A commit or decommit that the system refuses leaves pages undefined (memory_resource.hpp). The heap then tries the
// opposite call once. If that fails too, the pages are *quarantined*: they count as committed and cached, because the
// system may keep memory for them, and they are not handed out. decommit() tries quarantined pages again.
//
// Not thread-safe: the depot's mutex guards every call except lookup() of an address in a block that the caller holds.
//
// Invariants:
//   Every page belongs to exactly one span:           sum of span.pages = total_pages()
//   Free neighbours of one kind are merged, and each free span is on the list of its size.
//   uncommitted_free:                                 first_page and pages are multiples of granule_
//   ranges (arena, growing):                          drawn <= sound <= committed <= pages, and first_page + committed
//                                                     and first_page + sound are multiples of granule_ or the end of
//                                                     the span; pages from sound to committed are undefined
//   A slab may have holes (page_heap_holes.cpp):       holes <= pages
//   committed_ = sum of pages (of slabs: pages - holes; of ranges: committed - gone; of quarantined spans: committed) over
//   all spans that are not uncommitted_free
//   cached_    = sum of pages over committed_free, and of committed over quarantined spans
//   growing:                                          gone <= front <= drawn, and first_page, gone and front are multiples of
//                                                     granule_; pages before gone are not committed, pages from gone to
//                                                     front were given back, and the system refused to take them; if
//                                                     front_undefined, they may be undefined.  Otherwise gone = front = 0
//   A quarantined span is on quarantined_ or on retried_; its first `committed` pages end like a range's.
//   quarantined_pages_ = sum of committed over quarantined spans
//   set_aside_ = number of arena spans + 3 * number of growing spans;   spares_ >= set_aside_: freeing an arena's span splits
//   it once, freeing a growing span three times, and neither may allocate a record.
//   idle_      = sum of committed - drawn + front - gone over ranges;   ahead_ = the part of growing spans
//   in_use_pages() = committed_ - cached_ - idle_;   ahead_ <= idle_;   committed_ <= peak_committed_
//   A growing span is on ahead_spans_                 <=>  drawn < committed or gone < front
//   The tables are open for the pages of every span that is or ever was something else than uncommitted_free, and for the
//   pages beside it. So a span can be split and merged at any page when it is freed.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "slabpool/base/assert.hpp"
#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/memory/record_chunks.hpp"
#include "slabpool/memory/virtual_array.hpp"
#include "slabpool/slab/block.hpp"
#include "slabpool/slab/page_bits.hpp"

namespace slabpool {

enum class SpanKind : std::uint8_t {
  committed_free,
  uncommitted_free,
  slab,
  large,
  arena,
  growing,
  quarantined,
};

struct Arena;
struct Reserve;
struct SlabPages;

// Invariants of a slab:
//   carved <= count,  free_blocks = count - carved + length of free_list,  count * class_size(size_class) <= bytes
//   holes != 0  =>  carved = count
struct Span {
  Block large;  // the block of a span that is one tensor
  std::uint64_t first_page = 0;
  std::uint64_t pages = 0;
  Span* prev = nullptr;  // in a list of free spans, or of slabs with free blocks
  Span* next = nullptr;
  SpanKind kind = SpanKind::uncommitted_free;
  bool zero = false;  // known to hold only zero bytes

  // Of a slab. blocks[0..carved) have been handed out at least once since the slab was made.
  std::uint32_t size_class = 0;
  std::uint32_t count = 0;  // blocks of a slab; live blocks of an arena
  std::uint32_t carved = 0;
  std::uint32_t free_blocks = 0;  // including those that are not carved yet
  Block* blocks = nullptr;
  Block* free_list = nullptr;
  std::uint32_t holes = 0;  // pages that went back to the system; which ones is in `page_states`
  SlabPages* page_states = nullptr;
  bool front_has_hole = false;  // the first block of free_list lies on a hole

  // Of a range (an arena, or a tensor that grows): the first `committed` pages are committed, and the first `drawn` of
  // those count as in use. Only the first `sound` of them are usable: a refused call left the others undefined, and
  // they must be committed again. Of a quarantined span: the first `committed` pages count as committed.
  Arena* arena = nullptr;
  std::uint64_t committed = 0;
  std::uint64_t drawn = 0;
  std::uint64_t sound = 0;
  // Of a tensor that grows: the first `front` pages were given back, and the first `gone` of those are not committed.
  std::uint64_t front = 0;
  std::uint64_t gone = 0;
  bool front_undefined = false;

  // Of a tensor: the promise that `reserve_pages` of its pages were drawn from.
  Reserve* reserve = nullptr;
  std::uint64_t reserve_serial = 0;
  std::uint64_t reserve_pages = 0;
};

// Intrusive list of spans.
class SpanList {
 public:
  Span* front() const noexcept { return head_; }
  void push(Span* span) noexcept {
    SLABPOOL_ASSERT(span->prev == nullptr && span->next == nullptr && span != head_,
                    "a span is on one list", span->first_page);
    span->prev = nullptr;
    span->next = head_;
    if (head_ != nullptr) head_->prev = span;
    head_ = span;
  }
  // Behind a span that is on this list.
  void push_behind(Span* before, Span* span) noexcept {
    SLABPOOL_ASSERT(span->prev == nullptr && span->next == nullptr && span != head_,
                    "a span is on one list", span->first_page);
    span->prev = before;
    span->next = before->next;
    if (before->next != nullptr) before->next->prev = span;
    before->next = span;
  }
  void remove(Span* span) noexcept {
    SLABPOOL_ASSERT(span->prev != nullptr ? span->prev->next == span : head_ == span,
                    "a span is removed from the list it is on", span->first_page);
    SLABPOOL_ASSERT(span->next == nullptr || span->next->prev == span, "links of neighbours agree",
                    span->first_page);
    (span->prev != nullptr ? span->prev->next : head_) = span->next;
    if (span->next != nullptr) span->next->prev = span->prev;
    span->prev = span->next = nullptr;
  }

 private:
  Span* head_ = nullptr;
};

// Free spans of one kind, by size: sixteen lists to a doubling. A search takes the first span of a list that fits, the
// lowest address or nearly so: spans at the front of a list are in order of address. Neither a search nor an insertion
// takes longer with more spans.
//
// Invariants:
//   a span is on lists_[list_of(span.pages)];   bit i of used_ is set  <=>  lists_[i] is not empty
class FreeSpans {
 public:
  void insert(Span* span) noexcept;
  void remove(Span* span) noexcept;
  Span* best_fit(std::uint64_t pages) const noexcept;
  Span* largest() const noexcept;
  // Checks the equations above; null, or the one that is broken. Adds the number of spans to `spans`.
  const char* verify(std::uint64_t& spans) const noexcept;
  // The first span that `fits`, from the largest down; looks at no more than `tries` spans.
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
  Span* first_fit(unsigned list, std::uint64_t pages, int tries) const noexcept;

  SpanList lists_[kLists];
  std::uint64_t used_[kLists / 64] = {};
};

class PageHeap {
 public:
  // `grow_step`: fewest pages committed at a time, if the limit allows.
  PageHeap(MemoryResource& memory, std::uint64_t grow_step);
  PageHeap(const PageHeap&) = delete;
  PageHeap& operator=(const PageHeap&) = delete;
  ~PageHeap();

  struct Result {
    Span* span = nullptr;         // null: not available
    bool system_refused = false;  // because the system refused, not because of the limit
  };

  // A committed span of `pages` pages, the first aligned to `align_pages` (a power of two). Its kind is large; the
  // caller may change it to slab. With granules of several pages it may fail below the limit, if too few of the
  // cached pages are whole granules.
  Result allocate(std::uint64_t pages, std::uint64_t align_pages, std::uint64_t commit_limit);
  void free(Span* span) noexcept;

  // Ranges (page_heap_ranges.cpp): spans of kind arena, committed from the front as they are drawn.
  // Prefers pages that are committed already. Null if there is no such run of addresses.
  Span* take_range(std::uint64_t pages);
  // Makes the first `pages` pages of the range count as in use, more or fewer than before. False, and nothing has
  // changed, if the limit or the system refuses to commit them; system_refused() then says which.
  bool draw(Span* range, std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  bool system_refused() const noexcept { return system_refused_; }
  // Frees all but the first `pages` pages, at least one. Keeps them if can_split() is false.
  void shrink_range(Span* range, std::uint64_t pages) noexcept;
  void free_range(Span* range) noexcept;
  // Cuts a range of which all pages are drawn after its first `pages` pages, and returns the rest, or the first part:
  // `range` is then the other. Both need can_split() or has_spares().
  Span* split_range(Span* range, std::uint64_t pages) noexcept;
  Span* split_front(Span* range, std::uint64_t pages) noexcept;
  // Whether there are enough span records for the next two splits. can_split() allocates some if there are not.
  bool can_split() noexcept;
  bool has_spares() const noexcept { return spares_ >= 4 + set_aside_; }

  // Tensors that grow (page_heap_growing.cpp): spans of kind growing, committed from the front as they are drawn.
  // Prefers addresses whose first pages are committed already. Until those are drawn, decommit() may return them to
  // the system. Null if there is no such run of addresses.
  Span* take_growing(std::uint64_t pages);
  // Draws the first `pages` pages, more than before. False, and nothing has changed, if the limit or the system refuses.
  bool grow(Span* growing, std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  // Gives back the pages before `front` and those from `drawn` on: they are not in use any more, and whole granules of them
  // return to the system at once. What the system refuses to take is idle, and decommit() tries it again. `front` is a
  // multiple of a granule. Not for memory that is always committed.
  void give_part(Span* growing, std::uint64_t front, std::uint64_t drawn) noexcept;
  void free_growing(Span* growing) noexcept;

  // Holes in slabs (page_heap_holes.cpp), where the memory has them. Pages [first, first + pages) are pages of the slab in
  // whole granules.
  // False, and nothing has changed but the bytes: the system refused.
  bool punch(Span* slab, std::uint64_t first, std::uint64_t pages) noexcept;
  // False, and nothing has changed: the limit or the system refuses; system_refused() says which.
  bool fill(Span* slab, std::uint64_t first, std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  // Frees a slab of which every page is a hole.
  void free_hollow(Span* slab) noexcept;
  bool has_holes() const noexcept { return memory_.has_holes(); }
  bool commits_zero() const noexcept { return memory_.commits_zero(); }

  // Returns at least `pages` unused pages to the system if it can, but none of `keep`: cached pages first, then
  // committed pages that tensors have not grown into. The result is the number of pages.
  std::uint64_t decommit(std::uint64_t pages, const Span* keep = nullptr) noexcept;
  // Frees what the system keeps for pages that are not committed. The result is the number of bytes.
  std::uint64_t discard_uncommitted() noexcept;

  // The span that contains an address, null if that is outside the range. Needs no lock if the caller holds a block of
  // the span and the span is a slab or a tensor: until that block is returned, the span's record, its entries in the
  // map and its bit do not change, and the caller learnt of the block after they were written.
  Span* lookup(const void* address) const noexcept;

  std::uint64_t granule_up(std::uint64_t page) const noexcept {
    return (page + granule_ - 1) & ~(granule_ - 1);
  }
  std::uint64_t granule_down(std::uint64_t page) const noexcept { return page & ~(granule_ - 1); }
  bool always_committed() const noexcept { return memory_.always_committed(); }
  std::uint64_t total_pages() const noexcept { return map_.size() - 2; }
  std::uint64_t committed_pages() const noexcept { return committed_; }
  std::uint64_t granule_pages() const noexcept { return granule_; }
  // The most that decommit() returns.
  std::uint64_t unused_pages() const noexcept { return cached_ + ahead_; }
  std::uint64_t idle_pages() const noexcept { return idle_; }  // committed in ranges, not drawn
  std::uint64_t arena_idle_pages() const noexcept { return idle_ - ahead_; }
  // Lock-free.
  std::uint64_t quarantined_pages() const noexcept {
    return quarantined_pages_.load(std::memory_order_relaxed);
  }
  std::uint64_t in_use_pages() const noexcept { return committed_ - cached_ - idle_; }
  std::uint64_t peak_committed_pages() const noexcept { return peak_committed_; }
  std::byte* address(const Span* span) const noexcept {
    return memory_.base() + (span->first_page << kPageBits);
  }

  // Returns pages of spare records to the system.
  void close_records() noexcept;
  // Bytes of records and tables.
  std::uint64_t metadata_bytes() const noexcept {
    return chunks_.made_bytes() + map_.open_bytes() + starts_.open_bytes();
  }

  // Whether free addresses for that many pages lie in a row, without cached pages between them.
  bool has_addresses(std::uint64_t pages) const noexcept {
    return uncommitted_spans_.best_fit(granule_up(pages)) != nullptr;
  }
  // The span that ends before this page, or begins at it; null at the ends of the range.
  const Span* span_before(std::uint64_t page) const noexcept {
    return map_[page].load(std::memory_order_relaxed);
  }
  const Span* span_from(std::uint64_t page) const noexcept { return at(page); }
  // Every span, from the first page to the last.
  template <typename Visit>
  void each(Visit&& visit) const noexcept {
    for (std::uint64_t page = 0; page < total_pages(); page += at(page)->pages) visit(*at(page));
  }

  // Checks every invariant at the top of this file; null, or the one that is broken.
  const char* verify() const noexcept;

 private:
  // Fewest pages (1 MiB) returned to the system at a time when an allocation needs room: with fewer, each tensor would
  // repeat the system call.
  static constexpr std::uint64_t kDecommitStep = 256;
  static constexpr std::size_t kRecordBatch = 64;
  static constexpr std::size_t kSplits = 8;  // records that one allocation takes at most
  // Spans that one decommit() tries after the system refused the first one. Bounded, so that refusing takes constant time.
  static constexpr int kRefusals = 4;

  // What pages are after commit() or uncommit() (page_heap_quarantine.cpp).
  enum class PageState : std::uint8_t { committed, uncommitted, undefined };

  Span* new_span(std::uint64_t first, std::uint64_t pages, SpanKind kind, bool zero);
  void add_spares();
  // Records for what an allocation splits, beside those that are set aside. Throws std::bad_alloc.
  void ready_records() {
    while (spares_ < kSplits + set_aside_) add_spares();
  }
  // Opens the tables for a span of these pages and its two neighbours. Throws std::bad_alloc if the system refuses.
  void open_tables(std::uint64_t first, std::uint64_t pages);
  void retire(Span* span) noexcept;
  FreeSpans& list_for(SpanKind kind) noexcept {
    return kind == SpanKind::committed_free ? committed_spans_ : uncommitted_spans_;
  }
  void make_free(Span* span) noexcept;  // merges it with its neighbours and lists the result
  // Check the invariants of the figures, and of one range.
  void assert_figures() const noexcept;
  void assert_range(const Span* range) const noexcept;
  // Commit or decommit whole granules and update committed_. A refusal is undone if possible; undefined pages all count as
  // committed. `counted` of the pages to commit are undefined, so they count already.
  PageState commit(std::uint64_t first, std::uint64_t pages, std::uint64_t counted = 0) noexcept;
  PageState uncommit(std::uint64_t first, std::uint64_t pages) noexcept;
  void free_as(PageState state, Span* span) noexcept;  // lists a span of which all pages have this state
  void quarantine(Span* span, std::uint64_t committed) noexcept;
  void quarantine_tail(Span* range) noexcept;  // of a range that is freed: the pages that are not sound
  // Adds to the counts of cached and of quarantined pages, or takes away.
  void count_quarantined(std::int64_t pages) noexcept;
  void release_from_quarantine(Span* span, std::uint64_t from, std::uint64_t to) noexcept;
  std::uint64_t retry_quarantined(std::uint64_t pages) noexcept;
  bool make_room(std::uint64_t pages, std::uint64_t commit_limit) noexcept;
  std::uint64_t decommit_from(Span* span, std::uint64_t want) noexcept;
  void unlist(Span* span) noexcept;
  void mark_ends(Span* span) noexcept;
  Span* carve(Span* span, std::uint64_t pages, std::uint64_t align_pages);
  Span* split_tail(Span* span, std::uint64_t pages);
  Result commit_more(std::uint64_t pages, std::uint64_t align_pages, std::uint64_t commit_limit,
                     bool join);
  template <typename Change>
  void change_growing(Span* growing, Change&& change) noexcept;
  void set_ahead(Span* growing, std::uint64_t committed, std::uint64_t drawn,
                 std::uint64_t sound) noexcept;
  std::uint64_t decommit_idle(Span* growing, std::uint64_t pages) noexcept;
  Span* cut_front(Span* growing) noexcept;
  std::uint64_t decommit_ahead(std::uint64_t pages) noexcept;

  // The map has an entry for the first and the last page of each span, which is what merging needs. starts_ finds the
  // first page from any other page, so that a tensor of 64 MiB does not take 4,096 stores. A null entry at each end
  // of the map lets make_free() look up neighbours without a bounds test. Relaxed: see lookup().
  void put(std::uint64_t page, Span* span) noexcept {
    SLABPOOL_ASSERT(map_.is_writable(page + 1), "the map is open where a span begins or ends", page);
    map_[page + 1].store(span, std::memory_order_relaxed);
  }
  Span* at(std::uint64_t page) const noexcept { return map_[page + 1].load(std::memory_order_relaxed); }

  MemoryResource& memory_;
  VirtualArray<std::atomic<Span*>> map_;
  PageBits starts_;
  FreeSpans committed_spans_;
  FreeSpans uncommitted_spans_;
  SpanList quarantined_;
  SpanList retried_;                                 // quarantined spans that had their turn
  std::atomic<std::uint64_t> quarantined_pages_{0};  // relaxed: a figure for reports
  Span* spare_ = nullptr;                            // records without a span
  std::size_t spares_ = 0;
  std::size_t set_aside_ = 0;  // records that freeing the ranges may need
  RecordChunks chunks_;        // of all records
  RecordChunks::Kind spans_;
  std::uint32_t first_serial_ = 0;  // no block of a record in a closed chunk had a higher one
  const std::uint64_t granule_;     // in pages; a power of two
  const std::uint64_t grow_step_;
  bool system_refused_ = false;
  std::uint64_t committed_ = 0;
  std::uint64_t cached_ = 0;
  std::uint64_t idle_ = 0;
  static constexpr std::size_t kAsideOfGrowing = 3;
  std::uint64_t ahead_ = 0;  // the part of idle_ in growing spans
  SpanList ahead_spans_;     // growing spans with idle pages
  std::uint64_t peak_committed_ = 0;
};

// Inline, so that release builds call nothing.
inline void PageHeap::assert_figures() const noexcept {
  SLABPOOL_ASSERT(cached_ + idle_ <= committed_, "pages in use = committed - cached - idle >= 0",
                  committed_, cached_, idle_);
  SLABPOOL_ASSERT(ahead_ <= idle_, "pages ahead of growing tensors are idle", ahead_, idle_);
  SLABPOOL_ASSERT(committed_ <= peak_committed_ && peak_committed_ <= total_pages(),
                  "committed <= peak <= the range", committed_, peak_committed_, total_pages());
  SLABPOOL_ASSERT((ahead_ == 0) == (ahead_spans_.front() == nullptr),
                  "growing spans with idle pages are listed", ahead_);
}

inline void PageHeap::assert_range([[maybe_unused]] const Span* range) const noexcept {
  SLABPOOL_ASSERT(range->drawn <= range->sound && range->sound <= range->committed &&
                      range->committed <= range->pages,
                  "drawn <= sound <= committed <= pages", range->drawn, range->sound, range->committed,
                  range->pages);
  SLABPOOL_ASSERT(range->gone <= range->front && range->front <= range->drawn, "gone <= front <= drawn",
                  range->gone, range->front, range->drawn);
  SLABPOOL_ASSERT(
      range->sound == range->pages || ((range->first_page + range->sound) & (granule_ - 1)) == 0,
      "a range is sound up to the end of a granule", range->first_page, range->sound, granule_);
  SLABPOOL_ASSERT(
      range->committed == range->pages || ((range->first_page + range->committed) & (granule_ - 1)) == 0,
      "a range is committed up to the end of a granule", range->first_page, range->committed, granule_);
}

}  // namespace slabpool
