// Budgets: what a request with a quota or a reserve, or one below it, is charged, and what all sessions keep.
//
// A charge says how much of it is to be drawn from promises, and the depot then draws so much, or nothing.
// All of it is under the budget mutex, and each charge names the generation it is for, because an allocation may be in
// progress while its request ends and the slot gets another one. The walk over the levels is in levels.cpp.
// Invariants: those of record.hpp; kept_bytes_ == sum of `charged` over kept requests.
#include <algorithm>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

Status RequestTable::charge(RequestRecord& r, Handle handle, Share more, LevelNeed& refused) noexcept {
  const std::lock_guard lock(budget_mutex_);
  if (r.charged_for != handle.generation) return Status::request_closed;
  const Status status = check(r.level, more, refused);
  if (status != Status::ok) return status;
  if (r.kept && kept_bytes_ + more.bytes > kept_quota_) {
    refused = {{}, more.bytes, false};
    return Status::quota_exceeded;
  }
  change(r.level, {}, more, nullptr);
  r.charged += more.bytes;
  r.charged_drawn += more.drawn;
  if (r.kept) kept_bytes_ += more.bytes;
  return Status::ok;
}

void RequestTable::uncharge(RequestRecord& r, Handle handle, Share less, Levels& back) noexcept {
  const std::lock_guard lock(budget_mutex_);
  // Otherwise the request ended meanwhile, and its whole charge was returned then.
  if (r.charged_for != handle.generation) return;
  take_off(r, less);
  if (r.kept) kept_bytes_ -= less.bytes;
  change(r.level, less, {}, &back);
}

// The levels change by another call.
void RequestTable::take_off(RequestRecord& r, Share less) noexcept {
  SLABPOOL_ASSERT(r.charged >= less.bytes, "a request is charged for all its blocks", r.charged,
                  less.bytes);
  r.charged -= less.bytes;
  r.charged_drawn -= std::min(r.charged_drawn, less.drawn);
}

ReserveRef RequestTable::reserve_of(const RequestRecord& r, Handle handle) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  return r.charged_for == handle.generation ? nearest_reserve(r.level) : ReserveRef{};
}

void RequestTable::return_budget(RequestRecord& r, Levels& back) noexcept {
  ReserveRef over;
  {
    const std::lock_guard lock(budget_mutex_);
    if (r.charged_drawn != 0) back.refilled = true;
    if (r.charged_for != 0) over = end_promise(r, back);
    forget_charge(r, back);
  }
  if (over.reserve != nullptr) depot_.close_reserve(over);
}

std::uint64_t RequestTable::charged_of(const RequestRecord& r, Handle handle) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  return r.charged_for == handle.generation && !r.kept ? r.share(r.charged, r.charged_drawn).bytes : 0;
}

RequestTable::Quota RequestTable::quota_of(Handle level) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  const RequestRecord* r = budget_of(level);
  if (r == nullptr || r->quota == 0) return {};
  return {r->quota, r->quota - std::min(r->quota, r->counts().bytes)};
}

bool RequestTable::is_session(Handle level) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  const RequestRecord* r = budget_of(level);
  return r != nullptr && r->kept && !r->is_group;
}

// The host has left a request that has a budget, and so all that descend from it: nothing is drawn from its promise any more.
// False if the request is kept, and pinned. A group's budget lasts as long as the group.
bool RequestTable::leave_budget(RequestRecord& r) noexcept {
  if (r.is_group) return r.pins == 0;
  ReserveRef over;
  {
    const std::lock_guard lock(budget_mutex_);
    if (r.kept) {
      forget_charge(r, back_);
      return r.pins == 0;
    }
    over = end_promise(r, back_);
  }
  count_draining();
  if (over.reserve != nullptr) depot_.close_reserve(over);
  return true;
}

std::uint64_t RequestTable::reserved_by(const RequestRecord& r, Handle handle) const noexcept {
  if (!r.has_budget.load(std::memory_order_relaxed)) return 0;
  const std::lock_guard lock(budget_mutex_);
  if (r.charged_for != handle.generation || !r.is_level() || r.reserve.reserve == nullptr) return 0;
  return depot_.left_of(r.reserve);
}

// ---- of kept memory

Status RequestTable::set_quota(Handle session, std::uint64_t quota) noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  RequestRecord* r = budget_of(session);
  if (r == nullptr) return Status::request_closed;
  if (r->counts().bytes > quota) return Status::quota_exceeded;
  r->quota = quota;
  return Status::ok;
}

bool RequestTable::charged_to(Handle session, Handle wanted) const noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  const RequestRecord* r = budget_of(session);
  if (r == nullptr) return false;
  for (Handle at = r->level; const RequestRecord* level = budget_of(at); at = level->upper)
    if (at.slot == wanted.slot && at.generation == wanted.generation) return true;
  return false;
}

std::uint64_t RequestTable::over_quota(Handle handle, Share more, Handle& level) const noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  const RequestRecord* r = budget_of(handle);
  if (r == nullptr) return 0;
  LevelNeed refused;
  level = r->level;
  if (check(r->level, more, refused) != Status::quota_exceeded) return 0;
  level = refused.at;
  return excess(refused);
}

// Bytes that must leave the level that refused.
std::uint64_t RequestTable::excess(const LevelNeed& refused) const noexcept {
  const RequestRecord* r = budget_of(refused.at);
  return r != nullptr ? r->counts().bytes + refused.bytes - r->quota : 0;
}

void RequestTable::set_kept_quota(std::uint64_t quota) noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  kept_quota_ = quota;
}

std::uint64_t RequestTable::kept_bytes() const noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  return kept_bytes_;
}

}  // namespace slabpool
