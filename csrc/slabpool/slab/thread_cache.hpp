// Free blocks kept by each thread, so that allocating and freeing need no shared lock.
//
// A thread pushes and pops its own lists under its OwnerLock. A block freed by another thread goes to the *inbox* of the
// thread that allocated it, with one compare-and-swap for a whole chain; that thread drains its inbox when a list runs
// empty. The bytes in a cache are bounded; further blocks go to the depot. When the pool runs short, collect() moves the
// blocks of all caches to the depot.
//
// Each cache also has counters of its thread's operations, which only that thread writes. A thread that returns blocks and
// gets no memory for a cache uses the pool's `uncached_`: its blocks go to the depot.
// Lock order: registry of pools, then revokers, then the depot's mutex.
//
// Invariants:
//   bytes_ = sum of block.bytes over all lists;   bins_[i].blocks = length of bins_[i]
//   blocks in a list or an inbox have no holder, and their bin is below kBins; in a list they have no request
//   block.bin = i and block.home = this for blocks of bins_[i];   block.home = this  =>  block.bin < kBins
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "slabpool/base/add_alone.hpp"
#include "slabpool/base/assert.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/slab/block.hpp"
#include "slabpool/slab/depot.hpp"
#include "slabpool/slab/owner_lock.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

// The counters of a thread. Sums over all threads are the pool's figures.
enum class Count : unsigned { allocations, frees, acks, duplicate_acks, late_acks, exhaustions };
inline constexpr unsigned kCounts = 6;

class CacheSet;

// Bytes that a thread's live bytes may rise and fall before somebody looks at the sum of all (use_bounds.hpp).
struct UseSteps {
  static constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max();
  std::int64_t rise = kUnbounded;
  std::int64_t fall = kUnbounded;
  std::int64_t above(std::int64_t now) const noexcept {
    return rise == kUnbounded ? kUnbounded : now + rise;
  }
  std::int64_t below(std::int64_t now) const noexcept {
    return fall == kUnbounded ? std::numeric_limits<std::int64_t>::min() : now - fall;
  }
};

class alignas(64) ThreadCache {
 public:
  explicit ThreadCache(CacheSet& set) noexcept;

  // By the owner. The first block of a list, if it has at least `need` bytes, the lock is free, and the peak need not be
  // updated; else null. The hot path: it calls nothing.
  Block* pop_first(unsigned bin, std::uint64_t need) noexcept;
  // By the owner. A block of at least `need` bytes (`exact`: of just as many) from the lists or the inbox; null if there
  // is none.
  Block* pop(unsigned bin, std::uint64_t need, bool exact) noexcept;
  // By the owner. Counts the first block of the chain as allocated and keeps the others in the lists.
  void keep(Block* chain) noexcept;
  // By the owner. Takes back one block that this thread allocated; false if another thread did, the cache is full, or the lock is
  // not free. The hot path: it calls nothing.
  bool push_own(Block& block) noexcept;
  // By the owner. Takes back a chain of blocks, whichever threads allocated them.
  void push(Block* chain) noexcept;

  void count(Count what, std::uint64_t n = 1) noexcept {
    add_alone(counts_[static_cast<unsigned>(what)], n);
  }
  void count_allocated(std::uint64_t bytes) noexcept;
  void count_freed(std::uint64_t bytes) noexcept;
  void count_grown(std::uint64_t bytes) noexcept;  // `bytes` more of a block that was counted before
  // By the owner: whether its live bytes have passed a bound. Relaxed: see CacheSet::bound().
  bool has_risen() const noexcept {
    return live_.load(std::memory_order_relaxed) > rise_above_.load(std::memory_order_relaxed);
  }
  bool has_fallen() const noexcept {
    return live_.load(std::memory_order_relaxed) < fall_below_.load(std::memory_order_relaxed);
  }

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
  [[gnu::noinline]] void update_peak() noexcept;
  void set_update_above(std::int64_t live) noexcept;
  void set_bounds(const UseSteps& step) noexcept;
  // With the lock held or revoked: checks the lists; null, or the invariant that is broken.
  const char* verify() const noexcept;
  // Allocations and frees so far.
  std::uint64_t operations() const noexcept {
    return counts_[static_cast<unsigned>(Count::allocations)].load(std::memory_order_relaxed) +
           counts_[static_cast<unsigned>(Count::frees)].load(std::memory_order_relaxed);
  }

