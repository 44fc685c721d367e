// Free blocks kept by each thread, so that allocating and freeing need no shared lock.
//
// A thread pushes and pops its own lists under its OwnerLock. A block freed by another thread goes to
// the *inbox* of the thread that allocated it, one compare-and-swap for a whole chain, and comes out
// when that thread's list runs dry: memory flows back to where it is asked for. What a cache holds is
// bounded in bytes; beyond that blocks go to the depot. Nothing in a cache is lost to others: when
// the pool runs short, collect() takes all caches' blocks back.
//
// Counters of what a thread did live here too, each written by its thread alone.
// Order of locks: registry of pools, then revokers, then the depot's mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "slabpool/slab/block.hpp"
#include "slabpool/slab/depot.hpp"
#include "slabpool/slab/owner_lock.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

// What a thread counts. Sums over all threads are the pool's figures.
enum class Count : unsigned { allocations, frees, acks, duplicate_acks, late_acks, exhaustions };
inline constexpr unsigned kCounts = 6;

class CacheSet;

class alignas(64) ThreadCache {
 public:
  explicit ThreadCache(CacheSet& set) noexcept;

  // By the owner. The first block of a list if it has at least `need` bytes and nothing unusual is to be
  // done with it; null if not. The hot path: it calls nothing.
  Block* pop_first(unsigned bin, std::uint64_t need) noexcept;
  // By the owner. A block of at least `need` bytes from the lists or the inbox; null if there is none.
  // `exact`: of that many bytes and no more.
  Block* pop(unsigned bin, std::uint64_t need, bool exact) noexcept;
  // By the owner: keeps `block` for its caller and the rest of its chain in the lists.
  void keep(Block* chain) noexcept;
  // By the owner: takes back one block that this thread allocated; false if it is not one, or there is
  // no room for it. The hot path.
  bool push_own(Block& block) noexcept;
  // By the owner: takes back a chain of blocks whatever thread allocated them.
  void push(Block* chain) noexcept;

