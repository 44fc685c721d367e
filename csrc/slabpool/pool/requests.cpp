// Requests: opening them, letting holders go, and giving their blocks back once.
#include <algorithm>

#include "slabpool/acks/from_streams.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

// ---- blocks of a request

Status Pool::attach(RequestRecord& record, Handle handle, Block& block) noexcept {
  const std::lock_guard lock(record.lock);
  // The lock makes this exact: a request that is claimed after this look takes the block along.
  if (!record.takes(handle)) return Status::request_closed;
  block.next = record.blocks;
  record.blocks = &block;
  // Not a locked add: until the request is claimed only this changes it, under the lock.
  record.nbytes.store(record.nbytes.load(std::memory_order_relaxed) + block.bytes,
                      std::memory_order_relaxed);
  return Status::ok;
}

Allocation Pool::allocate_in_request(const AllocateSpec& spec, const Plan& p) noexcept {
  const Handle handle = spec.request;
  RequestRecord* record = table_.record(handle.slot);
  if (record == nullptr) return {nullptr, Status::request_closed};
  // Written at open and asked again under attach()'s lock, so a stale answer does no harm.
  const bool budget = record->has_budget.load(std::memory_order_relaxed);
  ReserveRef reserve;
  if (budget) {
    const Status status = table_.charge(*record, handle, p.need, reserve);
    if (status != Status::ok) return {nullptr, status};
  }
  Allocation result;
  try {
    if (!table_.is_open(handle)) {
      result.status = Status::request_closed;  // before anything is taken from others for it
    } else {
      result = reserve.reserve != nullptr && p.bin < kSlabClasses ? take_promised(p, reserve, spec.align)
                                                                  : take(p, reserve, budget);
    }
    if (result.block != nullptr) {
      result.block->request.store(handle.slot + 1, std::memory_order_relaxed);
      result.block->start(Block::kRequest | (spec.view ? Block::kView : 0));
      result.status =
          ready(*result.block, spec) ? attach(*record, handle, *result.block) : Status::device_lost;
    }
  } catch (const std::bad_alloc&) {
    result.status = Status::system_refused;
  }
  if (result.status != Status::ok && result.block != nullptr) {
    result.block->abandon();
    give_back(result.block);
    result.block = nullptr;
  }
  if (budget && result.block == nullptr) table_.uncharge(*record, handle, p.need);
  return result;
}

// A small block out of what was promised to a request, or, once that is used up, out of what all share.
Allocation Pool::take_promised(const Plan& plan, ReserveRef reserve, std::uint64_t align) {
  ThreadCache& cache = caches_.mine();
  const Depot::Taken taken =
      depot_.take_reserved(reserve, plan.bin, std::max<std::uint64_t>(align, kDefaultAlign));
  if (taken.chain != nullptr) {
    cache.count_allocated(taken.chain->bytes);
    return {taken.chain, Status::ok};
  }
  return taken.system_refused ? Allocation{nullptr, Status::system_refused} : take(plan, {}, true);
}

// ---- life

Status Pool::open(const OpenSpec& spec, Handle& handle) noexcept {
  const Status status = try_open(spec, handle);
  if (status == Status::exhausted && spec.counts) note_exhausted(0, spec.reserve);
  return status;
}

Status Pool::try_open(const OpenSpec& spec, Handle& handle) noexcept {
  if (!usable_here()) return Status::forked;
  if (closed()) return Status::pool_closed;
  if (pages_for(spec.reserve) > options_.capacity >> kPageBits) return Status::too_large;
  if (spec.quota != 0 && spec.reserve > spec.quota) return Status::invalid_argument;
  collect_acks();
  try {
    OpenSpec now = spec;
    now.now_ns = now_ns();
    Status status = table_.open(now, handle);
    if (status == Status::exhausted) {
      caches_.collect();
      status = table_.open(now, handle);
    }
    if (status == Status::ok) log(EventKind::open, handle.generation, kNoDevice, spec.reserve);
    return status;
  } catch (const std::bad_alloc&) {
    return Status::system_refused;
  }
}

