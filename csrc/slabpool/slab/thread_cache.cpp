// One thread's lists of free blocks.
#include "slabpool/slab/thread_cache.hpp"

namespace slabpool {
namespace {

// Spans of one bin that are compared to find one that is large enough.
constexpr int kBinSearch = 4;

}  // namespace

Block* ThreadCache::pop_bin(unsigned bin, std::uint64_t need, bool exact) noexcept {
  Bin& list = bins_[bin];
  Block** link = &list.head;
  for (int left = kBinSearch; *link != nullptr && left > 0; --left, link = &(*link)->next) {
    Block* block = *link;
    if (exact ? block->bytes != need : block->bytes < need) continue;
    SLABPOOL_ASSERT(list.blocks != 0 && bytes_ >= block->bytes, "a list with a block counts it", bin,
                    list.blocks, bytes_);
    SLABPOOL_ASSERT(block->bin == bin && Block::holds(block->state.load(std::memory_order_relaxed)) == 0,
                    "a cached block is free and in the bin of its size", block->data, block->bin, bin);
    *link = block->next;
    --list.blocks;
    bytes_ -= block->bytes;
    return block;
  }
  return nullptr;
}

Block* ThreadCache::pop(unsigned bin, std::uint64_t need, bool exact) noexcept {
  SLABPOOL_ASSERT(bin < kBins, "thread caches have kBins lists", bin);
  lock_.enter(set_.revokers_);
  Block* block = pop_bin(bin, need, exact);
  if (block == nullptr) [[unlikely]] {
    // Relaxed: a hint; drain_inbox() acquires.
    if (inbox_.load(std::memory_order_relaxed) != nullptr && drain_inbox())
      block = pop_bin(bin, need, exact);
    // A span of the next bin wastes at most 1/8.
    if (block == nullptr && !exact && bin >= kSlabClasses && bin + 1 < kBins)
      block = pop_bin(bin + 1, need, false);
    if (block == nullptr) {
      lock_.leave();
      return nullptr;
    }
  }
  count_allocated(block->bytes);
  lock_.leave();
  return block;
}

void ThreadCache::keep(Block* chain) noexcept {
  lock_.enter(set_.revokers_);
  count_allocated(chain->bytes);
  if (chain->bin != kBins) chain->home = this;
  for (Block* block = chain->next; block != nullptr;) {
    Block* next = block->next;
    push_bin(block);
    block = next;
  }
  lock_.leave();
}

void ThreadCache::push_bin(Block* block) noexcept {
  SLABPOOL_ASSERT(block->bin < kBins && Block::holds(block->state.load(std::memory_order_relaxed)) == 0,
                  "a block returns when it has no holder", block->data, block->bin);
  SLABPOOL_ASSERT(block != bins_[block->bin].head, "a block returns once", block->data);
  Bin& list = bins_[block->bin];
  block->next = list.head;
  block->home = this;
  block->request.store(0, std::memory_order_relaxed);
  list.head = block;
  ++list.blocks;
  bytes_ += block->bytes;
}

bool ThreadCache::drain_inbox() noexcept {
  // Sequentially consistent: it acquires what the posting threads wrote; see post() for the stronger order.
  Block* block = inbox_.exchange(nullptr, std::memory_order_seq_cst);
  if (block == nullptr) return false;
  Block* over = nullptr;
  while (block != nullptr) {
    Block* next = block->next;
    if (bytes_ + block->bytes <= byte_budget_) {
      push_bin(block);
    } else {
      block->next = over;
      over = block;
    }
    block = next;
  }
  if (over != nullptr) set_.depot_.give(over);
  return true;
}

void ThreadCache::post(Block* first, Block* last) noexcept {
  SLABPOOL_ASSERT(first->home == this && last->home == this, "blocks are posted to their home",
                  first->data, last->data);
  Block* head = inbox_.load(std::memory_order_relaxed);
  do {
    last->next = head;
    // Sequentially consistent, as is drain_inbox(): a waiter first registers and then drains, the posting thread first
    // posts and then looks for waiters, so one of the two sees the other.
  } while (
      !inbox_.compare_exchange_weak(head, first, std::memory_order_seq_cst, std::memory_order_relaxed));
}

// Removes half of a bin's blocks, at least one.
Block* ThreadCache::spill(unsigned bin) noexcept {
  Bin& list = bins_[bin];
  SLABPOOL_ASSERT(list.blocks != 0, "a list that is spilled has a block", bin);
  std::uint32_t n = (list.blocks + 1) / 2;
  list.blocks -= n;
  Block* chain = list.head;
  Block* last = chain;
  bytes_ -= last->bytes;
  while (--n > 0) {
    last = last->next;
    bytes_ -= last->bytes;
  }
  list.head = last->next;
  last->next = nullptr;
  return chain;
}

void ThreadCache::push(Block* chain) noexcept {
  while (chain != nullptr) {
    Block* block = chain;
    if (block->bin == kBins) {
      chain = block->next;
      count_freed(block->bytes);
      block->next = nullptr;
      set_.depot_.give(block);
      set_.settle_if_due();
      continue;
    }
    ThreadCache* home = block->home;
    // Relaxed: see orphan().
    if (home != this && !home->orphan_.load(std::memory_order_relaxed)) {
      // Consecutive blocks with the same home are posted together.
      Block* last = block;
      count_freed(block->bytes);
      while (last->next != nullptr && last->next->home == home && last->next->bin != kBins) {
        last = last->next;
        count_freed(last->bytes);
      }
      chain = last->next;
      home->post(block, last);
      continue;
    }
    // Consecutive blocks that stay here are pushed under one entry of the lock.
    Block* over = nullptr;
    lock_.enter(set_.revokers_);
    do {
      chain = block->next;
      push_bin(block);
      count_freed(block->bytes);
      if (bytes_ > byte_budget_ || bins_[block->bin].blocks > kBinLimit) [[unlikely]]
        over = spill(block->bin);
      block = chain;
    } while (over == nullptr && block != nullptr && block->home == home && block->bin != kBins);
    lock_.leave();
    if (over != nullptr) {
      set_.depot_.give(over);
      set_.settle_if_due();
    }
  }
}

const char* ThreadCache::verify() const noexcept {
  std::uint64_t bytes = 0;
  for (unsigned bin = 0; bin < kBins; ++bin) {
    std::uint32_t blocks = 0;
    for (const Block* block = bins_[bin].head; block != nullptr; block = block->next) {
      if (block->bin != bin) return "a cached block is in the bin of another size";
      if (Block::holds(block->state.load(std::memory_order_relaxed)) != 0)
        return "a cached block has a holder";
      if (block->home != this) return "a cached block has another home";
      if (block->request.load(std::memory_order_relaxed) != 0) return "a cached block has a request";
      if (++blocks > bins_[bin].blocks) return "a thread cache's list has more blocks than it counts";
      bytes += block->bytes;
    }
    if (blocks != bins_[bin].blocks) return "a thread cache's list has fewer blocks than it counts";
  }
  return bytes == bytes_ ? nullptr : "the bytes of a thread cache do not add up";
}

// With the lock held or revoked: all blocks of the cache, as one chain.
Block* ThreadCache::take_all() noexcept {
  (void)drain_inbox();
  SLABPOOL_VERIFY(SLABPOOL_ASSERT_LEVEL >= 1, verify());
  Block* chain = nullptr;
  for (Bin& list : bins_) {
    while (list.head != nullptr) {
      Block* block = list.head;
      list.head = block->next;
      block->next = chain;
      chain = block;
    }
    list.blocks = 0;
  }
  bytes_ = 0;
  return chain;
}

}  // namespace slabpool
