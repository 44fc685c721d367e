// What sessions keep: blocks that move from the request which made them to one that stays, and the pins of
// requests which may still read them.
//
// A kept request has no devices. The host (a session) lets go of it when it likes; it is over, and its block
// back, only once every request that pinned it is over too. Pins are under the table's mutex, charges
// under the budget's; a move holds both and the locks of both records, in that order, and changes all or
// nothing.
#include <algorithm>

#include "slabpool/base/clock.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

namespace {

// Of two records, in the order of their slots.
class BothLocks {
 public:
  BothLocks(RequestRecord& a, RequestRecord& b) noexcept
      : first_(a.slot < b.slot ? a : b), second_(a.slot < b.slot ? b : a) {
    first_.lock.lock();
    second_.lock.lock();
  }
  BothLocks(const BothLocks&) = delete;
  BothLocks& operator=(const BothLocks&) = delete;
  ~BothLocks() {
    second_.lock.unlock();
    first_.lock.unlock();
  }

 private:
  RequestRecord& first_;
  RequestRecord& second_;
};

void add_bytes(RequestRecord& r, std::uint64_t bytes) noexcept {
  // As in Pool::attach(): until the request is claimed only whoever has the lock changes it.
  r.nbytes.store(r.nbytes.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
}

}  // namespace

Status RequestTable::keep(Block& block, Handle from, Handle to, const Handle* instead_of) {
  const std::lock_guard lock(mutex_);
  RequestRecord* source = live_record(from);
  RequestRecord* target = live_record(to);
  if (source == nullptr || target == nullptr || target->parent == 0) return Status::request_closed;
  if (source->kept || !target->kept) return Status::invalid_argument;
  RequestRecord& root = *record(target->parent - 1);
  if (!root.kept) return Status::invalid_argument;
  source->pinned.reserve(source->pinned.size() + 2);
  const std::lock_guard budget_lock(budget_mutex_);
  {
    const BothLocks locks(*source, *target);
    // As in Pool::attach(): whoever claims a request after this look takes what is linked then.
    if (!target->takes(to) || source->generation.load(std::memory_order_acquire) != from.generation)
      return Status::request_closed;
    Block** link = &source->blocks;
    while (*link != nullptr && *link != &block) link = &(*link)->next;
    if (*link == nullptr) return Status::invalid_argument;
    RequestRecord* old = instead_of != nullptr ? budget_of(*instead_of) : nullptr;
    const std::uint64_t returned = old != nullptr ? old->charged : 0;
    if (root.used - returned + block.bytes > root.quota) return Status::quota_exceeded;
    if (kept_bytes_ - returned + block.bytes > kept_quota_) return Status::exhausted;
    if (old != nullptr) forget_charge(*old);
    *link = block.next;
    block.next = target->blocks;
    target->blocks = &block;
    block.request.store(target->slot + 1, std::memory_order_relaxed);
    add_bytes(*source, std::uint64_t{0} - block.bytes);
    add_bytes(*target, block.bytes);
    charge_kept(*target, block.bytes);
    if (source->charged_for == from.generation) {
      source->charged -= block.bytes;
      if (RequestRecord* payer = budget_of(source->root)) payer->used -= block.bytes;
    }
  }
  pin_locked(*source, root);
  pin_locked(*source, *target);
  return Status::ok;
}

// ---- pins

void RequestTable::pin_locked(RequestRecord& by, RequestRecord& kept) noexcept {
  const Handle handle{kept.slot, kept.generation.load(std::memory_order_relaxed)};
  const auto same = [&](Handle other) {
    return other.slot == handle.slot;
  };  // pinned: it is still that one
  if (std::any_of(by.pinned.begin(), by.pinned.end(), same)) return;
  by.pinned.push_back(handle);  // there is room
  ++kept.pins;
}

Status RequestTable::pin(Handle by, std::span<const Handle> kept) {
  const std::lock_guard lock(mutex_);
  RequestRecord* r = live_record(by);
  const auto alive = [&](Handle handle) { return live_record(handle) != nullptr; };
  if (r == nullptr || !std::all_of(kept.begin(), kept.end(), alive)) return Status::request_closed;
  r->pinned.reserve(r->pinned.size() + kept.size());
  for (const Handle handle : kept) pin_locked(*r, *record(handle.slot));
  return Status::ok;
}

bool RequestTable::pins(Handle by, std::uint32_t slot) const noexcept {
  const std::lock_guard lock(mutex_);
  const RequestRecord* r = live_record(by);
  return r != nullptr && std::any_of(r->pinned.begin(), r->pinned.end(),
                                     [&](Handle handle) { return handle.slot == slot; });
}

// Under the table's mutex, by whoever retires `by`. The last pinned first: a root is pinned before what is in
// it, and must not be over before that.
void RequestTable::unpin_all(RequestRecord& by, std::vector<Handle>& over) noexcept {
  const std::int64_t now = now_ns();
  while (!by.pinned.empty()) {
    const Handle handle = by.pinned.back();
    by.pinned.pop_back();
    RequestRecord& kept = *record(handle.slot);
    if (--kept.pins != 0) continue;
    kept.idle_since_ns = now;
    // The host's bit, if it left while there were pins; a pool that is closed by force has taken all bits.
    if (kept.host_left.load(std::memory_order_relaxed) &&
        holders(handle.slot).leave(tag(handle.generation), kHost) == HolderSet::Left::last) {
      over.push_back(handle);
    }
  }
}

bool RequestTable::kept(Handle root, Kept& told) const noexcept {
  const std::lock_guard lock(mutex_);
  const RequestRecord* r = live_record(root);
  if (r == nullptr || r->host_left.load(std::memory_order_relaxed)) return false;
  const std::lock_guard budget_lock(budget_mutex_);
  told = {r->used, r->quota, r->pins, r->idle_since_ns};
  return true;
}

}  // namespace slabpool
