// The part of a pool that all threads share behind their caches: slabs with free blocks, and the page heap.
//
// One mutex guards all of it. A thread locks it once for a batch of small blocks, or for an allocation that its cache
// could not serve. It is the last in the lock order: with it held, only the memory resource is called.
//
// A soft limit keeps the committed pages near the pages in use: before an allocation exceeds it, the caller collects
// the free blocks in the threads' caches. It follows the use down as well as up: what was not used for two windows of time
// goes back to the system (settle()).
//
// Invariants:
//   pages in use (by slabs, tensors and thread caches) + reserved pages (see reserve.hpp) <= capacity
//   committed <= capacity,  committed <= peak_committed
//   a slab is on partial_[size_class] or hollow_[size_class]  <=>  free_blocks != 0;  on hollow_  <=>  front_has_hole
//   front_has_hole  <=>  the first block of free_list lies on a hole
//   empty_[c] != null  =>  it is on partial_[c] and free_blocks = count
//   solid_free_ = sum over the slabs of pages that are free and no holes;  solid_free_in_[c]: of the slabs of class c
//   slab_bytes_used_ = sum of bytes of the blocks of slabs that are in use;  slab_pages_ = sum of pages - holes of slabs
//   solid_free_ * kPageSize + slab_bytes_used_ <= slab_pages_ * kPageSize;  the difference is fragmented
//   arrays_spare_[c] = length of arrays_[c];  each array is a slab's, or on such a list, or closed
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "slabpool/memory/record_chunks.hpp"
#include "slabpool/slab/page_heap.hpp"
#include "slabpool/slab/reserve.hpp"
#include "slabpool/slab/size_class.hpp"
#include "slabpool/slab/slab_pages.hpp"

namespace slabpool {

class Depot {
 public:
  Depot(MemoryResource& memory, std::uint64_t capacity, bool verify);
  Depot(const Depot&) = delete;
  Depot& operator=(const Depot&) = delete;

  // soft: fails rather than commit far more than is in use; the caller then collects the thread caches and tries again
  // with hard.
  enum class Effort { soft, hard };

  struct Taken {
    Block* chain = nullptr;  // linked by next; null: no room
    std::uint32_t count = 0;
    bool system_refused = false;   // because the system refused, not because of the capacity
    bool promise_changed = false;  // it has less left than was to be drawn: nothing was tried
  };

  // Up to `want` blocks of a size class.
  Taken take_blocks(unsigned size_class, std::uint32_t want, Effort effort);
  // One block that is a span, aligned to `align` bytes (a power of two up to 2 MiB). Its pages are drawn from the promise
  // as far as that has pages left.
  // `drawn`: how many bytes to draw from the promise, no less and no more; kAll: as many as it has.
  static constexpr std::uint64_t kAll = ~std::uint64_t{0};
  Taken take_span(std::uint64_t bytes, std::uint64_t align, Effort effort, ReserveRef reserve = {},
                  std::uint64_t drawn = kAll);
  // One small block out of a promise, aligned to `align` bytes (up to a page). No chain and not refused: the promise has
  // too few pages left.
  Taken take_reserved(ReserveRef reserve, unsigned size_class, std::uint64_t align);
  // A block that has no bytes yet and may grow up to `most`. No chain: there is no such run of addresses. `hard` first
  // returns cached pages to the system, so that their addresses join the free ones beside them.
  Taken take_growing(std::uint64_t most, Effort effort);
  // Makes the first `pages` pages of it usable, more than before. `refused`: as system_refused in Taken.
  enum class Grown : std::uint8_t { yes, no_room, system_refused, promise_changed };
  Grown grow(Block& block, std::uint64_t pages, Effort effort, ReserveRef reserve,
             std::uint64_t drawn = kAll) noexcept;
  // Takes back a part of it: all but the pages [from, to) that it once had, in whole granules. Moves its `data` to the first
  // byte that is left. The result is the number of bytes taken back; 0 where the memory is always committed. `drawn`: those
  // of them that go back to the promise `reserve`, or to one around it.
  std::uint64_t give_part(Block& block, std::uint64_t from, std::uint64_t to, ReserveRef reserve,
                          std::uint64_t& drawn) noexcept;
  // Takes back a chain of blocks of any sizes.
  void give(Block* chain) noexcept;

