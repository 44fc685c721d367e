// Blocks: handing them out, and taking them back.
#include "slabpool/pool/pool.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "slabpool/base/fork.hpp"

namespace slabpool {
namespace {

// Bytes of small blocks a thread takes from the depot at once.
constexpr std::uint64_t kBatchBytes = std::uint64_t{64} << 10;
constexpr std::uint64_t kBatchBlocks = 32;

}  // namespace

Pool::Plan Pool::plan(std::uint64_t nbytes, std::uint64_t align) noexcept {
  std::uint64_t bytes = std::max<std::uint64_t>(nbytes, 1);
  if (align > kDefaultAlign && align <= kPageSize) bytes = (bytes + align - 1) & ~(align - 1);
  if (bytes <= kMaxSlabBlock && align <= kPageSize) {
    // Slabs start on a page, so the blocks of a class are aligned to whatever divides its size.
    unsigned bin = bin_of(bytes);
    if (align > kDefaultAlign) {
      while (class_size(bin) % align != 0) ++bin;  // the class of 128 KiB at the latest
    }
    return {bin, class_size(bin), 1};
  }
  const std::uint64_t need = pages_for(bytes) << kPageBits;
  const bool binned = need <= kMaxBinned && need > kMaxSlabBlock && align <= kPageSize;
  return {binned ? bin_of(need) : kBins, need, align <= kPageSize ? 1 : align};
}

// The hot path of both kinds of allocation: the first block of this thread's list, if nothing unusual is
// asked for.
inline Block* Pool::take_first(std::uint64_t nbytes) noexcept {
  ThreadCache* cache = caches_.last();
  if (cache == nullptr || nbytes - 1 >= kMaxBinned) [[unlikely]]
    return nullptr;
  Block* block = nullptr;
  if (nbytes <= kMaxSlabBlock) {
    block = cache->pop_first(bin_of(nbytes), 0);
  } else {
    const std::uint64_t need = pages_for(nbytes) << kPageBits;
    block = cache->pop_first(bin_of(need), need);
  }
  if (block != nullptr) [[likely]]
    block->home = cache;
  return block;
}

Allocation Pool::take(const Plan& plan, ReserveRef reserve, bool exact) {
  ThreadCache& cache = caches_.mine();
  const bool promised = reserve.reserve != nullptr && plan.bin >= kSlabClasses;
  if (plan.bin != kBins && !promised) {
    if (Block* block = cache.pop(plan.bin, plan.need, exact)) [[likely]] {
      block->home = &cache;
      return {block, Status::ok};
    }
  }
  const auto batch =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kBatchBytes / plan.need, 1, kBatchBlocks));
  for (const Depot::Effort effort : {Depot::Effort::soft, Depot::Effort::hard}) {
    const Depot::Taken taken = plan.bin < kSlabClasses
                                   ? depot_.take_blocks(plan.bin, batch, effort)
                                   : depot_.take_span(plan.need, plan.align, effort, reserve);
    if (taken.chain != nullptr) {
      cache.keep(taken.chain);
      taken.chain->home = &cache;
      return {taken.chain, Status::ok};
    }
    if (taken.system_refused && effort == Depot::Effort::hard) return {nullptr, Status::system_refused};
    // Blocks that other threads keep may be all that is missing.
    if (effort == Depot::Effort::soft) caches_.collect();
  }
  const bool ever = pages_for(plan.need) <= options_.capacity >> kPageBits;
  return {nullptr, ever ? Status::exhausted : Status::too_large};
}

bool Pool::ready(Block& block, const AllocateSpec& spec) {
  if (options_.debug > 0) guard_.arm(block, spec.nbytes, spec.request.generation, spec.where);
  return zeroed(block, spec);
}

// False if the device failed to.
bool Pool::zeroed(Block& block, const AllocateSpec& spec) noexcept {
  const bool done = !spec.zero || block.zero || memory_->fill(block.data, spec.nbytes, 0);
  block.zero = false;
  return done;
}

