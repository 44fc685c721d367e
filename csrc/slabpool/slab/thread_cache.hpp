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
  explicit ThreadCache(CacheSet& set) noexcept : set_(set) {}

  // By the owner. A block of at least `need` bytes from the lists or the inbox; null if there is none.
  // `exact`: of that many bytes and no more.
  Block* pop(unsigned bin, std::uint64_t need, bool exact) noexcept;
  // By the owner: keeps `block` for its caller and the rest of its chain in the lists.
  void keep(Block* chain) noexcept;
  // By the owner: takes back a chain of blocks whatever thread allocated them.
  void push(Block* chain) noexcept;

  void count(Count what, std::uint64_t n = 1) noexcept {
    // Relaxed load and store instead of a locked add: this thread is the only writer.
    auto& c = counts_[static_cast<unsigned>(what)];
    c.store(c.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void count_allocated(std::uint64_t bytes) noexcept;
  void count_freed(std::uint64_t bytes) noexcept;

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
  void publish_live() noexcept;

  CacheSet& set_;
  OwnerLock lock_;
  std::uint64_t bytes_ = 0;  // in the lists; guarded by lock_
  std::atomic<std::uint64_t> counts_[kCounts] = {};
  // Bytes handed out less bytes taken back by this thread since they were last added to the set's sum,
  // and the highest value that took in between.
  std::atomic<std::int64_t> live_delta_{0};
  std::atomic<std::int64_t> peak_delta_{0};
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
  void orphan(ThreadCache& cache) noexcept;

  Depot& depot_;
  const std::uint64_t serial_;       // never used twice in a process
  const std::uint64_t byte_budget_;  // of one thread's lists
  const std::int64_t publish_step_;  // bytes of live memory a thread may keep to itself
  const std::uint32_t epoch_;
  mutable std::mutex revokers_;  // guards caches_ and revocation
  std::vector<std::unique_ptr<ThreadCache>> caches_;
  std::atomic<std::int64_t> live_{0};
  std::atomic<std::int64_t> peak_live_{0};
};

// The cache this thread used last: one comparison finds it again.
struct LastCache {
  std::uint64_t serial;
  ThreadCache* cache;
};
extern constinit thread_local LastCache t_last_cache;

inline ThreadCache& CacheSet::mine() {
  if (t_last_cache.serial == serial_) [[likely]] return *t_last_cache.cache;
  return attach();
}

inline void ThreadCache::count_allocated(std::uint64_t bytes) noexcept {
  count(Count::allocations);
  const std::int64_t live = live_delta_.load(std::memory_order_relaxed) + static_cast<std::int64_t>(bytes);
  live_delta_.store(live, std::memory_order_relaxed);
  if (live > peak_delta_.load(std::memory_order_relaxed)) {
    peak_delta_.store(live, std::memory_order_relaxed);
    if (live > set_.publish_step_) [[unlikely]] publish_live();
  }
}

inline void ThreadCache::count_freed(std::uint64_t bytes) noexcept {
  count(Count::frees);
  const std::int64_t live = live_delta_.load(std::memory_order_relaxed) - static_cast<std::int64_t>(bytes);
  live_delta_.store(live, std::memory_order_relaxed);
  if (live < -set_.publish_step_) [[unlikely]] publish_live();
}

}  // namespace slabpool