  // Reserves pages if there is room for those that the promise `from` has not left; else null. Throws std::bad_alloc.
  ReserveRef open_reserve(std::uint64_t pages, ReserveRef from = {});
  // Bytes of an open promise that are those of the one that it was made in.
  std::uint64_t from_above(ReserveRef reserve) const noexcept;
  void close_reserve(ReserveRef reserve) noexcept;
  // Bytes of one promise that are not drawn yet; 0 once it is closed.
  std::uint64_t left_of(ReserveRef reserve) const noexcept;
  // Bytes that can be drawn through a promise: its own, and those of the promises that it was made in.
  std::uint64_t drawable_bytes(ReserveRef reserve) const noexcept;
  // How many bytes of a new block would be drawn through a promise: a small one, or one of whole pages, or pages that are
  // added to a growing one (`growing`).
  std::uint64_t to_draw(ReserveRef reserve, unsigned size_class, std::uint64_t bytes,
                        std::uint64_t align, const Block* growing = nullptr) const noexcept;
  // A block moves to another request (Reserves::plan_leaving()), if decide(plan), a Status, is ok. `decide` takes no lock.
  template <typename Decide>
  Status leave(Block& block, std::span<const ReserveRef> left, std::span<const ReserveRef> shared,
               Decide&& decide) {
    const std::lock_guard lock(mutex_);
    const Leaving plan = reserves_.plan_leaving(block, left, shared);
    const Status status = decide(plan);
    if (status == Status::ok) reserves_.leave(block, plan);
    SLABPOOL_VERIFY(false, verify_locked());
    return status;
  }
  // Bytes promised to requests and not drawn yet. Lock-free.
  std::uint64_t reserved_bytes() const noexcept { return reserves_.reserved_pages() << kPageBits; }

  // Returns to the system what is committed beyond what is in use now and `more` bytes, which were in use a short while
  // ago. CacheSet::settle() calls it once a window of time.
  void settle(std::uint64_t more) noexcept;

  // ---- what giving blocks back would bring (return_plan.cpp)

  // What an allocation needs: pages at any addresses, or else one block of a size class; or addresses in a row.
  struct Need {
    std::uint64_t pages = 0;
    unsigned size_class = kSlabClasses;  // kSlabClasses: no block will do
    std::uint64_t addresses = 0;         // pages of addresses; 0: it is memory that is needed
    bool count_room = true;              // false: pages that are free now do not help
    ReserveRef reserve;                  // on which it may draw
  };
  // Groups of blocks that may be given back together, in the order in which they are to go. `ends[i]`: the index in
  // `blocks` behind the last one of group i.
  struct Groups {
    std::vector<Block*> blocks;
    std::vector<std::uint32_t> ends;
    std::vector<std::uint8_t> chosen;  // 1: yes. The answer of plan_return()
  };
  // room: nothing has to be given back. never: not even all groups together suffice. chosen: those in `chosen` suffice,
  // and without any one of them the others do not.
  enum class Planned : std::uint8_t { never, room, chosen };
  // The caller holds every block, and no block of a group has a view. O(number of blocks). Throws std::bad_alloc.
  Planned plan_return(const Need& need, Groups& groups) const;

  // Returns all cached pages and all free pages of slabs to the system, and frees what it keeps for pages that are not
  // committed; the result is in bytes. Pages of records that nothing uses go as well, uncounted.
  std::uint64_t trim() noexcept;

  struct Figures {
    std::uint64_t committed;
    std::uint64_t peak_committed;
  };
  // Lock-free: both are written under the mutex, and read as of some instant.
  Figures figures() const noexcept {
    return {committed_.load(std::memory_order_acquire), peak_committed_.load(std::memory_order_acquire)};
  }

  // Committed bytes that are out of use because the system refused a call on them. Lock-free.
  std::uint64_t quarantined_bytes() const noexcept { return pages_.quarantined_pages() << kPageBits; }

  // Free bytes of slabs that make no whole page, and quarantined bytes: no tensor of a page or more can have them. Lock-free.
  std::uint64_t fragmented_bytes() const noexcept {
    return fragmented_.load(std::memory_order_relaxed) + quarantined_bytes();
  }
  // Bytes of the records of blocks, spans and promises, and of the page tables.
  std::uint64_t metadata_bytes() const noexcept;

  std::uint64_t capacity() const noexcept { return capacity_; }
  // Bytes of a new slab of a size class.
  std::uint64_t slab_bytes(unsigned size_class) const noexcept {
    return std::uint64_t{shapes_[size_class].pages} << kPageBits;
  }
  // Bytes of the reserved address range.
  std::uint64_t address_space() const noexcept { return pages_.total_pages() << kPageBits; }
  // The block that contains an address, null if there is none. Reliable for addresses in blocks that the caller holds.
  Block* find(const void* address) const noexcept;
  // The same without a lock, for an address in a block that the caller holds, or outside the range (null).
  Block* find_held(const void* address) const noexcept;

  // Number and bytes of the blocks with this tag. Visits every block.
  struct Tagged {
    std::uint64_t blocks;
    std::uint64_t bytes;
  };
  Tagged tagged(std::uint8_t tag) const noexcept;
  // Checks the invariants of this file, of the page heap and of the reserves; null, or the one that is broken.
  const char* verify() noexcept;

 private:
  static constexpr std::size_t kStatesBytes =
      (sizeof(SlabPages) + RecordChunks::kAlign - 1) / RecordChunks::kAlign * RecordChunks::kAlign;

