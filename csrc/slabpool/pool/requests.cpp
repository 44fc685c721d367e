// Requests: opening and closing them, and giving their blocks back once.
#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

Status Pool::open(const OpenSpec& spec, Handle& handle) noexcept {
  if (!usable_here()) return Status::forked;
  if (closed()) return Status::pool_closed;
  if (pages_for(spec.reserve) > options_.capacity >> kPageBits) return Status::too_large;
  if (spec.quota != 0 && spec.reserve > spec.quota) return Status::invalid_argument;
  collect_acks();
  try {
    const std::int64_t now = now_ns();
    Status status = table_.open(spec, now, handle);
    if (status == Status::exhausted) {
      caches_.collect();
      status = table_.open(spec, now, handle);
    }
    if (status == Status::ok) log(EventKind::open, handle.generation, kNoDevice, spec.reserve);
    return status;
  } catch (const std::bad_alloc&) {
    return Status::system_refused;
  }
}

Status Pool::open_until(const OpenSpec& spec, Handle& handle, std::int64_t deadline_ns) noexcept {
  if (!usable_here()) return Status::forked;
  Status status = Status::exhausted;
  (void)wait_for(deadline_ns, [&] {
    status = open(spec, handle);
    return status != Status::exhausted && status != Status::too_many_requests;
  });
  return status;
}

void Pool::close_request(Handle handle, bool cancel) noexcept {
  if (!usable_here()) return;
  collect_acks();  // otherwise a request whose acks all arrived would stay until the next call
  ClaimedList over;
  if (!table_.close(handle, cancel, over)) return;
  log(EventKind::close, handle.generation, kNoDevice, 0);
  end_all(over);
  waiters_.notify();  // a waiter for memory of this request cannot have it any more
}

void Pool::discard(Handle handle) noexcept {
  if (!usable_here()) return;
  ClaimedList over;
  table_.cut(handle, over);
  end_all(over);
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
  if (budget) table_.return_budget(claimed);
  if (log_ != nullptr) [[unlikely]] {
    const std::uint64_t generation = claimed.handle().generation;
    log(EventKind::release, generation, kNoDevice, back.freed);
    if (back.retained != 0) log(EventKind::retain, generation, kNoDevice, back.retained);
  }
  table_.retire(claimed, over);
  waiters_.notify();
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
  return wait_for(deadline_ns, [&] { return released(handle); });
}

}  // namespace slabpool
