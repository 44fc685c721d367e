// Tensors that grow: addresses for everything that one may become, and bytes for what it is.
//
// Invariants: a growing block's `data` and `bytes` are exactly its pages that are drawn and not given back; they change under
// growing_mutex_ and the lock of its request's blocks, and not after the request is over. So the thread that ends the
// request, or refers to the block under that lock, sees one size. The address of byte n, counted from the first byte that
// the tensor ever had, does not change.
#include <algorithm>

#include "slabpool/pool/hand_out.hpp"
#include "slabpool/pool/pool.hpp"
#include "slabpool/pool/waiting.hpp"

namespace slabpool {
namespace {

// A tensor takes this many pages more than it was asked to (an eighth of what it has, at most 2 MiB) where there is room,
// because one token at a time would be a system call every few tokens. They count like the others.
std::uint64_t step_of(std::uint64_t pages) {
  return std::min<std::uint64_t>(pages / 8, (std::uint64_t{2} << 20) >> kPageBits);
}

// Bytes at the front that were given back. Under growing_mutex_.
std::uint64_t front_of(const Block& block) { return block.span->front << kPageBits; }

}  // namespace

Allocation Pool::open_growing(Handle request, std::uint64_t most, Waiter* waiter) noexcept {
  if (!usable_here()) return {nullptr, Status::forked};
  if (closed()) return {nullptr, Status::pool_closed};
  collect_acks();
  if (most > memory_->address_space()) return {nullptr, Status::no_addresses};
  RequestRecord* record = table_.record(request.slot);
  if (record == nullptr || !table_.is_open(request)) return {nullptr, Status::request_closed};
  const Wanted wanted{Resource::addresses, most};
  if (queue_.has_waiters() && !passes(waiter, wanted, priority_of(record)))
    return {nullptr, Status::waiters_ahead};
  Block* block = nullptr;
  try {
    most = std::max<std::uint64_t>(most, 1);
    block = depot_.take_growing(most, Depot::Effort::soft).chain;
    if (block == nullptr) {
      caches_.collect();
      block = depot_.take_growing(most, Depot::Effort::hard).chain;
    }
    if (block == nullptr) {
      blocked(waiter, Resource::addresses, most);
      return {nullptr, Status::no_addresses};
    }
    if (options_.debug > 0) guard_.skip(*block);
    ThreadCache& cache = caches_.mine();
    cache.count_allocated(0);
  } catch (const std::bad_alloc&) {
    if (block != nullptr) depot_.give(block);
    return {nullptr, Status::system_refused};
  }
  return hand_out(*block, request, record, Block::kRequest | Block::kView,
                  [](Block&) { return Status::ok; });
}

void Pool::cancel_growing(Block& block, Handle request) noexcept {
  if (!usable_here()) return;
  RequestRecord& record = *table_.record(request.slot);
  // Otherwise the request takes the block along when it ends.
  if (!record.blocks.detach(block, [&] { return record.accepts(request); })) return drop_view(block);
  block.abandon();
  give_back(&block);
}

// As allocate_charged(), for more pages of a block that it has. `hard`: also what other threads' caches hold.
Status Pool::grow_to(Block& block, RequestRecord& record, Handle request, std::uint64_t pages,
                     ThreadCache& cache, bool hard, Waiter* waiter) noexcept {
  for (int tried = 0;; ++tried) {
    bool again = false;
    const Status status = grow_once(block, record, request, pages, cache, hard, waiter, tried, again);
    if (!again) return status;
  }
}

// `again`: the promise had less left than was charged.
Status Pool::grow_once(Block& block, RequestRecord& record, Handle request, std::uint64_t pages,
                       ThreadCache& cache, bool hard, Waiter* waiter, int tried, bool& again) noexcept {
  const std::uint64_t more = (pages << kPageBits) - front_of(block) - block.bytes;
  const bool budget = record.has_budget.load(std::memory_order_relaxed);
  ReserveRef reserve;
  Share share{more, 0};
  if (budget) {
    share = charge_for(record, request, more, kBins, kDefaultAlign, &block, tried, reserve);
    const Status status = charge(record, request, share, waiter);
    if (status != Status::ok) return status;
  }
  // What was promised to the request is not what others wait for.
  const Wanted beyond{Resource::memory, more - share.drawn};
  if ((slow_path_flags_.load(std::memory_order_relaxed) & kWaiting) != 0 && beyond.amount != 0 &&
      !passes(waiter, beyond, priority_of(&record))) {
    if (budget) uncharge(record, request, share, false);
    return Status::waiters_ahead;
  }
  // A block that moved to a session grows in the session's name from then on.
  const auto accepts = [&] {
    return record.accepts(request) && block.request.load(std::memory_order_relaxed) == request.slot + 1;
  };
  const auto attempt = [&](Depot::Effort effort) {
    return record.blocks.grow(block, more, accepts, [&] {
      const Depot::Grown grown = depot_.grow(block, pages, effort, reserve, share.drawn);
      again = grown == Depot::Grown::promise_changed;
      if (grown != Depot::Grown::yes)
        return grown == Depot::Grown::system_refused ? Status::system_refused : Status::exhausted;
      cache.count_grown(
          more);  // under the lock: the request's end may count the block as freed right after it
      return Status::ok;
    });
  };
  Status status = attempt(Depot::Effort::soft);
  if (status == Status::exhausted && hard && !again) {
    caches_.collect();  // blocks in the threads' caches may be all that is missing
    status = attempt(Depot::Effort::hard);
  }
  if (status == Status::ok) {
    log(EventKind::allocate, request.generation, kNoDevice, more);
  } else {
    if (status == Status::exhausted && hard && !again) blocked(waiter, Resource::memory, beyond.amount);
    if (budget) uncharge(record, request, share, false);
  }
  return status;
}

Status Pool::grow(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
                  Waiter* waiter) noexcept {
  if (!usable_here()) return Status::forked;
  if (closed()) return Status::pool_closed;
  collect_acks();
  RequestRecord* record = table_.record(request.slot);
  if (record == nullptr || !table_.is_open(request)) return Status::request_closed;
  Status status = Status::ok;
  try {
    ThreadCache& cache = caches_.mine();
    const std::lock_guard growing(growing_mutex_);
    usable = block.bytes;
    if (block.span->kind != SpanKind::growing) return Status::invalid_argument;
    usable = front_of(block) + block.bytes;
    if (usable < nbytes) {
      const std::uint64_t need = pages_for(nbytes);
      if (need > block.span->pages) return Status::invalid_argument;
      if (need - block.span->front > options_.capacity >> kPageBits) return Status::too_large;
      const std::uint64_t step = std::min(need + step_of(block.bytes >> kPageBits), block.span->pages);
      // No more than it needs while others wait.
      status = step > need && !queue_.has_waiters()
                   ? grow_to(block, *record, request, step, cache, false, nullptr)
                   : Status::exhausted;
      if (status != Status::ok) status = grow_to(block, *record, request, need, cache, true, waiter);
    }
    usable = front_of(block) + block.bytes;
  } catch (const std::bad_alloc&) {
    status = Status::system_refused;
  }
  if (pressure_.any()) [[unlikely]]
    look_at_rise();
  return status;
}

bool Pool::give_part(Block& block, Handle request, std::uint64_t from, std::uint64_t to,
                     std::uint32_t views, Extent& kept) noexcept {
  if (!usable_here()) return false;
  RequestRecord* record = table_.record(request.slot);
  // Without a cache there is no counter for the bytes: they stay until a later call, or until the request ends.
  ThreadCache* const cache = record != nullptr ? caches_.mine_or_null() : nullptr;
  if (cache == nullptr) return false;
  // A device that is named from here on has no reference to the bytes that go.
  if (table_.devices_hold(request)) {
    collect_acks();
    if (table_.devices_hold(request)) return false;
  }
  std::uint64_t given = 0;
  std::uint64_t drawn = 0;
  const bool budget = record->has_budget.load(std::memory_order_relaxed);
  const ReserveRef reserve = budget ? table_.reserve_of(*record, request) : ReserveRef{};
  bool may = false;
  {
    const std::lock_guard growing(growing_mutex_);
    const auto accepts = [&] {
      may = record->accepts(request) &&
            block.request.load(std::memory_order_relaxed) == request.slot + 1 &&
            Block::views(block.state.load(std::memory_order_acquire)) <= views;
      return may;
    };
    given = record->blocks.shrink(block, accepts, [&] {
      SLABPOOL_ASSERT(block.span->kind == SpanKind::growing && from <= to, "a growing tensor", from, to);
      const std::uint64_t bytes =
          depot_.give_part(block, from >> kPageBits, pages_for(to), reserve, drawn);
      cache->count_grown(-bytes);
      return bytes;
    });
    if (may) kept = {front_of(block), front_of(block) + block.bytes};
  }
  if (given == 0) return may;
  if (budget) uncharge(*record, request, {given, drawn}, true);
  log(EventKind::free, request.generation, kNoDevice, given);
  notify();
  return true;
}

Status Pool::grow_until(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
                        std::int64_t deadline_ns) noexcept {
  Status status = grow(block, request, nbytes, usable);
  if (!waits_for_room(status)) return status;
  Waiter waiter;
  waiter.nbytes = nbytes;
  waiter.request = {request.slot, request.generation};
  return wait_for(deadline_ns, waiter, [&] { return grow(block, request, nbytes, usable, &waiter); });
}

}  // namespace slabpool
