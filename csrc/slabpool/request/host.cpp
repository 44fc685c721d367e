// How the host leaves a request: it closes it, or gives it up (cancels it).
//
// Invariants: the host leaves once; the table marks a cancelled request before it clears the host's bit. So a thread
// that finds the bit cleared knows whether the request was cancelled. Waiting peers are woken after that.
#include "slabpool/request/table.hpp"

namespace slabpool {

inline void RequestTable::let_host_go(RequestRecord& r, Handle own, ClaimedList& over) noexcept {
  r.host_left.store(true, std::memory_order_relaxed);  // published by the clearing of the bit
  if (r.has_budget.load(std::memory_order_relaxed)) [[unlikely]] {
    if (!leave_budget(r)) {  // unpin_all() clears the host's bit
      // A full barrier before the caller asks for waiters: one that has registered reads this without the mutex (is_open).
      (void)r.host_left.exchange(true, std::memory_order_seq_cst);
      return;
    }
  } else {
    count_draining();
  }
  if (holders(r.slot).leave(own.generation, kHost) == HolderSet::Left::last) claim_into(r, own, over);
}

// Of a request that is cancelled, or that peers may wait for.
void RequestTable::host_leaves_noted(RequestRecord& r, Handle own, unsigned how,
                                     ClaimedList& over) noexcept {
  // Relaxed: published by the clearing of the host's bit, which peers read first.
  if ((how & kCancel) != 0) slots_[r.slot].cancelled.store(own.generation, std::memory_order_relaxed);
  let_host_go(r, own, over);
  if ((how & kTell) != 0 && watchers_ != nullptr) watchers_->host_left(own.slot, own.generation);
}

void RequestTable::host_leaves_one(RequestRecord& r, unsigned how, ClaimedList& over) noexcept {
  const Handle own{r.slot, r.generation.load(std::memory_order_relaxed)};
  if (r.host_left || RequestRecord::is_released(own.generation)) return;
  if (how != 0) [[unlikely]]
    return host_leaves_noted(r, own, how, over);
  let_host_go(r, own, over);
}

inline void RequestTable::close_locked(RequestRecord& r, unsigned how, ClaimedList& over) noexcept {
  if (first_child(r.slot).load(std::memory_order_relaxed) != 0) [[unlikely]]
    each_below(r, [&](RequestRecord& child) { host_leaves_one(child, how, over); });
  host_leaves_one(r, how, over);
}

bool RequestTable::close(Handle handle, unsigned how, ClaimedList& over) noexcept {
  const std::lock_guard lock(mutex_);
  RequestRecord* r = live_record(handle);
  if (r == nullptr || r->host_left) return false;
  close_locked(*r, how, over);
  return true;
}

// ---- by id

std::uint32_t RequestTable::cancel_id(std::string_view id, std::optional<std::uint64_t> generation,
                                      ClaimedList& over, Handle& handle) noexcept {
  const std::lock_guard lock(mutex_);
  RequestRecord* found = nullptr;
  std::uint32_t count = 0;
  (void)each_of_id(id, generation, [&](RequestRecord& r, const Handle&) {
    if (r.host_left) return;
    found = &r;
    ++count;
  });
  if (count != 1) return count;
  handle = found->handle();
  close_locked(*found, kCancel | kTell, over);
  return 1;
}

bool RequestTable::is_cancelled(Handle handle) const noexcept {
  // Acquire: as slot.hpp says, the mark is published with the host's bit. Until the request is over no other request of the
  // slot can write it; after that it stays until a later one is cancelled.
  return record(handle.slot) != nullptr && handle.generation != 0 &&
         slots_[handle.slot].cancelled.load(std::memory_order_acquire) == handle.generation;
}

}  // namespace slabpool