Allocation Pool::allocate_slowly(const AllocateSpec& spec) noexcept {
  if (epoch_ != fork_epoch()) return {nullptr, Status::forked};
  if (closed()) return {nullptr, Status::pool_closed};
  if ((quirks_.load(std::memory_order_relaxed) & kLost) != 0) return {nullptr, Status::device_lost};
  if (!std::has_single_bit(spec.align) || spec.align > kMaxAlign)
    return {nullptr, Status::invalid_argument};
  if (spec.nbytes > options_.capacity) return {nullptr, Status::too_large};
  const Plan p = plan(spec.nbytes + (options_.debug > 0 ? kGuard : 0), spec.align);
  if (spec.request.generation != 0) return allocate_in_request(spec, p);
  Allocation result;
  try {
    result = take(p, {}, false);
    if (result.block == nullptr) return result;
    result.block->request.store(0, std::memory_order_relaxed);
    result.block->start(1);
    if (ready(*result.block, spec)) return result;
    result.status = Status::device_lost;
  } catch (const std::bad_alloc&) {
    result.status = Status::system_refused;
  }
  if (result.block != nullptr) {
    result.block->abandon();
    give_back(result.block);
  }
  return {nullptr, result.status};
}

Allocation Pool::try_allocate(const AllocateSpec& spec) noexcept {
  // Relaxed: a thread that closes the pool and one that allocates at that moment may come in any order.
  const std::uint32_t quirks = quirks_.load(std::memory_order_relaxed);
  if ((quirks & (kClosed | kDebug | kFarAcks | kLost)) != 0) [[unlikely]] {
    if ((quirks & kFarAcks) != 0) collect_acks_slowly(false);
    if ((quirks & (kClosed | kDebug | kLost)) != 0) return allocate_slowly(spec);
  }
  if (spec.align > kDefaultAlign) [[unlikely]]
    return allocate_slowly(spec);
  if (spec.request.generation == 0) {
    Block* block = take_first(spec.nbytes);
    if (block == nullptr) [[unlikely]]
      return allocate_slowly(spec);
    block->request.store(0, std::memory_order_relaxed);
    block->start(1);
    if (zeroed(*block, spec)) [[likely]]
      return {block, Status::ok};
    block->abandon();
    give_back(block);
    return {nullptr, Status::device_lost};
  }
  // As allocate_in_request(), without a budget and from this thread's list.
  RequestRecord* record = table_.record(spec.request.slot);
  if (record == nullptr || !record->takes(spec.request) ||
      record->has_budget.load(std::memory_order_relaxed)) [[unlikely]] {
    return allocate_slowly(spec);
  }
  Block* block = take_first(spec.nbytes);
  if (block == nullptr) [[unlikely]]
    return allocate_slowly(spec);
  block->request.store(spec.request.slot + 1, std::memory_order_relaxed);
  block->start(Block::kRequest | (spec.view ? Block::kView : 0));
  const Status status =
      zeroed(*block, spec) ? attach(*record, spec.request, *block) : Status::device_lost;
  if (status == Status::ok) [[likely]]
    return {block, Status::ok};
  block->abandon();
  give_back(block);
  return {nullptr, status};
}

// All but the first lines of allocate(), apart so that those need no registers saved.
Allocation Pool::allocate_further(const AllocateSpec& spec) noexcept {
  Allocation result = try_allocate(spec);
  if (result.status == Status::exhausted && (quirks_.load(std::memory_order_relaxed) & kFarAcks) != 0) {
    // A look that left nothing out, before running out is the answer.
    collect_acks();
    result = try_allocate(spec);
  }
  if (result.block != nullptr) [[likely]] {
    log(EventKind::allocate, spec.request.generation, kNoDevice, result.block->bytes);
  } else if (spec.counts &&
             (result.status == Status::exhausted || result.status == Status::system_refused)) {
    note_exhausted(spec.request.generation, spec.nbytes);
  }
  return result;
}

inline Block* Pool::take_plain(std::uint64_t nbytes) noexcept {
  // Relaxed: as in try_allocate().
  if ((quirks_.load(std::memory_order_relaxed) & (kClosed | kDebug | kLog | kFarAcks | kLost)) != 0)
      [[unlikely]]
    return nullptr;
  Block* block = take_first(nbytes);
  if (block == nullptr) [[unlikely]]
    return nullptr;
  block->request.store(0, std::memory_order_relaxed);
  block->start(1);
  block->zero = false;
  return block;
}

Block* Pool::allocate_quickly(std::uint64_t nbytes) noexcept { return take_plain(nbytes); }

Allocation Pool::allocate(const AllocateSpec& spec) noexcept {
  if (spec.request.generation == 0 && !spec.zero && spec.align <= kDefaultAlign) [[likely]] {
    if (Block* block = take_plain(spec.nbytes)) [[likely]]
      return {block, Status::ok};
  }
  return allocate_further(spec);
}

