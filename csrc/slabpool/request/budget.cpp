// Budgets: what a request with a quota or a reserve is charged, and what all sessions keep.
//
// A child charges the request it descends from. All of it is under the budget mutex, and each charge names the generation
// it is for, because an allocation may be in progress while its request ends and the slot gets another one.
// Invariant: used of a root == sum of `charged` over the root's descendants; kept_bytes_ == sum over kept requests.
#include <utility>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

RequestRecord* RequestTable::budget_of(Handle root) const noexcept {
  RequestRecord* r = record(root.slot);
  return r != nullptr && r->charged_for == root.generation ? r : nullptr;
}

Status RequestTable::charge_locked(RequestRecord& r, Handle handle, std::uint64_t bytes,
                                   ReserveRef& reserve) noexcept {
  if (r.charged_for != handle.generation) return Status::request_closed;
  RequestRecord* root = budget_of(r.root);
  if (root == nullptr) return Status::request_closed;
  if (root->quota != 0 && root->used + bytes > root->quota) return Status::quota_exceeded;
  if (r.kept && kept_bytes_ + bytes > kept_quota_) return Status::quota_exceeded;
  root->used += bytes;
  r.charged += bytes;
  if (r.kept) kept_bytes_ += bytes;
  reserve = root->reserve;
  return Status::ok;
}

void RequestTable::uncharge(RequestRecord& r, Handle handle, std::uint64_t bytes) noexcept {
  const std::lock_guard lock(budget_mutex_);
  uncharge_locked(r, handle, bytes);
}

void RequestTable::uncharge_locked(RequestRecord& r, Handle handle, std::uint64_t bytes) noexcept {
  // Otherwise the request ended meanwhile, and its whole charge was returned then.
  if (r.charged_for != handle.generation) return;
  SLABPOOL_ASSERT(r.charged >= bytes, "only what was charged is returned", r.charged, bytes);
  r.charged -= bytes;
  if (r.kept) kept_bytes_ -= bytes;
  if (RequestRecord* root = budget_of(r.root)) root->used -= bytes;
}

ReserveRef RequestTable::reserve_of(const RequestRecord& r, Handle handle) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  if (r.charged_for != handle.generation) return {};
  const RequestRecord* root = budget_of(r.root);
  return root != nullptr ? root->reserve : ReserveRef{};
}

void RequestTable::return_budget(RequestRecord& r) noexcept {
  ReserveRef over;
  {
    const std::lock_guard lock(budget_mutex_);
    if (r.kept) {
      forget_charge(r);
      return;
    }
    r.charged_for = 0;
    if (r.root.slot == r.slot) {
      over = r.reserve;
      r.reserve = {};
    } else {
      if (RequestRecord* root = budget_of(r.root)) root->used -= r.charged;
      r.charged = 0;
    }
  }
  if (over.reserve != nullptr) depot_.close_reserve(over);
}

Handle RequestTable::root_of(const RequestRecord& r, Handle handle) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  return r.charged_for == handle.generation ? r.root : Handle{};
}

std::uint64_t RequestTable::charged_of(const RequestRecord& r, Handle handle) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  return r.charged_for == handle.generation ? r.charged : 0;
}

RequestTable::Quota RequestTable::quota_of(Handle root) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  const RequestRecord* r = budget_of(root);
  if (r == nullptr || r->quota == 0) return {};
  return {r->quota, r->quota > r->used ? r->quota - r->used : 0};
}

ReserveRef RequestTable::reserve_of(Handle root) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  const RequestRecord* r = budget_of(root);
  return r != nullptr ? r->reserve : ReserveRef{};
}

// The host has left a request that has a budget, and so all that descend from it: nothing is drawn from its promise any more.
// False if the request is kept, and pinned.
bool RequestTable::leave_budget(RequestRecord& r) noexcept {
  ReserveRef over;
  {
    const std::lock_guard lock(budget_mutex_);
    if (r.kept) {
      forget_charge(r);
      return r.pins == 0;
    }
    if (r.root.slot == r.slot) std::swap(over, r.reserve);
  }
  count_draining();
  if (over.reserve != nullptr) depot_.close_reserve(over);
  return true;
}

std::uint64_t RequestTable::reserved_by(const RequestRecord& r) const noexcept {
  if (!r.has_budget.load(std::memory_order_relaxed)) return 0;
  const std::lock_guard lock(budget_mutex_);
  return r.root.slot == r.slot && r.reserve.reserve != nullptr ? depot_.left_of(r.reserve) : 0;
}

// ---- of kept memory

void RequestTable::charge_kept(RequestRecord& r, std::uint64_t bytes) noexcept {
  r.charged += bytes;
  kept_bytes_ += bytes;
  if (RequestRecord* root = budget_of(r.root)) root->used += bytes;
}

void RequestTable::forget_charge(RequestRecord& r) noexcept {
  if (r.charged_for == 0) return;
  r.charged_for = 0;
  SLABPOOL_ASSERT(kept_bytes_ >= r.charged, "kept_bytes_ is the sum over kept requests", kept_bytes_,
                  r.charged);
  kept_bytes_ -= r.charged;
  if (RequestRecord* root = budget_of(r.root)) root->used -= r.charged;
  r.charged = 0;
}

Status RequestTable::set_quota(Handle root, std::uint64_t quota) noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  RequestRecord* r = budget_of(root);
  if (r == nullptr) return Status::request_closed;
  if (r->used > quota) return Status::quota_exceeded;
  r->quota = quota;
  return Status::ok;
}

bool RequestTable::charged_to(Handle session, Handle root) const noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  const RequestRecord* r = budget_of(session);
  return r != nullptr && r->root.slot == root.slot && r->root.generation == root.generation;
}

std::uint64_t RequestTable::over_quota(Handle handle, std::uint64_t bytes, Handle& root) const noexcept {
  const std::lock_guard budget_lock(budget_mutex_);
  const RequestRecord* r = budget_of(handle);
  if (r == nullptr) return 0;
  root = r->root;
  r = budget_of(root);
  if (r == nullptr || r->quota == 0 || r->used + bytes <= r->quota) return 0;
  return r->used + bytes - r->quota;
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
