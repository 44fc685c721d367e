// Charging the levels of a budget: one walk from the nearest level up. All of it is under the budget mutex.
//
// A level counts in the one above it with what it uses, but no less than what is promised to it. So a charge that stays
// within a promise stops there. A level that is over has taken all that it used off those above it: what is charged in it
// still counts nowhere else, and a walk ends there.
#include <algorithm>
#include <utility>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {
namespace {

// By how much a level counts for more, with so many bytes more.
std::uint64_t outward(const RequestRecord& level, std::uint64_t bytes) noexcept {
  return std::max(level.promised, level.used + bytes) - level.counts();
}

}  // namespace

RequestRecord* RequestTable::budget_of(Handle level) const noexcept {
  RequestRecord* r = level.generation != 0 ? record(level.slot) : nullptr;
  return r != nullptr && r->charged_for == level.generation ? r : nullptr;
}

// Starts the budget of a record that has one, and takes it into its group. On failure nothing has changed.
Status RequestTable::start_budget(RequestRecord& r, Handle self, const OpenSpec& spec,
                                  const RequestRecord* above, ReserveRef reserve,
                                  LevelNeed* refused) noexcept {
  if (spec.is_group && above != nullptr) return Status::invalid_argument;
  if (spec.is_group && has_group(spec.id)) return Status::name_in_use;
  const bool child = above != nullptr && !above->is_group;
  const std::lock_guard lock(budget_mutex_);
  Handle upper;
  std::uint32_t depth = 1;
  if (above != nullptr && above->has_budget.load(std::memory_order_relaxed)) {
    const bool counts = above->charged_for == above->handle().generation;
    const RequestRecord* level = counts ? budget_of(above->level) : nullptr;
    if (level == nullptr) return Status::request_closed;
    upper = above->level;
    depth = level->depth + 1;
  }
  const bool is_level = spec.quota != 0 || spec.reserve != 0 || spec.is_group || (spec.kept && !child);
  const std::uint64_t promised = spec.reserve;  // quotas count bytes that were asked for, not pages
  if (is_level) {
    if (depth > kMaxLevels) return Status::too_deep;
    LevelNeed by;
    const Status status = check(upper, promised, refused != nullptr ? *refused : by);
    if (status != Status::ok) return status;
    add(upper, promised);
  }
  r.charged_for = self.generation;
  r.level = is_level ? self : upper;
  r.upper = is_level ? upper : Handle{};
  r.depth = depth;
  r.quota = spec.quota;
  r.reserve = reserve;
  r.promised = promised;
  r.charged = r.used = 0;
  r.is_group = spec.is_group;
  if (above != nullptr) join_group(r, *above, child);
  if (spec.is_group && promised != 0) link_promised(r);
  return Status::ok;
}

// Whether all quotas from a level up allow a charge. Of several that refuse, one that can never allow it is named, else the
// lowest.
Status RequestTable::check(Handle at, std::uint64_t bytes, LevelNeed& refused) const noexcept {
  Status status = Status::ok;
  while (bytes != 0 && at.generation != 0) {
    const RequestRecord* level = budget_of(at);
    if (level == nullptr) return Status::request_closed;
    const bool never = level->quota != 0 && bytes > level->quota;
    if (never || (level->quota != 0 && level->used + bytes > level->quota && status == Status::ok)) {
      refused = {at, bytes, level->is_group};
      if (never) return Status::quota_exceeded;
      status = Status::quota_exceeded;
    }
    bytes = outward(*level, bytes);
    at = level->upper;
  }
  return status;
}

void RequestTable::add(Handle at, std::uint64_t bytes) noexcept {
  while (bytes != 0) {
    RequestRecord* level = budget_of(at);
    if (level == nullptr) return;
    const std::uint64_t more = outward(*level, bytes);
    level->used += bytes;
    bytes = more;
    at = level->upper;
  }
}

void RequestTable::subtract(Handle at, std::uint64_t bytes, Levels& back) noexcept {
  while (bytes != 0) {
    RequestRecord* level = budget_of(at);
    if (level == nullptr) return;
    SLABPOOL_ASSERT(level->used >= bytes, "only what was charged is returned", level->used, bytes);
    const std::uint64_t before = level->counts();
    level->used -= bytes;
    back.add(at);
    bytes = before - level->counts();
    at = level->upper;
  }
}

// From now on nothing is drawn from what was promised to a level. The caller closes the promise.
ReserveRef RequestTable::end_promise(RequestRecord& r, Levels& back) noexcept {
  if (!r.is_level()) return {};
  const std::uint64_t before = r.counts();
  r.promised = 0;
  subtract(r.upper, before - r.counts(), back);
  return std::exchange(r.reserve, {});
}

ReserveRef RequestTable::nearest_reserve(Handle at) const noexcept {
  for (; const RequestRecord* level = budget_of(at); at = level->upper)
    if (level->reserve.reserve != nullptr) return level->reserve;
  return {};
}

ReserveRef RequestTable::reserve_above(const OpenSpec& spec) const noexcept {
  const RequestRecord* r = spec.parent ? record(spec.parent->slot) : nullptr;
  if (r == nullptr || !r->has_budget.load(std::memory_order_relaxed)) return {};
  return reserve_of(*r, *spec.parent);
}

// Takes all that a record is charged off its levels: of a level, with all that counts in it.
void RequestTable::forget_charge(RequestRecord& r, Levels& back) noexcept {
  if (r.charged_for == 0) return;
  if (r.is_level()) {
    back.add(r.level);
    subtract(r.upper, r.counts(), back);
  } else {
    subtract(r.level, r.charged, back);
  }
  r.charged_for = 0;
  if (!r.kept) return;
  SLABPOOL_ASSERT(kept_bytes_ >= r.charged, "kept_bytes_ is the sum over kept requests", kept_bytes_,
                  r.charged);
  kept_bytes_ -= r.charged;
  r.charged = 0;
}

bool RequestTable::needs_of(const RequestRecord& r, Handle handle, std::uint64_t bytes,
                            LevelNeeds& needs) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  if (r.charged_for != handle.generation) return false;
  for (Handle at = r.level; bytes != 0;) {
    const RequestRecord* level = budget_of(at);
    if (level == nullptr) break;
    if (level->quota != 0 && (!level->kept || level->is_group)) {
      needs.of[needs.count] = {at, bytes};
      if (bytes > level->quota) needs.never = &needs.of[needs.count];
      ++needs.count;
    }
    bytes = outward(*level, bytes);
    at = level->upper;
  }
  return true;
}

bool RequestTable::allows(const RequestRecord& r, Handle handle, std::uint64_t bytes,
                          LevelNeed& refused) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  return r.charged_for != handle.generation || check(r.level, bytes, refused) != Status::quota_exceeded;
}

void RequestTable::take_back(Levels& back) noexcept {
  const std::lock_guard lock(budget_mutex_);
  back = std::exchange(back_, {});
}

}  // namespace slabpool
