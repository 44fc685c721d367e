// What sessions keep: blocks that move from the request which made them to one that stays, and the pins of requests which
// may still read them.
//
// A kept request has no devices. Its host (a session) may leave at any time; the request is over, and its block back,
// only once every request that pinned it is over too. Pins are under the table's mutex, charges under the budget's; a
// move holds both and the locks of both requests' blocks, and changes all or nothing.
#include <algorithm>
#include <utility>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

Status RequestTable::keep(Block& block, Handle from, Handle to, const Handle* instead_of,
                          LevelNeeds* needs, LevelNeed& refused) {
  const std::lock_guard lock(mutex_);
  RequestRecord* source = live_record(from);
  RequestRecord* target = live_record(to);
  if (source == nullptr || target == nullptr || target->parent == 0) return Status::request_closed;
  if (source->kept || !target->kept) return Status::invalid_argument;
  RequestRecord& root = *record(target->parent - 1);
  if (!root.kept) return Status::invalid_argument;
  source->pinned.reserve(source->pinned.size() + 2);
  const std::lock_guard budget_lock(budget_mutex_);
  // Exact, as in RequestBlocks::attach(): a claim that comes after this check takes what is attached then.
  const auto accepts = [&] { return target->accepts(to) && !is_over(from); };
  const auto decide = [&] {
    return move_charge(block, *source, from, *target, to,
                       instead_of != nullptr ? budget_of(*instead_of) : nullptr, needs, refused);
  };
  const Status status =
      RequestBlocks::move(block, source->blocks, target->blocks, target->slot, accepts, decide);
  if (status != Status::ok) return status;
  pin_locked(*source, root);
  pin_locked(*source, *target);
  return Status::ok;
}

// ---- pins

void RequestTable::pin_locked(RequestRecord& by, RequestRecord& kept) noexcept {
  const Handle handle{kept.slot, kept.generation.load(std::memory_order_relaxed)};
  // A pinned request is not over, so its slot still has that generation.
  const auto same = [&](Handle other) { return other.slot == handle.slot; };
  if (std::any_of(by.pinned.begin(), by.pinned.end(), same)) return;
  by.pinned.push_back(handle);  // the caller reserved room
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

bool RequestTable::devices_hold(Handle handle) const noexcept {
  bool held = false;
  const auto look = [&](const RequestRecord& r) {
    holders(r.slot).each_device(r.handle().generation, [&](std::uint32_t) { held = true; });
  };
  const std::lock_guard lock(mutex_);
  const RequestRecord* r = live_record(handle);
  if (r == nullptr) return false;
  look(*r);
  for (std::uint32_t slot = 0; r->pins != 0 && !held && slot < slots_made_; ++slot) {
    const RequestRecord& by = *record(slot);
    const auto same = [&](Handle pinned) { return pinned.slot == handle.slot; };
    if (std::any_of(by.pinned.begin(), by.pinned.end(), same)) look(by);
  }
  return held;
}

void RequestTable::list_idle(RequestRecord& session) noexcept {
  if (session.listed_idle) return;
  session.listed_idle = true;
  session.next_idle = std::exchange(first_idle_, session.slot + 1);
}

// Called by retire(), under the table's mutex. The last pinned first: a root is pinned before its children, and must not
// be over before them.
void RequestTable::unpin_all(RequestRecord& by, ClaimedList& over) noexcept {
  const std::int64_t now = now_ns();
  while (!by.pinned.empty()) {
    const Handle handle = by.pinned.back();
    by.pinned.pop_back();
    RequestRecord& kept = *record(handle.slot);
    SLABPOOL_ASSERT(kept.pins != 0, "a pinned request counts its pins", handle.slot, handle.generation);
    if (--kept.pins != 0) continue;
    kept.idle_since_ns = now;
    if (kept.parent == 0) list_idle(kept);
    unpinned_.store(true, std::memory_order_relaxed);
    // Clears the host's bit if the host left while there were pins. (Pool::close(force) has cleared all bits already.)
    if (kept.host_left.load(std::memory_order_relaxed) &&
        holders(handle.slot).leave(handle.generation, kHost) == HolderSet::Left::last) {
      claim_into(kept, handle, over);
    }
  }
}

bool RequestTable::take_idle(Handle& root) noexcept {
  const std::lock_guard lock(mutex_);
  while (first_idle_ != 0) {
    RequestRecord& r = *record(first_idle_ - 1);
    first_idle_ = r.next_idle;
    r.listed_idle = false;
    root = r.handle();
    // Otherwise the session is over, or in use again, and is listed when that ends.
    if (r.kept && r.pins == 0 && live_record(root) != nullptr) return true;
  }
  return false;
}

bool RequestTable::kept(Handle root, Kept& figures) const noexcept {
  const std::lock_guard lock(mutex_);
  const RequestRecord* r = live_record(root);
  if (r == nullptr || r->host_left.load(std::memory_order_relaxed)) return false;
  const std::lock_guard budget_lock(budget_mutex_);
  figures = {r->used, r->quota, r->pins, r->idle_since_ns, r->used_drawn};
  return true;
}

}  // namespace slabpool