  const char* verify_locked() const noexcept;
  const char* verify_slab(const Span& slab) const noexcept;
  std::uint64_t room_pages() const noexcept;
  Planned plan_pages(const Need& need, Groups& groups) const;
  Planned plan_addresses(const Need& need, Groups& groups) const;
  void assert_figures() const noexcept;
  // Makes sure that arrays_ has a block array for one slab more. Throws std::bad_alloc.
  void ready_array(unsigned size_class);
  std::size_t array_bytes(unsigned size_class) const noexcept {
    // The states of a slab's pages lie behind its blocks.
    return shapes_[size_class].blocks * sizeof(Block) + kStatesBytes;
  }
  void close_arrays() noexcept;
  Block* carve_block(Span* slab) noexcept;
  void relist(Span* slab, bool was_free) noexcept;
  void count_solid_free(const Span* slab, std::int64_t pages) noexcept;
  void note_fragmented() noexcept;
  SlabPages::Run pages_of(const Span* slab, const Block* block) const noexcept;
  std::uint64_t whole_granules(std::uint64_t pages) const noexcept {
    return (pages + slab_granule_ - 1) & ~(slab_granule_ - 1);
  }
  Block* next_uncarved(Span* slab) noexcept;
  // Holes (depot_holes.cpp).
  bool punch_all(Span* slab) noexcept;
  void sort_free_list(Span* slab) noexcept;
  std::uint64_t hollow(Span* slab, std::uint64_t want) noexcept;
  std::uint64_t hollow_slabs(std::uint64_t want, const Span* keep = nullptr) noexcept;
  bool fill_front(Span* slab, Effort effort, bool& refused) noexcept;
  bool make_room(std::uint64_t pages, std::uint64_t own, Effort effort,
                 const Span* keep = nullptr) noexcept;
  Span* new_slab(unsigned size_class, Effort effort, bool& refused);
  // `own`: reserved pages that this allocation draws, which therefore count as room for it.
  PageHeap::Result take_pages(std::uint64_t pages, std::uint64_t align_pages, Effort effort,
                              std::uint64_t own = 0);
  bool has_room(std::uint64_t pages, std::uint64_t own) const noexcept;
  std::uint64_t commit_limit(std::uint64_t pages, Effort effort) noexcept;
  std::uint64_t soft_limit_for(std::uint64_t used) const noexcept;
  std::uint64_t used_pages() const noexcept;
  void give_one(Block* block) noexcept;
  void drop_slab(Span* slab) noexcept;
  void drop_empty_slabs() noexcept;
  void publish() noexcept;
  // Publishes at the end of a scope, also after std::bad_alloc: pages may have been decommitted before it.
  struct Publishing {
    explicit Publishing(Depot& depot) noexcept : of(depot) {}
    Publishing(const Publishing&) = delete;
    Publishing& operator=(const Publishing&) = delete;
    ~Publishing() { of.publish(); }
    Depot& of;
  };

  mutable std::mutex mutex_;
  const std::uint64_t capacity_;
  PageHeap pages_;
  Reserves reserves_;
  const std::uint64_t least_soft_limit_;  // pages
  std::uint64_t soft_limit_pages_;
  SlabShape shapes_[kSlabClasses];  // of a slab of each class in a pool of this capacity
  SpanList partial_[kSlabClasses];  // slabs with free blocks
  SpanList hollow_[kSlabClasses];   // slabs whose first free block lies on a hole
  std::uint64_t solid_free_ = 0;
  std::uint64_t solid_free_in_[kSlabClasses] = {};
  std::uint64_t slab_bytes_used_ = 0;
  std::uint64_t slab_pages_ = 0;              // committed pages of slabs
  std::atomic<std::uint64_t> fragmented_{0};  // relaxed: a figure for reports
  Span* empty_[kSlabClasses] = {};  // the one slab of a class that is kept with all its blocks free
  // Block arrays (depot_arrays.cpp): those that no slab has, linked by the `next` of their first blocks.
  Block* arrays_[kSlabClasses] = {};
  std::size_t arrays_spare_[kSlabClasses] = {};
  RecordChunks chunks_;
  RecordChunks::Kind kinds_[kSlabClasses];  // by size class
  std::uint32_t first_serial_ = 0;          // no block of a closed chunk had a higher one
  std::atomic<std::uint64_t> committed_{0};
  std::atomic<std::uint64_t> peak_committed_{0};
  const bool verify_each_;
  const std::uint64_t slab_granule_;  // pages that a slab starts at and ends at a multiple of
};

inline void Depot::assert_figures() const noexcept {
  SLABPOOL_ASSERT(pages_.committed_pages() << kPageBits <= capacity_, "committed <= capacity",
                  pages_.committed_pages(), capacity_);
  SLABPOOL_ASSERT(pages_.in_use_pages() <= capacity_ >> kPageBits, "pages in use <= capacity",
                  pages_.in_use_pages(), capacity_);
}

}  // namespace slabpool