  // Blocks of one bin that a thread keeps before it moves half of them to the depot.
  static constexpr std::uint32_t kBinLimit = 128;

  OwnerLock lock_;  // first, because its address is then the cache's
  CacheSet& set_;
  std::uint64_t bytes_ = 0;  // guarded by lock_
  const std::uint64_t byte_budget_;
  std::atomic<std::uint64_t> counts_[kCounts] = {};
  // Bytes of retained blocks whose last view this thread dropped, ever.
  std::atomic<std::uint64_t> unretained_{0};
  // Bytes allocated less bytes freed by this thread, ever; negative for a thread that frees blocks of others. The sum
  // over all threads is the pool's live bytes.
  std::atomic<std::int64_t> live_{0};
  // The highest live_ since the last update of the set's peak, and the live_ above which the next update is due. Other
  // threads that update the peak write both.
  std::atomic<std::int64_t> highest_live_{0};
  std::atomic<std::int64_t> update_above_;  // written under revokers_, and never above rise_above_
  // Operations of all other threads when this thread last updated the peak.
  std::atomic<std::uint64_t> others_operations_{0};
  Bin bins_[kBins];  // guarded by lock_

  // Written by other threads, therefore on a cache line of its own.
  alignas(64) std::atomic<Block*> inbox_{nullptr};
  // Bounds of live_; written under revokers_.
  std::atomic<std::int64_t> rise_above_{UseSteps{}.above(0)};
  std::atomic<std::int64_t> fall_below_{UseSteps{}.below(0)};
  std::int64_t looked_at_ = 0;  // live_ at the last look; guarded by revokers_
  int owner_ = 0;  // number of the thread, in the kernel's words; guarded by the revokers' mutex
  // The thread has ended. A thread that frees a block of this cache keeps it in its own.
  std::atomic<bool> orphan_{false};
};

// All the caches of one pool.
class CacheSet {
 public:
  CacheSet(Depot& depot, std::uint64_t capacity);
  CacheSet(const CacheSet&) = delete;
  CacheSet& operator=(const CacheSet&) = delete;
  ~CacheSet();

  // The calling thread's cache, created on first use. Throws std::bad_alloc. For allocating only.
  ThreadCache& mine();
  // The same for returning memory, which cannot fail: null where there is no memory for a cache. The caller then calls
  // give_uncached().
  ThreadCache* mine_or_null() noexcept;
  // Counts a chain of blocks as freed and moves it to the depot.
  void give_uncached(Block* chain) noexcept;
  // Counts one operation of the calling thread.
  void count(Count what) noexcept;
  void count_unretained(std::uint64_t bytes) noexcept;

  // Serials are multiples of this, so that a word may have one and flags below it.
  static constexpr std::uint64_t kSerialStep = std::uint64_t{1} << 16;
  std::uint64_t serial() const noexcept { return serial_; }
  // The calling thread's cache of the set with this serial, if that is the last one it used; else null. Null in a fork's child.
  static ThreadCache* last(std::uint64_t serial) noexcept;
  ThreadCache* last() const noexcept { return last(serial_); }

  // Moves every free block of every thread to the depot. Where membarrier(2) has stopped working, those of a thread that
  // runs outside the pool may be left.
  void collect() noexcept;
  // Whether the last collect() left some. Waiters then try again by the clock: the thread that has the blocks may not
  // have seen that there is a waiter.
  bool left_some() const noexcept { return left_some_.load(std::memory_order_relaxed); }

