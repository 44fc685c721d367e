// Blocks: views of them, and the way back to the cache of the thread that allocated them.
#include "slabpool/pool/pool.hpp"

namespace slabpool {

// Called by the last holder: no view and no request can reach the block any more.
void Pool::clean(Block& block) noexcept {
  if (options_.debug > 0) guard_.disarm(block);
  if (options_.scrub_on_release) block.zero = memory_->fill(block.data, block.bytes, 0);
}

void Pool::give_back(Block* chain, bool to_depot) noexcept {
  if ((slow_path_flags_.load(std::memory_order_relaxed) & (kScrub | kDebug)) != 0) {
    for (Block* block = chain; block != nullptr; block = block->next) clean(*block);
  }
  ThreadCache* const cache = caches_.mine_or_null();
  if (cache == nullptr) [[unlikely]] {
    caches_.give_uncached(chain);
  } else if (to_depot) {
    for (Block* block = chain; block != nullptr; block = block->next) cache->count_freed(block->bytes);
    depot_.give(chain);
    caches_.settle_if_due();
  } else {
    cache->push(chain);
  }
  notify(true);
}

void Pool::hold_view(Block& block) noexcept {
  if (block.request.load(std::memory_order_relaxed) != 0) {
    if (block.hold_with_request()) return;
    retaining(block).blocks.retain_view();
  }
  block.hold();
}

// The record of the request that a retained block belongs to. It stays that request's while the block is retained, so only
// the holder of a view may ask.
RequestRecord& Pool::retaining(const Block& block) const noexcept {
  return *table_.record(block.request.load(std::memory_order_relaxed) - 1);
}

Status Pool::open_view(Block& block, std::uint32_t serial, Handle request) noexcept {
  if (!usable_here()) return Status::forked;
  return table_.is_over(request) || !block.hold_if(serial) ? Status::request_closed : Status::ok;
}

void Pool::drop_view(Block& block) noexcept {
  ThreadCache* cache = cache_without(kPolledAcks | kWaiting | kLent);
  if (cache == nullptr) [[unlikely]]
    return drop_view_slowly(block);
  if (block.request.load(std::memory_order_relaxed) != 0) {
    if (!block.drop_with_request()) [[unlikely]]
      drop_retained(block);
    return;
  }
  if (!block.drop_private()) return;
  if (cache->push_own(block)) [[likely]]
    return notify();
  block.next = nullptr;
  give_back(&block);
}

void Pool::drop_view_slowly(Block& block) noexcept {
  if (!usable_here()) return;  // in a fork's child: the block is the parent's
  if (block.request.load(std::memory_order_relaxed) == 0) {
    if (!block.drop_private()) return;
    log(EventKind::free, 0, kNoDevice, block.bytes);
    block.next = nullptr;
    give_back(&block);
    if (closed()) (void)trim();  // no later call will do it
    return;
  }
  if (!block.drop_with_request()) drop_retained(block);
}

// A view of a block that its request has left.
void Pool::drop_retained(Block& block) noexcept {
  RequestRecord& record = retaining(block);
  const bool budget = record.has_budget.load(std::memory_order_relaxed);
  const std::uint64_t dropped = record.blocks.drop_retained(block);
  if (dropped == 0) return;
  caches_.count_unretained(block.bytes);
  block.request.store(0, std::memory_order_relaxed);
  ThreadCache* const cache = budget ? nullptr : cache_without(kPolledAcks | kWaiting | kLent);
  if (cache != nullptr && cache->push_own(block)) [[likely]] {
    notify();
  } else {
    return_retained(block, record.handle().generation, budget);
  }
  if (!record.blocks.returned_retained(dropped)) return;
  table_.recycle(record);
  if (queue_.has_waiters()) [[unlikely]]
    queue_.wake({.slots = true});
}

void Pool::return_retained(Block& block, std::uint64_t generation, bool budget) noexcept {
  log(EventKind::free, generation, kNoDevice, block.bytes);
  block.next = nullptr;
  give_back(&block);
  if (budget && queue_.has_waiters()) [[unlikely]]
    queue_.wake_all();  // it may have returned to a promise: see Levels::refilled
  if (closed()) (void)trim();
}

}  // namespace slabpool
