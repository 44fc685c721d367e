#include "slabpool/request/blocks.hpp"

#include <algorithm>

namespace slabpool {

void RequestBlocks::reset() noexcept {
  SLABPOOL_ASSERT(first_ == nullptr, "a free slot has no blocks");
  bytes_.store(0, std::memory_order_relaxed);
  kept_.store(1, std::memory_order_relaxed);
}

bool RequestBlocks::bytes_of(const Block& block, std::uint32_t slot,
                             std::span<std::byte>& bytes) const noexcept {
  const std::lock_guard lock(lock_);
  bytes = {block.data, block.bytes};
  return block.request.load(std::memory_order_relaxed) == slot + 1;
}

RequestBlocks::Released RequestBlocks::release(std::atomic<std::uint64_t>& all_retained) noexcept {
  Block* chain = nullptr;
  {
    const std::lock_guard lock(lock_);
    chain = first_;
    first_ = nullptr;
    for (ViewCount* count = counts_; count != nullptr; count = count->other_) count->at_ = nullptr;
  }
  Released result;
  Block** last = &result.chain;
  const auto append = [&](Block* block, std::uint64_t bytes) {
    result.freed += bytes;
    *last = block;
    last = &block->next;
  };
  Block* viewed = nullptr;
  std::uint32_t viewed_blocks = 0;
  while (chain != nullptr) {
    Block* block = chain;
    chain = block->next;
    if (block->let_go_if_alone()) {
      append(block, block->bytes);
    } else {
      result.retained += block->bytes;
      ++viewed_blocks;
      block->next = viewed;
      viewed = block;
    }
  }
  if (viewed != nullptr) {
    // Counted before the request's hold ends: from then on the last view may be dropped, and its count taken back.
    kept_.fetch_add(viewed_blocks, std::memory_order_relaxed);
    all_retained.fetch_add(result.retained, std::memory_order_relaxed);
  }
  std::uint64_t all_views = 0;
  while (viewed != nullptr) {
    Block* block = viewed;
    viewed = block->next;
    const std::uint64_t bytes = block->bytes;
    if (const std::uint32_t views = block->let_go()) {
      all_views += views;
      continue;
    }
    all_retained.fetch_sub(bytes, std::memory_order_relaxed);
    [[maybe_unused]] const std::uint64_t before = kept_.fetch_sub(1, std::memory_order_relaxed);
    SLABPOOL_ASSERT(keep_of(before) > 1, "retire() has not run", before);
    result.retained -= bytes;
    append(block, bytes);
  }
  if (all_views != 0) kept_.fetch_add(all_views * kOneView, std::memory_order_relaxed);
  *last = nullptr;
  // Nothing is attached to a claimed request, so without a retained block no other thread changes the figure.
  if (viewed_blocks == 0) {
    bytes_.store(0, std::memory_order_relaxed);
  } else {
    bytes_.fetch_sub(result.freed, std::memory_order_relaxed);
  }
  return result;
}

std::uint64_t RequestBlocks::drop_retained(Block& block) noexcept {
  std::uint64_t dropped = kOneView + 1;
  if (!block.drop_only_view()) {
    // Before the block's: with that another thread may free the slot.
    kept_.fetch_sub(kOneView, std::memory_order_relaxed);
    if (!block.drop()) return 0;
    dropped = 1;
  }
  bytes_.fetch_sub(block.bytes, std::memory_order_relaxed);
  return dropped;
}

RequestBlocks::ViewCount::ViewCount(const RequestBlocks& blocks) noexcept : blocks_(blocks) {
  const std::lock_guard lock(blocks.lock_);
  at_ = blocks.first_;
  views_ = static_cast<std::int32_t>(blocks.kept_.load(std::memory_order_relaxed) >> 32);
  other_ = blocks.counts_;
  blocks.counts_ = this;
}

RequestBlocks::ViewCount::~ViewCount() {
  const std::lock_guard lock(blocks_.lock_);
  ViewCount** link = &blocks_.counts_;
  while (*link != this) link = &(*link)->other_;
  *link = other_;
}

bool RequestBlocks::ViewCount::next() noexcept {
  blocks_.lock_.lock_last();
  const std::lock_guard lock(blocks_.lock_, std::adopt_lock);
  for (std::uint32_t left = kBlocksAtOnce; left != 0 && at_ != nullptr; --left, at_ = at_->next)
    views_ += Block::views(at_->state.load(std::memory_order_relaxed));
  return at_ != nullptr;
}

std::uint32_t RequestBlocks::ViewCount::views() const noexcept {
  return static_cast<std::uint32_t>(std::max<std::int64_t>(views_, 0));
}

}  // namespace slabpool
