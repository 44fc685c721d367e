// Requests: opening and closing them, and giving their blocks back once.
#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"
#include "slabpool/pool/waiting.hpp"

namespace slabpool {

inline Status Pool::open_now(const OpenSpec& spec, Handle& handle, LevelNeed* refused) noexcept {
  if (pages_for(spec.reserve) > options_.capacity >> kPageBits) return Status::too_large;
  if (spec.quota != 0 && spec.reserve > spec.quota) return Status::invalid_argument;
  collect_acks();
  try {
    const std::int64_t now = now_ns();
    Status status = table_.open(spec, now, handle, refused);
    if (status == Status::exhausted) {
      caches_.collect();
      status = table_.open(spec, now, handle, refused);
    }
    if (status == Status::ok) log(EventKind::open, handle.generation, kNoDevice, spec.reserve);
    return status;
  } catch (const std::bad_alloc&) {
    return Status::system_refused;
  }
}

Status Pool::open(const OpenSpec& spec, Handle& handle) noexcept {
  if (!usable_here()) return Status::forked;
  // Acquire: as closed().
  if ((slow_path_flags_.load(std::memory_order_acquire) & (kClosed | kWaiting | kSlotsWait)) != 0 ||
      spec.reserve != 0) [[unlikely]]
    return open(spec, handle, nullptr);
  return open_now(spec, handle, nullptr);
}

Status Pool::open(const OpenSpec& spec, Handle& handle, Waiter* waiter) noexcept {
  if (!usable_here()) return Status::forked;
  if (closed()) return Status::pool_closed;
  const std::uint64_t promised = pages_for(spec.reserve) << kPageBits;
  std::uint64_t reserve = promised;  // what it needs beyond the promises around it
  Share share{spec.reserve, 0};
  LevelNeeds needs;
  if (const RequestRecord* r = spec.parent && reserve != 0 ? table_.record(spec.parent->slot) : nullptr;
      r != nullptr) {
    const std::uint64_t from_above = std::min(promised, drawable(table_.reserve_of(*r, *spec.parent)));
    reserve = promised - from_above;
    share.drawn = std::min(spec.reserve, from_above);
    (void)table_.needs_of(*r, *spec.parent, share, needs);  // that it is closed is found below
    if (needs.never != nullptr) {
      blocked_on_quota(waiter, *needs.never);
      return Status::quota_exceeded;
    }
  }
  // Sessions make room for what they keep themselves.
  if ((!spec.kept || spec.is_group) &&
      (!passes(waiter, {Resource::slots, 1}, spec.priority) ||
       !passes_quotas(needs, {}, waiter, spec.priority) ||
       (reserve != 0 && !passes(waiter, {Resource::memory, reserve}, spec.priority))))
    return Status::waiters_ahead;
  LevelNeed refused;
  // Before the memory, because sessions would give way for that, and the quota would refuse it then.
  if (needs.count != 0 &&
      !table_.allows(*table_.record(spec.parent->slot), *spec.parent, share, refused)) {
    blocked_on_quota(waiter, refused);
    return Status::quota_exceeded;
  }
  const Status status = open_now(spec, handle, &refused);
  if (status == Status::exhausted) blocked(waiter, Resource::memory, reserve);
  if (status == Status::quota_exceeded) blocked_on_quota(waiter, refused);
  if (status == Status::too_many_requests) blocked(waiter, Resource::slots, 1);
  if (reserve != 0 && pressure_.any()) look_at_rise();
  return status;
}

Status Pool::open_until(const OpenSpec& spec, Handle& handle, std::int64_t deadline_ns) noexcept {
  const Status status = open(spec, handle);
  if (!waits_for_room(status)) return status;
  Waiter waiter;
  waiter.id = spec.id;
  waiter.nbytes = spec.reserve;
  waiter.priority = spec.priority;
  waiter.where = spec.where;
  if (spec.parent) waiter.request = {spec.parent->slot, spec.parent->generation};
  return wait_for(deadline_ns, waiter, [&] { return open(spec, handle, &waiter); });
}

void Pool::close_request(Handle handle, bool cancel) noexcept {
  if (!usable_here()) return;
  unsigned how = cancel ? RequestTable::kCancel : 0;
  // As collect_acks(), because a request whose acks all arrived would stay until the next call otherwise. In a pool that has
  // peers the flag is always set.
  if ((slow_path_flags_.load(std::memory_order_acquire) & kPolledAcks) != 0) {
    collect_polled(true);
    how |= RequestTable::kTell;
  }
  ClaimedList over;
  if (!table_.close(handle, how, over)) return;
  log(EventKind::close, handle.generation, kNoDevice, 0);
  end_all(over);
  if (queue_.any()) [[unlikely]]
    notify_closed();
}

Status Pool::cancel_id(std::string_view id, std::optional<std::uint64_t> generation,
                       bool& cancelled) noexcept {
  cancelled = false;
  if (!usable_here()) return Status::forked;
  collect_acks();
  ClaimedList over;
  Handle handle;
  const std::uint32_t count = table_.cancel_id(id, generation, over, handle);
  if (count > 1) return Status::ambiguous;
  if (count == 0) return Status::ok;
  cancelled = true;
  log(EventKind::close, handle.generation, kNoDevice, 0);
  end_all(over);
  if (queue_.any()) [[unlikely]]
    notify_closed();
  return Status::ok;
}

void Pool::discard(Handle handle) noexcept {
  if (!usable_here()) return;
  ClaimedList over;
  table_.cut(handle, over);
  end_all(over);
  if (queue_.any()) [[unlikely]]
    notify_left();
}

bool Pool::finish(Handle handle) noexcept {
  RequestRecord* claimed = table_.claim(handle);
  if (claimed == nullptr) return false;
  ClaimedList over;
  end(*claimed, over);
  end_all(over);
  return true;
}

// Ends a claimed request. Descendants and pinned requests that are over by it are added to `over`.
void Pool::end(RequestRecord& claimed, ClaimedList& over) noexcept {
  const RequestBlocks::Released back = claimed.blocks.release(retained_);
  const bool budget = claimed.has_budget.load(std::memory_order_relaxed);
  if (back.chain != nullptr) give_back(back.chain, budget);
  if (budget) {
    Levels levels;
    table_.return_budget(claimed, levels);
    if (queue_.any()) [[unlikely]]
      notify_quotas(levels, {.memory = true});
  }
  // Relaxed: see adopt(). One flag for both, so that the usual end is one test.
  if ((slow_path_flags_.load(std::memory_order_relaxed) & (kLog | kLent)) != 0) [[unlikely]] {
    const std::uint64_t generation = claimed.handle().generation;
    log(EventKind::release, generation, kNoDevice, back.freed);
    if (back.retained != 0) log(EventKind::retain, generation, kNoDevice, back.retained);
    return_lent(claimed);
  }
  const bool kept = claimed.kept;
  const Handle ended = table_.retire(claimed, over);
  if (queue_.any()) [[unlikely]]
    notify_end(ended, kept);
}

void Pool::end_all(ClaimedList& over) noexcept {
  while (RequestRecord* claimed = over.pop()) end(*claimed, over);
}

bool Pool::released(Handle handle) noexcept {
  collect_acks();
  return table_.has_ended(handle);
}

bool Pool::wait_released(Handle handle, std::int64_t deadline_ns) noexcept {
  if (!usable_here()) return false;
  if (released(handle)) return true;
  Waiter waiter;
  enter_end(waiter, handle);
  for (;;) {
    const bool last = !queue_.wait(waiter, deadline_ns);
    if (released(handle)) return true;
    if (last) return false;
  }
}

}  // namespace slabpool