void Pool::note_exhausted(std::uint64_t generation, std::uint64_t nbytes) noexcept {
  try {
    caches_.mine().count(Count::exhaustions);
  } catch (const std::bad_alloc&) {  // the figure is then one short
  }
  log(EventKind::exhausted, generation, kNoDevice, nbytes);
}

// The last holder's part: nobody can see the block any more.
void Pool::clean(Block& block) noexcept {
  if (options_.debug > 0) guard_.disarm(block);
  if (options_.scrub_on_release) {
    block.zero = memory_->fill(block.data, block.bytes, 0);
  }
}

void Pool::give_back(Block* chain, bool to_depot) noexcept {
  if ((quirks_.load(std::memory_order_relaxed) & (kScrub | kDebug)) != 0) {
    for (Block* block = chain; block != nullptr; block = block->next) clean(*block);
  }
  ThreadCache& cache = caches_.mine();
  if (to_depot) {
    for (Block* block = chain; block != nullptr; block = block->next) cache.count_freed(block->bytes);
    depot_.give(chain);
  } else {
    cache.push(chain);
  }
  // Sequentially consistent: whoever waits first counts itself, then collects all caches; either that
  // finds these blocks or this sees the count. (A plain load on x86-64; in a cache of this thread's own
  // the barrier in collect() orders the two.)
  if (waiters_.load(std::memory_order_seq_cst) != 0) [[unlikely]]
    wake_waiters();
}

void Pool::hold_view(Block& block) noexcept {
  if (block.request.load(std::memory_order_relaxed) != 0) {
    if (block.hold_with_request()) return;
    retaining(block).retained_views.fetch_add(1, std::memory_order_relaxed);
  }
  block.hold();
}

// The record of the request that let go of a retained block; it stays that request's while the block is
// retained, so only whoever has a view may ask.
RequestRecord& Pool::retaining(const Block& block) const noexcept {
  return *table_.record(block.request.load(std::memory_order_relaxed) - 1);
}

Status Pool::open_view(Block& block, std::uint32_t serial, Handle request) noexcept {
  if (epoch_ != fork_epoch()) return Status::forked;
  return table_.is_over(request) || !block.hold_if(serial) ? Status::request_closed : Status::ok;
}

void Pool::drop_view(Block& block) noexcept {
  ThreadCache* cache = caches_.last();
  if (cache == nullptr || (quirks_.load(std::memory_order_relaxed) & ~kFarAcks) != 0) [[unlikely]]
    return drop_view_slowly(block);
  if (block.request.load(std::memory_order_relaxed) != 0) {
    if (!block.drop_with_request()) [[unlikely]]
      drop_retained(block);
    return;
  }
  if (!block.drop_private()) return;
  if (cache->push_own(block)) [[likely]] {
    if (waiters_.load(std::memory_order_seq_cst) != 0) [[unlikely]]
      wake_waiters();
  } else {
    block.next = nullptr;
    give_back(&block);
  }
}

void Pool::drop_view_slowly(Block& block) noexcept {
  if (epoch_ != fork_epoch()) return;  // the parent's business
  if (block.request.load(std::memory_order_relaxed) == 0) {
    if (!block.drop_private()) return;
    log(EventKind::free, 0, kNoDevice, block.bytes);
    block.next = nullptr;
    give_back(&block);
    if (closed()) (void)trim();  // nobody will ask for it again
    return;
  }
  if (!block.drop_with_request()) drop_retained(block);
}

// A view of a block that its request has let go of. The record is still that request's until the last such
// view is gone: by `keep`.
void Pool::drop_retained(Block& block) noexcept {
  RequestRecord& record = retaining(block);
  record.retained_views.fetch_sub(1, std::memory_order_relaxed);
  if (!block.drop()) return;
  const std::uint64_t bytes = block.bytes;
  log(EventKind::free, record.generation.load(std::memory_order_relaxed) & ~RequestRecord::kReleased,
      kNoDevice, bytes);
  retained_.fetch_sub(bytes, std::memory_order_relaxed);
  record.nbytes.fetch_sub(bytes, std::memory_order_relaxed);
  block.next = nullptr;
  give_back(&block);
  if (closed()) (void)trim();
  if (record.keep.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  table_.recycle(record);
  if (waiters_.load(std::memory_order_seq_cst) != 0) [[unlikely]]
    wake_waiters();  // for a free slot
}

Block* Pool::find(const void* address) const noexcept { return depot_.find(address); }

Block* Pool::find_held(const void* address) const noexcept { return depot_.find_held(address); }

}  // namespace slabpool