  // At most once a window of time (200 ms): collects what the caches keep and has the depot return to the system what is
  // beyond the peak of live bytes of the last two windows. Threads that enter the depot call it, and callers that look at the pool; so a pool that no
  // thread calls keeps what it has.
  void settle_if_due() noexcept {
    // Relaxed: settle() decides with a compare-and-swap.
    if (const std::int64_t now = coarse_now_ns(); now >= window_end_.load(std::memory_order_relaxed))
        [[unlikely]]
      settle(now);
  }

  std::uint64_t metadata_bytes() const noexcept {
    const std::lock_guard lock(revokers_);
    return sizeof(CacheSet) + caches_.size() * sizeof(ThreadCache);
  }

  struct Sums {
    std::uint64_t counts[kCounts];
    std::int64_t live;
    std::int64_t peak_live;
    std::uint64_t unretained;
  };
  // All sums are of one instant if no thread allocates or frees during the call; else each is of some instant of it.
  Sums sums() const noexcept;

  // Looks at the live bytes and sets the bounds of all threads (use_bounds.hpp).
  template <typename Steps>
  void bound(Steps&& steps) noexcept;

 private:
  friend class ThreadCache;
  friend void end_thread(void* unused) noexcept;

  ThreadCache* attach() noexcept;
  ThreadCache* new_or_orphan() noexcept;
  ThreadCache& uncached() noexcept;  // under revokers_
  [[gnu::noinline]] ThreadCache& attach_or_throw();
  [[gnu::noinline]] void count_slowly(Count what) noexcept;
  [[gnu::noinline]] void count_unretained_slowly(std::uint64_t bytes) noexcept;
  bool may_take(ThreadCache& cache) noexcept;
  [[gnu::noinline]] void settle(std::int64_t now) noexcept;
  Sums sums_locked() const noexcept;
  void raise_peak(std::int64_t live) const noexcept;
  std::int64_t start_window(bool stale, std::int64_t& live) noexcept;
  void orphan(ThreadCache& cache) noexcept;

  Depot& depot_;
  const std::uint64_t serial_;       // not 0, and not used twice in a process
  const std::uint64_t byte_budget_;  // of one thread's lists
  const std::int64_t peak_step_;     // rise of a thread's live bytes after which it updates the peak
  const std::uint32_t epoch_;
  mutable std::mutex revokers_;  // guards caches_ and revocation
  std::vector<std::unique_ptr<ThreadCache>> caches_;
  // Has no thread and no blocks: counts operations of threads without a cache, under revokers_. In caches_ once it has
  // counted one; caches_ always has room for it.
  std::unique_ptr<ThreadCache> spare_;
  ThreadCache* uncached_ = nullptr;
  bool watched_ = false;  // the threads have bounds; guarded by revokers_
  mutable std::atomic<std::int64_t> peak_live_{0};
  std::atomic<bool> left_some_{false};
  std::atomic<std::int64_t> window_end_;  // ns of coarse_now_ns()
  // The highest live bytes seen in this window and in the one before; guarded by revokers_.
  mutable std::int64_t window_peak_ = 0;
  std::int64_t window_peak_before_ = 0;
};

// The cache that this thread used last, found again with one comparison.
struct LastCache {
  std::uint64_t serial;
  ThreadCache* cache;
};
extern constinit thread_local LastCache t_last_cache;

inline ThreadCache::ThreadCache(CacheSet& set) noexcept
    : set_(set), byte_budget_(set.byte_budget_), update_above_(set.peak_step_) {}

inline ThreadCache* CacheSet::last(std::uint64_t serial) noexcept {
  if (t_last_cache.serial != serial) return nullptr;
  ThreadCache* const cache = t_last_cache.cache;
  if (cache == nullptr)
    __builtin_unreachable();  // it has the serial of a set only together with a cache
  return cache;
}

inline ThreadCache& CacheSet::mine() {
  if (t_last_cache.serial == serial_) [[likely]]
    return *t_last_cache.cache;
  return attach_or_throw();
}

