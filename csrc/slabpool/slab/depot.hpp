// What all threads share behind their caches: slabs with free blocks, and the page heap.
//
// One mutex guards all of it; a thread takes it once for a batch of small blocks, or for a tensor
// that its cache could not serve. Place in the order of locks: last. Nothing is called with it held
// but the memory resource.
//
// Room is counted in pages in use (given out to slabs, tensors and thread caches) plus pages *set
// aside* for requests (see reserve.hpp): together they never exceed the capacity.
// Committed pages are kept near what is in use by a soft limit: passing it first costs a look into
// the threads' caches for memory that is free already.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "slabpool/slab/page_heap.hpp"
#include "slabpool/slab/reserve.hpp"
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

  // Up to `want` blocks of a size class.
  Taken take_blocks(unsigned size_class, std::uint32_t want, Effort effort);
  // One block that is a span, aligned to `align` bytes (a power of two up to 2 MiB), drawn from a promise
  // as far as that covers it.
  Taken take_span(std::uint64_t bytes, std::uint64_t align, Effort effort, ReserveRef reserve = {});
  // One small block out of a promise, aligned to `align` bytes (up to a page). No chain and not refused:
  // the promise does not cover it.
  Taken take_reserved(ReserveRef reserve, unsigned size_class, std::uint64_t align);
  // A block that may grow up to `most` bytes, and has none yet. No chain: no such run of addresses.
  Taken take_growing(std::uint64_t most);
  // Makes its first `pages` pages, more than it has, usable. `refused`: the system said no, not the capacity.
  bool grow(Block& block, std::uint64_t pages, Effort effort, ReserveRef reserve,
            bool& refused) noexcept;
  // Takes a chain of blocks back, of any sizes.
  void give(Block* chain) noexcept;

  // Sets pages aside if there is room; else null. Throws std::bad_alloc.
  ReserveRef open_reserve(std::uint64_t pages);
  void close_reserve(ReserveRef reserve) noexcept;
  // Bytes set aside; lock-free.
  std::uint64_t reserved_bytes() const noexcept { return reserves_.reserved_pages() << kPageBits; }

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
  std::uint64_t address_space() const noexcept { return pages_.total_pages() << kPageBits; }
  // The block that holds an address, null if there is none. Right for addresses in blocks the caller
  // keeps. O(1).
  Block* find(const void* address) const noexcept;
  // The same without a lock, for an address in a block that the caller holds, or outside the range (null).
  Block* find_held(const void* address) const noexcept;

  // Blocks that carry this tag, and their bytes. Looks at every block there is.
  struct Tagged {
    std::uint64_t blocks;
    std::uint64_t bytes;
  };
  Tagged tagged(std::uint8_t tag) const noexcept;
  const char* verify() noexcept;

 private:
  void ready_array(unsigned size_class);
  Block* carve_block(Span* slab) noexcept;
  Span* new_slab(unsigned size_class, Effort effort, bool& refused);
  // `own`: pages of what is set aside that the caller may count as room.
  PageHeap::Result take_pages(std::uint64_t pages, std::uint64_t align_pages, Effort effort,
                              std::uint64_t own = 0);
  bool has_room(std::uint64_t pages, std::uint64_t own) const noexcept;
  std::uint64_t commit_limit(std::uint64_t pages, Effort effort) noexcept;
  bool beyond(Effort effort) const noexcept;
  void give_one(Block* block) noexcept;
  void drop_slab(Span* slab) noexcept;
  void drop_empty_slabs() noexcept;
  void publish() noexcept;

  mutable std::mutex mutex_;
  const std::uint64_t capacity_;
  PageHeap pages_;
  Reserves reserves_;
  std::uint64_t soft_limit_pages_;
  SlabShape shapes_[kSlabClasses];            // what a slab of each class is in a pool of this capacity
  SpanList partial_[kSlabClasses];            // slabs with free blocks
  Span* empty_[kSlabClasses] = {};            // of those, the one kept although all its blocks are free
  std::vector<Block*> arrays_[kSlabClasses];  // block arrays of slabs that went back, to use again
  std::size_t arrays_made_[kSlabClasses] = {};
  std::vector<Block*> all_arrays_;
  std::atomic<std::uint64_t> committed_{0};
  std::atomic<std::uint64_t> peak_committed_{0};
  const bool verify_each_;
};

}  // namespace slabpool