bool Pool::finish(Handle handle) noexcept {
  if (!table_.claim(handle)) return false;
  RequestRecord& record = *table_.record(handle.slot);
  Block* chain = nullptr;
  {
    const std::lock_guard lock(record.lock);
    chain = record.blocks;
    record.blocks = nullptr;
  }
  // Blocks without views go back in one chain; the others count as retained until their views are gone.
  Block* free_first = nullptr;
  Block** free_last = &free_first;
  Block* viewed = nullptr;
  std::uint32_t viewed_blocks = 0;
  std::uint64_t freed = 0;
  std::uint64_t kept = 0;
  while (chain != nullptr) {
    Block* block = chain;
    chain = block->next;
    if (block->let_go_if_alone()) {
      freed += block->bytes;
      *free_last = block;
      free_last = &block->next;
    } else {
      kept += block->bytes;
      ++viewed_blocks;
      block->next = viewed;
      viewed = block;
    }
  }
  if (viewed != nullptr) {
    // Counted first: a view may be gone, and its count taken back, the moment this hold is.
    record.keep.fetch_add(viewed_blocks, std::memory_order_relaxed);
    retained_.fetch_add(kept, std::memory_order_relaxed);
  }
  while (viewed != nullptr) {
    Block* block = viewed;
    viewed = block->next;
    const std::uint64_t bytes = block->bytes;
    if (const std::uint32_t views = block->let_go()) {
      record.retained_views.fetch_add(static_cast<std::int32_t>(views), std::memory_order_relaxed);
      continue;
    }
    retained_.fetch_sub(bytes, std::memory_order_relaxed);
    record.keep.fetch_sub(1, std::memory_order_relaxed);  // never the last: retire() has not run
    kept -= bytes;
    freed += bytes;
    *free_last = block;
    free_last = &block->next;
  }
  *free_last = nullptr;
  record.nbytes.fetch_sub(freed, std::memory_order_relaxed);
  const bool budget = record.has_budget.load(std::memory_order_relaxed);
  if (free_first != nullptr) give_back(free_first, budget);
  if (budget) table_.return_budget(record);
  log(EventKind::release, handle.generation, kNoDevice, freed);
  if (kept != 0) log(EventKind::retain, handle.generation, kNoDevice, kept);
  std::vector<Handle> children = table_.retire(record);
  finish_all(children);
  if (waiters_.load(std::memory_order_seq_cst) != 0) [[unlikely]]
    wake_waiters();
  return true;
}

void Pool::finish_all(std::vector<Handle>& over) noexcept {
  for (const Handle handle : over) (void)finish(handle);
}

// The answer to an ack that changes nothing.
Pool::Acked Pool::not_held(HolderSet::Left left, Handle handle) noexcept {
  ThreadCache& cache = caches_.mine();
  // A slot that was not used again still has the bits of the request that is over: what it is told
  // must not hang on that.
  if (left == HolderSet::Left::gone || table_.is_over(handle)) {
    cache.count(Count::late_acks);
    return {Status::ok, AckResult::late};
  }
  if (left == HolderSet::Left::never) return {Status::unknown_device, AckResult::late};
  cache.count(Count::duplicate_acks);
  return {Status::ok, AckResult::duplicate};
}

Pool::Acked Pool::ack(Handle handle, std::uint32_t device) noexcept {
  if (epoch_ != fork_epoch()) [[unlikely]]
    return {Status::forked, AckResult::late};
  RequestRecord* record = table_.record(handle.slot);
  ThreadCache& cache = caches_.mine();
  if (table_.any_lease()) devices_.heard(device, now_ns());
  const HolderSet::Left left =
      record == nullptr ? HolderSet::Left::gone
                        : table_.holders(handle.slot)
                              .leave(static_cast<std::uint32_t>(handle.generation), device_bit(device));
  switch (left) {
    case HolderSet::Left::never:
    case HolderSet::Left::gone:
    case HolderSet::Left::before:
      return not_held(left, handle);
    case HolderSet::Left::others_hold:
    case HolderSet::Left::last:
      break;
  }
  cache.count(Count::acks);
  log(EventKind::ack, handle.generation, device, 0);
  // Sequentially consistent, as is the clearing of the bit: see RequestTable::open().
  if (record->first_child.load(std::memory_order_seq_cst) != 0) [[unlikely]] {
    std::vector<Handle> over;
    table_.leave_children(handle, device_bit(device), over);
    finish_all(over);
  }
  if (left == HolderSet::Left::others_hold) return {Status::ok, AckResult::pending};
  // Released for one caller alone: of several that may believe to be the last, the one that gave it back.
  return {Status::ok, finish(handle) ? AckResult::released : AckResult::pending};
}