  void count(Count what, std::uint64_t n = 1) noexcept {
    // Relaxed load and store instead of a locked add: this thread is the only writer.
    auto& c = counts_[static_cast<unsigned>(what)];
    c.store(c.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void count_allocated(std::uint64_t bytes) noexcept;
  void count_freed(std::uint64_t bytes) noexcept;
  void count_grown(std::uint64_t bytes) noexcept;  // of a block that was counted before

 private:
  friend class CacheSet;

  struct Bin {
    Block* head = nullptr;
    std::uint32_t blocks = 0;
  };

  Block* pop_bin(unsigned bin, std::uint64_t need, bool exact) noexcept;
  void push_bin(Block* block) noexcept;
  bool drain_inbox() noexcept;
  void post(Block* first, Block* last) noexcept;  // by other threads, into this cache's inbox
  Block* spill(unsigned bin) noexcept;
  Block* take_all() noexcept;
  [[gnu::noinline]] void look_at_peak() noexcept;
  std::uint64_t done() const noexcept {
    return counts_[static_cast<unsigned>(Count::allocations)].load(std::memory_order_relaxed) +
           counts_[static_cast<unsigned>(Count::frees)].load(std::memory_order_relaxed);
  }

  // Blocks of one bin a thread keeps before it gives half of them to the depot.
  static constexpr std::uint32_t kBinLimit = 128;

  CacheSet& set_;
  OwnerLock lock_;
  std::uint64_t bytes_ = 0;  // in the lists; guarded by lock_
  const std::uint64_t byte_budget_;
  std::atomic<std::uint64_t> counts_[kCounts] = {};
  // Bytes handed out less bytes taken back by this thread, ever; below zero for a thread that frees what
  // others allocate. The sum over all threads is what is live.
  std::atomic<std::int64_t> live_{0};
  // Highest live_ since the set's peak was last looked at, where to look again, and what all others had done
  // when this thread last looked. Others that look write the first two.
  std::atomic<std::int64_t> high_{0};
  std::atomic<std::int64_t> look_above_;
  std::atomic<std::uint64_t> others_did_{0};
  Bin bins_[kBins];  // guarded by lock_

  // Written by other threads: on a line of its own.
  alignas(64) std::atomic<Block*> inbox_{nullptr};
  // Its thread is gone; whoever frees a block of it keeps it.
  std::atomic<bool> orphan_{false};
};

// All the caches of one pool.
class CacheSet {
 public:
  CacheSet(Depot& depot, std::uint64_t capacity);
  CacheSet(const CacheSet&) = delete;
  CacheSet& operator=(const CacheSet&) = delete;
  ~CacheSet();

  // The calling thread's cache, made when first asked for. Throws std::bad_alloc.
  ThreadCache& mine();

  // The same if this thread used it last, else null. Null in a child of fork.
  ThreadCache* last() const noexcept;

  // Moves every free block of every thread to the depot.
  void collect() noexcept;

  struct Sums {
    std::uint64_t counts[kCounts];
    std::int64_t live;
    std::int64_t peak_live;
  };
  // Sums as of one instant if no thread allocates or frees meanwhile; else each as of some instant
  // during the call.
  Sums sums() const noexcept;

 private:
  friend class ThreadCache;
  friend struct ThreadExit;

  ThreadCache& attach();
  void raise_peak(std::int64_t live) const noexcept;
  void orphan(ThreadCache& cache) noexcept;

  Depot& depot_;
  const std::uint64_t serial_;       // never used twice in a process
  const std::uint64_t byte_budget_;  // of one thread's lists
  const std::int64_t peak_step_;     // change of a thread's live bytes after which the peak is looked at
  const std::uint32_t epoch_;
  mutable std::mutex revokers_;  // guards caches_ and revocation
  std::vector<std::unique_ptr<ThreadCache>> caches_;
  mutable std::atomic<std::int64_t> peak_live_{0};
};

// The cache this thread used last: one comparison finds it again.
struct LastCache {
  std::uint64_t serial;
  ThreadCache* cache;
};
extern constinit thread_local LastCache t_last_cache;

inline ThreadCache::ThreadCache(CacheSet& set) noexcept
    : set_(set), byte_budget_(set.byte_budget_), look_above_(set.peak_step_) {}

inline ThreadCache* CacheSet::last() const noexcept {
  return t_last_cache.serial == serial_ ? t_last_cache.cache : nullptr;
}

inline ThreadCache& CacheSet::mine() {
  if (t_last_cache.serial == serial_) [[likely]]
    return *t_last_cache.cache;
  return attach();
}

inline Block* ThreadCache::pop_first(unsigned bin, std::uint64_t need) noexcept {
  Block* block = nullptr;
  if (lock_.try_enter()) [[likely]] {
    Bin& list = bins_[bin];
    Block* const first = list.head;
    if (first != nullptr && first->bytes >= need) [[likely]] {
      const std::int64_t live =
          live_.load(std::memory_order_relaxed) + static_cast<std::int64_t>(first->bytes);
      const std::int64_t high = high_.load(std::memory_order_relaxed);
      if (live <= high || live <= look_above_.load(std::memory_order_relaxed)) [[likely]] {
        block = first;
        list.head = block->next;
        --list.blocks;
        bytes_ -= block->bytes;
        count(Count::allocations);
        live_.store(live, std::memory_order_relaxed);
        if (live > high) high_.store(live, std::memory_order_relaxed);
      }
    }
  }
  lock_.leave();
  return block;
}

inline bool ThreadCache::push_own(Block& block) noexcept {
  if (block.home != this || block.bin == kBins) return false;
  lock_.enter(set_.revokers_);
  Bin& list = bins_[block.bin];
  const std::uint64_t bytes = bytes_ + block.bytes;
  if (bytes > byte_budget_ || list.blocks == kBinLimit) [[unlikely]] {
    lock_.leave();
    return false;
  }
  bytes_ = bytes;
  block.next = list.head;
  list.head = &block;
  ++list.blocks;
  count_freed(block.bytes);
  lock_.leave();
  return true;
}

inline void ThreadCache::count_allocated(std::uint64_t bytes) noexcept {
  count(Count::allocations);
  count_grown(bytes);
}

inline void ThreadCache::count_grown(std::uint64_t bytes) noexcept {
  const std::int64_t live = live_.load(std::memory_order_relaxed) + static_cast<std::int64_t>(bytes);
  live_.store(live, std::memory_order_relaxed);
  if (live > high_.load(std::memory_order_relaxed)) {
    high_.store(live, std::memory_order_relaxed);
    if (live > look_above_.load(std::memory_order_relaxed)) [[unlikely]]
      look_at_peak();
  }
}

inline void ThreadCache::count_freed(std::uint64_t bytes) noexcept {
  count(Count::frees);
  live_.store(live_.load(std::memory_order_relaxed) - static_cast<std::int64_t>(bytes),
              std::memory_order_relaxed);
}

}  // namespace slabpool
