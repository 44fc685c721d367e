// Tensors that grow: an address for all that one may become, and bytes for what it is.
//
// What must stay true: a growing block's `bytes` are exactly its drawn pages; they change under
// growing_mutex_ and its request's record lock, and not any more once the request is over. So whoever ends the
// request, or refers to the block under that lock, sees one size.
#include <algorithm>

#include "slabpool/base/fork.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {
namespace {

// A tensor takes this much more than it was asked to (an eighth of what it has, at most one huge page), where
// there is room: a token at a time would be a system call every few tokens. It counts like all of it.
std::uint64_t step_of(std::uint64_t pages) {
  return std::min<std::uint64_t>(pages / 8, (std::uint64_t{2} << 20) >> kPageBits);
}

}  // namespace

Allocation Pool::open_growing(Handle request, std::uint64_t most) noexcept {
  if (!usable_here()) return {nullptr, Status::forked};
  if (closed()) return {nullptr, Status::pool_closed};
  collect_acks();
  if (most > memory_->address_space()) return {nullptr, Status::no_addresses};
  RequestRecord* record = table_.record(request.slot);
  if (record == nullptr || !table_.is_open(request)) return {nullptr, Status::request_closed};
  Block* block = nullptr;
  try {
    block = depot_.take_growing(std::max<std::uint64_t>(most, 1)).chain;
    if (block == nullptr) return {nullptr, Status::no_addresses};
    if (options_.debug > 0) guard_.skip(*block);
    ThreadCache& cache = caches_.mine();
    cache.count_allocated(0);
    block->home = &cache;
  } catch (const std::bad_alloc&) {
    if (block != nullptr) depot_.give(block);
    return {nullptr, Status::system_refused};
  }
  block->request.store(request.slot + 1, std::memory_order_relaxed);
  block->start(Block::kRequest | Block::kView);
  const Status status = attach(*record, request, *block);
  if (status == Status::ok) return {block, status};
  block->abandon();
  give_back(block);
  return {nullptr, status};
}

void Pool::cancel_growing(Block& block, Handle request) noexcept {
  if (!usable_here()) return;
  RequestRecord& record = *table_.record(request.slot);
  bool found = false;
  {
    const std::lock_guard lock(record.lock);
    if (record.takes(request)) {
      Block** link = &record.blocks;
      while (*link != &block) link = &(*link)->next;
      *link = block.next;
      found = true;
    }
  }
  if (!found) return drop_view(block);  // the request takes it along when it ends
  block.abandon();
  give_back(&block);
}

// As allocate_in_request(), for more of a block that it has. `hard`: whatever it takes.
Status Pool::grow_to(Block& block, RequestRecord& record, Handle request, std::uint64_t pages,
                     ThreadCache& cache, bool hard) noexcept {
  const std::uint64_t more = (pages << kPageBits) - block.bytes;
  const bool budget = record.has_budget.load(std::memory_order_relaxed);
  ReserveRef reserve;
  if (budget) {
    const Status status = table_.charge(record, request, more, reserve);
    if (status != Status::ok) return status;
  }
  const auto attempt = [&](Depot::Effort effort) {
    // Held over a system call, and delays only who allocates for the same request: it could else end in
    // between, and the block go back with half of its figures changed.
    const std::lock_guard lock(record.lock);
    if (!record.takes(request)) return Status::request_closed;
    // It moved to a session, in whose name it grows from then on.
    if (block.request.load(std::memory_order_relaxed) != request.slot + 1) return Status::request_closed;
    bool refused = false;
    if (!depot_.grow(block, pages, effort, reserve, refused))
      return refused ? Status::system_refused : Status::exhausted;
    block.bytes += more;
    record.nbytes.store(record.nbytes.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
    cache.count_grown(more);
    return Status::ok;
  };
  Status status = attempt(Depot::Effort::soft);
  if (status == Status::exhausted && hard) {
    caches_.collect();  // blocks that threads keep may be all that is missing
    status = attempt(Depot::Effort::hard);
  }
  if (status == Status::ok) {
    log(EventKind::allocate, request.generation, kNoDevice, more);
  } else if (budget) {
    table_.uncharge(record, request, more);
  }
  return status;
}

Status Pool::try_grow(Block& block, Handle request, std::uint64_t nbytes,
                      std::uint64_t& usable) noexcept {
  if (!usable_here()) return Status::forked;
  if (closed()) return Status::pool_closed;
  collect_acks();
  RequestRecord* record = table_.record(request.slot);
  if (record == nullptr || !table_.is_open(request)) return Status::request_closed;
  try {
    ThreadCache& cache = caches_.mine();
    const std::lock_guard growing(growing_mutex_);
    Status status = Status::ok;
    usable = block.bytes;
    if (block.span->kind != SpanKind::growing) return Status::invalid_argument;
    if (block.bytes < nbytes) {
      const std::uint64_t need = pages_for(nbytes);
      if (need > block.span->pages) return Status::invalid_argument;
      if (need > options_.capacity >> kPageBits) return Status::too_large;
      const std::uint64_t step = std::min(need + step_of(block.bytes >> kPageBits), block.span->pages);
      status = step > need ? grow_to(block, *record, request, step, cache, false) : Status::exhausted;
      if (status != Status::ok) status = grow_to(block, *record, request, need, cache, true);
    }
    usable = block.bytes;
    return status;
  } catch (const std::bad_alloc&) {
    return Status::system_refused;
  }
}

Status Pool::grow(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
                  bool counts) noexcept {
  const Status status = try_grow(block, request, nbytes, usable);
  if (counts && (status == Status::exhausted || status == Status::system_refused))
    note_exhausted(request.generation, nbytes);
  return status;
}

}  // namespace slabpool