Pool::Named Pool::named(std::string_view id, std::uint32_t device,
                        std::optional<std::uint64_t> generation) noexcept {
  collect_acks();
  const cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire);
  const auto is_under_way = [](const void* of, std::uint64_t one, std::uint32_t whose) {
    return static_cast<const cuda::StreamAcks*>(of)->has(one, whose);
  };
  const RequestTable::Waiting waiting = table_.find_waiting(
      id, device, generation, acks != nullptr ? RequestTable::IsUnderWay{is_under_way} : nullptr, acks);
  if (waiting.count > 1) return {false, {}, {Status::ambiguous, AckResult::late}};
  if (waiting.count == 1) return {true, waiting.handle, {}};
  // The one whose ack waits for a stream: again, or now at once.
  if (waiting.under_way > 1) return {false, {}, {Status::ambiguous, AckResult::late}};
  if (waiting.under_way == 1) return {true, waiting.acknowledged, {}};
  if (waiting.found && !waiting.named) return {false, {}, {Status::unknown_device, AckResult::late}};
  caches_.mine().count(Count::late_acks);
  return {false, {}, {Status::ok, AckResult::late}};
}

Pool::Acked Pool::ack_id(std::string_view id, std::uint32_t device,
                         std::optional<std::uint64_t> generation) noexcept {
  if (!usable_here()) return {Status::forked, AckResult::late};
  const Named one = named(id, device, generation);
  return one.found ? ack(one.handle, device) : one.answer;
}

void Pool::close_request(Handle handle, bool cancel) noexcept {
  if (!usable_here()) return;
  collect_acks();  // or a request that nobody holds any more would stay until the next call
  std::vector<Handle> over;
  if (!table_.close(handle, cancel, over)) return;
  log(EventKind::close, handle.generation, kNoDevice, 0);
  finish_all(over);
  // A thread may wait for memory for this request, which it cannot have any more.
  if (waiters_.load(std::memory_order_seq_cst) != 0) [[unlikely]]
    wake_waiters();
}

Status Pool::add_device(Handle handle, std::uint32_t device) noexcept {
  if (!usable_here()) return Status::forked;
  if (shared_ != nullptr) {
    collect_acks();
    const HolderSet& holders = table_.holders(handle.slot);
    if (device < kMaxDevices && !table_.is_over(handle) &&
        !holders.holds(static_cast<std::uint32_t>(handle.generation), device_bit(device))) {
      shared_->forget_ack(device, handle.slot, handle.generation);
    }
  }
  if (cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire)) {
    // It has acknowledged otherwise meanwhile, or been lost; what is still queued is not about the new hold.
    if (!table_.holders(handle.slot)
             .holds(static_cast<std::uint32_t>(handle.generation), device_bit(device)))
      acks->forget(handle.generation, device);
  }
  return table_.add_device(handle, device);
}

std::uint64_t Pool::device_lost(std::uint32_t device) noexcept {
  if (!usable_here()) return 0;
  collect_acks();
  // A request opened on the device while this runs names it anew: the device is back.
  std::vector<Handle> held = table_.held_by(device);
  // Children before the request they descend from, which is older: once the device has let go of that one too, others
  // may end it, and its children with it, and they would not be counted here.
  std::sort(held.begin(), held.end(),
            [](const Handle& a, const Handle& b) { return a.generation > b.generation; });
  std::vector<Handle> over;
  std::erase_if(held, [&](Handle handle) {
    const HolderSet::Left left =
        table_.holders(handle.slot)
            .leave(static_cast<std::uint32_t>(handle.generation), device_bit(device));
    if (left != HolderSet::Left::others_hold && left != HolderSet::Left::last) return true;
    log(EventKind::lost, handle.generation, device, 0);
    if (left == HolderSet::Left::last) over.push_back(handle);
    return false;
  });
  for (const Handle handle : held) {
    // As in ack(), for children that were opened after held_by() looked.
    if (table_.record(handle.slot)->first_child.load(std::memory_order_seq_cst) != 0) {
      table_.leave_children(handle, device_bit(device), over);
    }
  }
  finish_all(over);
  return held.size();
}

void Pool::heartbeat(std::uint32_t device) noexcept { devices_.heard(device, now_ns()); }

// ---- telling

bool Pool::released(Handle handle) noexcept {
  collect_acks();
  return table_.has_ended(handle);
}

bool Pool::is_open(Handle handle) const noexcept { return table_.is_open(handle); }

bool Pool::cancelled(Handle handle) const noexcept { return table_.is_cancelled(handle); }

}  // namespace slabpool
