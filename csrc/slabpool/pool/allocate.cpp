// Blocks: handing them out. One way down: plan, take, prepare, attach.
#include <algorithm>
#include <bit>

#include "slabpool/pool/hand_out.hpp"
#include "slabpool/pool/pool.hpp"
#include "slabpool/pool/waiting.hpp"

namespace slabpool {
namespace {

// Bytes of small blocks that a thread takes from the depot at once.
constexpr std::uint64_t kBatchBytes = std::uint64_t{64} << 10;
constexpr std::uint64_t kBatchBlocks = 32;

}  // namespace

Pool::Plan Pool::plan(std::uint64_t nbytes, std::uint64_t align) noexcept {
  std::uint64_t bytes = std::max<std::uint64_t>(nbytes, 1);
  if (align > kDefaultAlign && align <= kPageSize) bytes = (bytes + align - 1) & ~(align - 1);
  if (bytes <= kMaxSlabBlock && align <= kPageSize) {
    // Slabs start on a page, so the blocks of a class are aligned to every power of two that divides its size.
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

// ---- take

// The hot path: the first block of this thread's list.
inline Block* Pool::take_first(ThreadCache* cache, std::uint64_t nbytes) noexcept {
  if (cache == nullptr) [[unlikely]]
    return nullptr;
  // No bytes at all count as too many.
  if (nbytes - 1 < kMaxSlabBlock) return cache->pop_first(slab_bin_of(nbytes), 0);
  if (nbytes - 1 < kMaxTabled) return cache->pop_first(span_bin_of(nbytes), nbytes);
  if (nbytes - 1 >= kMaxBinned) return nullptr;
  return cache->pop_first(bin_of(pages_for(nbytes) << kPageBits), nbytes);
}

// From what all requests share: this thread's cache, then the depot. Pages of a span, so many bytes of them, are drawn from a
// promise; no block and Status::ok: it has less left.
Allocation Pool::take_shared(const Plan& plan, ReserveRef reserve, std::uint64_t drawn, bool exact) {
  ThreadCache& cache = caches_.mine();
  if (plan.bin != kBins && drawn == 0) {
    if (Block* block = cache.pop(plan.bin, plan.need, exact)) [[likely]]
      return {block, Status::ok};
  }
  caches_.settle_if_due();
  const auto batch =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kBatchBytes / plan.need, 1, kBatchBlocks));
  for (const Depot::Effort effort : {Depot::Effort::soft, Depot::Effort::hard}) {
    const Depot::Taken taken = plan.bin < kSlabClasses
                                   ? depot_.take_blocks(plan.bin, batch, effort)
                                   : depot_.take_span(plan.need, plan.align, effort, reserve, drawn);
    if (taken.promise_changed) return {};
    if (taken.chain != nullptr) {
      cache.keep(taken.chain);
      return {taken.chain, Status::ok};
    }
    if (taken.system_refused && effort == Depot::Effort::hard) return {nullptr, Status::system_refused};
    // Blocks in the other threads' caches may be all that is missing.
    if (effort == Depot::Effort::soft) caches_.collect();
  }
  const bool ever = pages_for(plan.need) <= options_.capacity >> kPageBits;
  return {nullptr, ever ? Status::exhausted : Status::too_large};
}

// A small block out of what was promised to a request. No block and Status::ok: the promise cannot supply it.
Allocation Pool::take_promised(const Plan& plan, std::uint64_t align, ReserveRef reserve) {
  ThreadCache& cache = caches_.mine();
  const Depot::Taken taken =
      depot_.take_reserved(reserve, plan.bin, std::max<std::uint64_t>(align, kDefaultAlign));
  if (taken.chain == nullptr)
    return {nullptr, taken.system_refused ? Status::system_refused : Status::ok};
  cache.count_allocated(taken.chain->bytes);
  return {taken.chain, Status::ok};
}

Allocation Pool::take(const Plan& plan, std::uint64_t align, ReserveRef reserve, std::uint64_t drawn,
                      bool exact) noexcept {
  try {
    return drawn != 0 && plan.bin < kSlabClasses ? take_promised(plan, align, reserve)
                                                 : take_shared(plan, reserve, drawn, exact);
  } catch (const std::bad_alloc&) {  // of the pool's own tables
    return {nullptr, Status::system_refused};
  }
}

// ---- prepare

Status Pool::prepare(Block& block, const AllocateSpec& spec) noexcept {
  if (options_.debug > 0) [[unlikely]] {
    try {
      guard_.arm(block, spec.nbytes, spec.request.generation, spec.where);
    } catch (const std::bad_alloc&) {
      return Status::system_refused;
    }
  }
  const bool done = !spec.zero || block.zero || memory_->fill(block.data, spec.nbytes, 0);
  block.zero = false;
  return done ? Status::ok : Status::device_lost;
}

// ---- the way down

// For a request with a budget. The charge says how much is drawn from a promise, and then so much is drawn or nothing.
Allocation Pool::allocate_charged(const AllocateSpec& spec, const Plan& p, RequestRecord& record,
                                  bool asks, Waiter* waiter) noexcept {
  const std::uint64_t align = std::max<std::uint64_t>(spec.align, kDefaultAlign);
  Allocation result;
  for (int tried = 0; result.block == nullptr && result.status == Status::ok; ++tried) {
    ReserveRef reserve;
    Share share = charge_for(record, spec.request, p.need, p.bin, align, nullptr, tried, reserve);
    Plan by = p;
    // A small block of whole pages of which the promise has only some left becomes a span, so that it draws those.
    if (reserve.reserve != nullptr && share.drawn == 0 && p.bin < kSlabClasses &&
        p.need % kPageSize == 0) {
      const Share part = charge_for(record, spec.request, p.need, kBins, align, nullptr, tried, reserve);
      if (part.drawn != 0) {
        share = part;
        by = {kBins, p.need, spec.align <= kPageSize ? 1 : spec.align};
      }
    }
    const Status status = charge(record, spec.request, share, waiter);
    if (status != Status::ok) return {nullptr, status};
    // What was promised to the request is not what others wait for.
    const Wanted beyond{Resource::memory, share.bytes - share.drawn};
    bool taken = false;
    if (!table_.is_open(spec.request)) {
      result.status = Status::request_closed;
    } else if (asks && beyond.amount != 0 && !passes(waiter, beyond, priority_of(&record))) {
      result.status = Status::waiters_ahead;
    } else {
      result = take(by, spec.align, reserve, share.drawn, true);
      if (result.status == Status::exhausted) blocked(waiter, Resource::memory, beyond.amount);
      taken = result.block != nullptr;
      if (taken) {
        result = hand_out(*result.block, spec.request, &record, holds_of(spec),
                          [&](Block& block) { return prepare(block, spec); });
      }
    }
    if (result.block == nullptr) uncharge(record, spec.request, share, taken);
  }
  return result;
}

Allocation Pool::allocate_slowly(const AllocateSpec& spec, Waiter* waiter) noexcept {
  if (!usable_here()) return {nullptr, Status::forked};
  if (closed()) return {nullptr, Status::pool_closed};
  const std::uint64_t flags = slow_path_flags_.load(std::memory_order_relaxed);
  if ((flags & kLost) != 0) return {nullptr, Status::device_lost};
  if (!std::has_single_bit(spec.align) || spec.align > kMaxAlign)
    return {nullptr, Status::invalid_argument};
  if (spec.nbytes > options_.capacity) return {nullptr, Status::too_large};
  const Plan p = plan(spec.nbytes + (options_.debug > 0 ? kGuard : 0), spec.align);

  RequestRecord* record = nullptr;
  if (spec.request.generation != 0) {
    record = table_.record(spec.request.slot);
    if (record == nullptr) return {nullptr, Status::request_closed};
  }
  const bool asks = (flags & kWaiting) != 0;
  Allocation result{nullptr, Status::request_closed};
  // Written at open and checked again when the block is attached, so a stale answer is harmless.
  if (record != nullptr && record->has_budget.load(std::memory_order_relaxed)) {
    result = allocate_charged(spec, p, *record, asks, waiter);
  } else if (record == nullptr || table_.is_open(spec.request)) {
    // Checked before take(), which may empty other threads' caches.
    if (asks && !passes(waiter, {Resource::memory, p.need}, priority_of(record))) {
      result.status = Status::waiters_ahead;
    } else {
      result = take(p, spec.align, {}, 0, false);
      if (result.status == Status::exhausted) blocked(waiter, Resource::memory, p.need);
    }
    if (result.block != nullptr) {
      result = hand_out(*result.block, spec.request, record, holds_of(spec),
                        [&](Block& block) { return prepare(block, spec); });
    }
  }
  if (record != nullptr && result.block != nullptr) table_.note_grown(*record);
  if (pressure_.any()) [[unlikely]]
    look_at_rise();
  return result;
}

Allocation Pool::try_allocate(const AllocateSpec& spec) noexcept {
  // Relaxed: a thread that closes the pool and one that allocates at that moment may come in any order.
  const std::uint64_t flags = slow_path_flags_.load(std::memory_order_relaxed);
  if ((flags & kPolledAcks) != 0) [[unlikely]]
    collect_polled(false);
  if ((flags & (kClosed | kDebug | kLost | kWaiting)) != 0 || spec.align > kDefaultAlign) [[unlikely]]
    return allocate_slowly(spec);
  RequestRecord* record = nullptr;
  if (spec.request.generation != 0) {
    record = table_.record(spec.request.slot);
    if (record == nullptr || !record->accepts(spec.request) ||
        record->has_budget.load(std::memory_order_relaxed)) [[unlikely]]
      return allocate_slowly(spec);
  }
  Block* block = take_first(caches_.last(), spec.nbytes);
  if (block == nullptr) [[unlikely]]
    return allocate_slowly(spec);
  return hand_out(*block, spec.request, record, holds_of(spec),
                  [&](Block& taken) { return prepare(taken, spec); });
}

// All but the first lines of allocate(), apart so that those need no registers saved.
Allocation Pool::allocate_further(const AllocateSpec& spec) noexcept {
  Allocation result = try_allocate(spec);
  if (result.status == Status::exhausted &&
      (slow_path_flags_.load(std::memory_order_relaxed) & kPolledAcks) != 0) {
    // Polls every source before running out is the answer.
    collect_acks();
    result = try_allocate(spec);
  }
  if (result.block != nullptr) [[likely]]
    log(EventKind::allocate, spec.request.generation, kNoDevice, result.block->bytes);
  return result;
}

inline Block* Pool::take_plain(std::uint64_t nbytes) noexcept {
  Block* block = take_first(cache_without(kScrub | kSlotsWait | kLent), nbytes);
  if (block == nullptr) [[unlikely]]
    return nullptr;
  block->start(Block::kView);
  block->zero = false;
  return block;
}

Block* Pool::allocate_quickly(std::uint64_t nbytes) noexcept { return take_plain(nbytes); }

// For a request without a budget, with what this thread has in its lists.
Allocation Pool::allocate_owned(const AllocateSpec& spec) noexcept {
  ThreadCache* const cache = cache_without(kScrub | kSlotsWait | kLent);
  RequestRecord* const record = table_.record(spec.request.slot);
  if (cache == nullptr || record == nullptr || !record->accepts(spec.request) ||
      record->has_budget.load(std::memory_order_relaxed)) [[unlikely]]
    return allocate_further(spec);
  Block* const block = take_first(cache, spec.nbytes);
  if (block == nullptr) [[unlikely]]
    return allocate_further(spec);
  return hand_out(*block, spec.request, record, holds_of(spec), [](Block& taken) {
    taken.zero = false;
    return Status::ok;
  });
}

Allocation Pool::allocate(const AllocateSpec& spec) noexcept {
  if (!spec.zero && spec.align <= kDefaultAlign) [[likely]] {
    if (spec.request.generation != 0) return allocate_owned(spec);
    if (Block* block = take_plain(spec.nbytes)) [[likely]]
      return {block, Status::ok};
  }
  return allocate_further(spec);
}

Allocation Pool::allocate(const AllocateSpec& spec, Waiter& waiter) noexcept {
  if (!usable_here()) return {nullptr, Status::forked};
  collect_acks();
  const Allocation result = allocate_slowly(spec, &waiter);
  if (result.block != nullptr)
    log(EventKind::allocate, spec.request.generation, kNoDevice, result.block->bytes);
  return result;
}

Allocation Pool::allocate_until(const AllocateSpec& spec, std::int64_t deadline_ns) noexcept {
  Allocation result = allocate(spec);
  if (!waits_for_room(result.status)) return result;
  Waiter waiter;
  waiter.nbytes = spec.nbytes;
  waiter.request = {spec.request.slot, spec.request.generation};
  waiter.where = spec.where;
  result.status = wait_for(deadline_ns, waiter, [&] {
    result = allocate(spec, waiter);
    return result.status;
  });
  return result;
}

void Pool::note_exhausted(Handle request, std::uint64_t nbytes) noexcept {
  if (!usable_here()) return;
  caches_.count(Count::exhaustions);
  log(EventKind::exhausted, request.generation, kNoDevice, nbytes);
}

}  // namespace slabpool