inline ThreadCache* CacheSet::mine_or_null() noexcept {
  if (t_last_cache.serial == serial_) [[likely]]
    return t_last_cache.cache;
  return attach();
}

inline void CacheSet::count(Count what) noexcept {
  if (t_last_cache.serial == serial_) [[likely]] {
    t_last_cache.cache->count(what);
  } else {
    count_slowly(what);
  }
}

inline void CacheSet::count_unretained(std::uint64_t bytes) noexcept {
  if (t_last_cache.serial == serial_) [[likely]] {
    add_alone(t_last_cache.cache->unretained_, bytes);
  } else {
    count_unretained_slowly(bytes);
  }
}

inline Block* ThreadCache::pop_first(unsigned bin, std::uint64_t need) noexcept {
  Block* block = nullptr;
  if (lock_.try_enter()) [[likely]] {
    Bin& list = bins_[bin];
    Block* const first = list.head;
    if (first != nullptr && first->bytes >= need) [[likely]] {
      const std::int64_t live =
          live_.load(std::memory_order_relaxed) + static_cast<std::int64_t>(first->bytes);
      const std::int64_t high = highest_live_.load(std::memory_order_relaxed);
      if (live <= high || live <= update_above_.load(std::memory_order_relaxed)) [[likely]] {
        block = first;
        SLABPOOL_ASSERT(list.blocks != 0 && bytes_ >= block->bytes, "a list with a block counts it", bin,
                        list.blocks, bytes_);
        SLABPOOL_ASSERT(
            block->bin == bin && Block::holds(block->state.load(std::memory_order_relaxed)) == 0,
            "a cached block is free and in the bin of its size", block->data, block->bin, bin);
        list.head = block->next;
        --list.blocks;
        bytes_ -= block->bytes;
        count(Count::allocations);
        live_.store(live, std::memory_order_relaxed);
        if (live > high) highest_live_.store(live, std::memory_order_relaxed);
      }
    }
  }
  lock_.leave();
  return block;
}

inline bool ThreadCache::push_own(Block& block) noexcept {
  if (block.home != this) return false;
  SLABPOOL_ASSERT(block.bin < kBins && Block::holds(block.state.load(std::memory_order_relaxed)) == 0,
                  "a block returns when it has no holder", block.data, block.bin);
  bool taken = false;
  if (lock_.try_enter()) [[likely]] {
    Bin& list = bins_[block.bin];
    SLABPOOL_ASSERT(&block != list.head, "a block returns once", block.data);
    SLABPOOL_ASSERT(block.request.load(std::memory_order_relaxed) == 0, "a private block has no request",
                    block.data);
    const std::uint64_t bytes = bytes_ + block.bytes;
    if (bytes <= byte_budget_ && list.blocks != kBinLimit) [[likely]] {
      taken = true;
      bytes_ = bytes;
      block.next = list.head;
      list.head = &block;
      ++list.blocks;
      count_freed(block.bytes);
    }
  }
  lock_.leave();
  return taken;
}

inline void ThreadCache::count_allocated(std::uint64_t bytes) noexcept {
  count(Count::allocations);
  count_grown(bytes);
}

inline void ThreadCache::count_grown(std::uint64_t bytes) noexcept {
  const std::int64_t live = live_.load(std::memory_order_relaxed) + static_cast<std::int64_t>(bytes);
  live_.store(live, std::memory_order_relaxed);
  if (live > highest_live_.load(std::memory_order_relaxed)) {
    highest_live_.store(live, std::memory_order_relaxed);
    if (live > update_above_.load(std::memory_order_relaxed)) [[unlikely]]
      update_peak();
  }
}

inline void ThreadCache::count_freed(std::uint64_t bytes) noexcept {
  count(Count::frees);
  subtract_alone(live_, static_cast<std::int64_t>(bytes));
}

}  // namespace slabpool
