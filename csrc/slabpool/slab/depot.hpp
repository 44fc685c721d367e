// What all threads share behind their caches: slabs with free blocks, and the page heap.
//
// One mutex guards all of it; a thread takes it once for a batch of small blocks, or for a tensor
// that its cache could not serve. Place in the order of locks: last. Nothing is called with it held
// but the memory resource.
//
// Room is counted in pages in use (given out to slabs, tensors and thread caches) plus bytes *set
// aside* for requests: together they never exceed the capacity, so that whoever reserved is served.
// Committed pages are kept near what is in use by a soft limit: passing it first costs a look into
// the threads' caches for memory that is free already.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "slabpool/slab/page_heap.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

class Depot {
 public:
  Depot(MemoryResource& memory, std::uint64_t capacity, bool verify);
  Depot(const Depot&) = delete;
  Depot& operator=(const Depot&) = delete;
  ~Depot();

  // soft: rather fail than commit far beyond what is in use; the caller then empties the thread
  // caches and comes back with hard.
  enum class Effort { soft, hard };

  struct Taken {
    Block* chain = nullptr;  // linked by next; null: no room
    std::uint32_t count = 0;
    bool system_refused = false;  // the system, not the capacity, said no
  };

  // Up to `want` blocks of a size class. `own_reserve`: bytes of what is set aside that the caller
  // may count as room, being the one they were set aside for; less on return by the pages taken for it.
  // `promised`: the caller's reserve covers them, whether or not bytes of it are still set aside.
  Taken take_blocks(unsigned size_class, std::uint32_t want, std::uint64_t& own_reserve, Effort effort,
                    bool promised = false);
  // One block that is a span, aligned to `align` bytes (a power of two up to 2 MiB).
  Taken take_span(std::uint64_t bytes, std::uint64_t align, std::uint64_t& own_reserve, Effort effort);
  // Takes a chain of blocks back, of any sizes.
  void give(Block* chain) noexcept;

  // Sets bytes aside if there is room. Lets some of them go again; lock-free, it only makes room.
  bool set_aside(std::uint64_t bytes) noexcept;
  void release_aside(std::uint64_t bytes) noexcept {
    // Relaxed: a reader that misses it sees less room than there is, and looks again under the mutex
    // after the caller's next step.
    aside_.fetch_sub(bytes, std::memory_order_relaxed);
  }
  std::uint64_t aside() const noexcept { return aside_.load(std::memory_order_relaxed); }

  // Gives all cached pages back to the system; returns bytes.
  std::uint64_t trim() noexcept;

  struct Figures {
    std::uint64_t committed;
    std::uint64_t peak_committed;
  };
  // Lock-free: both are written under the mutex and read as of some instant.
  Figures figures() const noexcept {
    return {committed_.load(std::memory_order_acquire), peak_committed_.load(std::memory_order_acquire)};
  }

  std::uint64_t capacity() const noexcept { return capacity_; }
  // What a new slab of a size class takes.
  std::uint64_t slab_bytes(unsigned size_class) const noexcept {
    return std::uint64_t{shapes_[size_class].pages} << kPageBits;
  }
  std::uint64_t reserved() const noexcept { return pages_.total_pages() << kPageBits; }
  // The block that holds an address, null if there is none. Right for addresses in blocks the caller
  // keeps. O(1).
  Block* find(const void* address) const noexcept;
  const char* verify() noexcept;

 private:
  void ready_array(unsigned size_class);
  Block* carve_block(Span* slab) noexcept;
  Span* new_slab(unsigned size_class, std::uint64_t& own_reserve, Effort effort, bool promised,
                 bool& refused);
  // `spare`: bytes of these very pages that count as room for what others were promised.
  PageHeap::Result take_pages(std::uint64_t pages, std::uint64_t align_pages, std::uint64_t& own_reserve,
                              Effort effort, std::uint64_t spare = 0);
  void give_one(Block* block) noexcept;
  void drop_slab(Span* slab) noexcept;
  void drop_empty_slabs() noexcept;
  void publish() noexcept;

  mutable std::mutex mutex_;
  const std::uint64_t capacity_;
  PageHeap pages_;
  std::uint64_t soft_limit_pages_;
  SlabShape shapes_[kSlabClasses];            // what a slab of each class is in a pool of this capacity
  SpanList partial_[kSlabClasses];            // slabs with free blocks
  Span* empty_[kSlabClasses] = {};            // of those, the one kept although all its blocks are free
  std::vector<Block*> arrays_[kSlabClasses];  // block arrays of slabs that went back, to use again
  std::size_t arrays_made_[kSlabClasses] = {};
  std::vector<Block*> all_arrays_;
  std::atomic<std::uint64_t> aside_{0};
  // Bytes that pages in use and bytes set aside may exceed the capacity by together, because free blocks of
  // slabs were counted as room since the two last fitted.
  std::uint64_t lent_ = 0;
  std::atomic<std::uint64_t> committed_{0};
  std::atomic<std::uint64_t> peak_committed_{0};
  const bool verify_each_;
};

}  // namespace slabpool
