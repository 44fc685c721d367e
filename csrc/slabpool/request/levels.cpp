// Charging the levels of a budget: one walk from the nearest level up. All of it is under the budget mutex.
//
// What a level counts in the one above it is a function of what it uses and of what is drawn (RequestRecord::counts()). So
// each change is the same walk: the share of what is below was so much, and is now so much. A charge that is drawn from
// a promise changes nothing above it. A level that is over has taken all that it counted off those above it: what is
// charged in it still counts nowhere else, and a walk ends there.
#include <algorithm>
#include <utility>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {
namespace {

// The share of a level with so much more in it.
Share with(const RequestRecord& level, Share more) noexcept {
  return level.share(level.used + more.bytes, level.used_drawn + more.drawn);
}

// How much larger a share has become; nothing if it is smaller.
Share growth(Share before, Share after) noexcept {
  return {after.bytes - std::min(before.bytes, after.bytes),
          after.drawn - std::min(before.drawn, after.drawn)};
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
  const std::uint64_t above_bytes = reserve.reserve != nullptr ? depot_.from_above(reserve) : 0;
  const bool is_level = spec.quota != 0 || spec.reserve != 0 || spec.is_group || (spec.kept && !child);
  // Quotas count bytes that were asked for, not pages.
  const Share promised{spec.reserve, std::min(above_bytes, spec.reserve)};
  if (is_level) {
    if (depth > kMaxLevels) return Status::too_deep;
    LevelNeed by;
    const Status status = check(upper, promised, refused != nullptr ? *refused : by);
    if (status != Status::ok) return status;
    change(upper, {}, promised, nullptr);
  }
  r.charged_for = self.generation;
  r.level = is_level ? self : upper;
  r.upper = is_level ? upper : Handle{};
  r.depth = depth;
  r.quota = spec.quota;
  r.reserve = reserve;
  r.promised = spec.reserve;
  r.promised_above = above_bytes;
  r.charged = r.charged_drawn = r.used = r.used_drawn = r.owed = 0;
  r.is_group = spec.is_group;
  if (above != nullptr) join_group(r, *above, child);
  if (spec.is_group && spec.reserve != 0) link_promised(r);
  return Status::ok;
}

// Whether all quotas from a level up allow a charge. Of several that refuse, one that can never allow it is named, else the
// lowest.
Status RequestTable::check(Handle at, Share more, LevelNeed& refused) const noexcept {
  Status status = Status::ok;
  // What the charge needs at the least: promises that are drawn now may be there again later.
  std::uint64_t least = more.bytes;
  while ((more.bytes != 0 || least != 0) && at.generation != 0) {
    const RequestRecord* level = budget_of(at);
    if (level == nullptr) return Status::request_closed;
    const Share before = level->counts();
    const Share after = with(*level, more);
    if (level->quota != 0 && least > level->quota) {
      refused = {at, least, level->is_group};
      return Status::quota_exceeded;
    }
    if (level->quota != 0 && after.bytes > level->quota && after.bytes > before.bytes &&
        status == Status::ok) {
      refused = {at, after.bytes - before.bytes, level->is_group};
      status = Status::quota_exceeded;
    }
    more = growth(before, after);
    least -= std::min(least, level->promised);
    at = level->upper;
  }
  return status;
}

// What is below a level counted `before` in it, and counts `after` now. `back`, if not null, gets the levels that have more
// room. `leaving`, if not null: promises that get smaller.
void RequestTable::change(Handle at, Share before, Share after, Levels* back,
                          const Leaving* leaving) noexcept {
  const bool less = after.bytes < before.bytes;
  while (RequestRecord* level = budget_of(at)) {
    if (before == after && !(less && back != nullptr)) return;
    const Share counted = level->counts();
    SLABPOOL_ASSERT(level->used + after.bytes >= before.bytes, "only what was charged is returned",
                    level->used, before.bytes, after.bytes);
    level->used += after.bytes - before.bytes;
    if (after.drawn < before.drawn) {
      // What a promise that is over owes is paid by what returns first.
      const std::uint64_t drawn = std::min(before.drawn - after.drawn, level->used_drawn);
      level->used_drawn -= drawn;
      level->owed -= std::min(level->owed, drawn);
    } else {
      level->used_drawn += after.drawn - before.drawn;
    }
    for (unsigned i = 0; leaving != nullptr && i < leaving->count; ++i) {
      const Leaving::Step& step = leaving->steps[i];
      if (step.of != level->reserve.reserve) continue;
      level->promised -= std::min(level->promised, step.own);
      level->promised_above -= std::min(level->promised_above, step.own_above);
    }
    if (less && back != nullptr) back->add(at);
    before = counted;
    after = level->counts();
    at = level->upper;
  }
}

// From now on nothing is drawn from what was promised to a level. The caller closes the promise.
ReserveRef RequestTable::end_promise(RequestRecord& r, Levels& back) noexcept {
  if (!r.is_level()) return {};
  const Share before = r.counts();
  if (r.promised != 0) {
    const std::uint64_t within = std::min({r.used_drawn, r.used, pages_for(r.promised) << kPageBits});
    r.owed = within - std::min(within, r.promised_above);
    if (r.promised_above != 0) back.refilled = true;
  }
  r.promised = r.promised_above = 0;
  change(r.upper, before, r.counts(), &back);
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
  if (r.charged_drawn != 0) back.refilled = true;
  if (r.is_level()) {
    back.add(r.level);
    change(r.upper, r.counts(), {}, &back);
  } else {
    change(r.level, {r.charged, r.charged_drawn}, {}, &back);
  }
  r.charged_for = 0;
  if (!r.kept) return;
  SLABPOOL_ASSERT(kept_bytes_ >= r.charged, "kept_bytes_ is the sum over kept requests", kept_bytes_,
                  r.charged);
  kept_bytes_ -= r.charged;
  r.charged = 0;  // `charged_drawn` tells return_budget() that memory returned to a promise
}

bool RequestTable::needs_of(const RequestRecord& r, Handle handle, Share more,
                            LevelNeeds& needs) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  if (r.charged_for != handle.generation) return false;
  std::uint64_t least = more.bytes;  // as in check()
  for (Handle at = r.level; more.bytes != 0 || least != 0;) {
    const RequestRecord* level = budget_of(at);
    if (level == nullptr) break;
    const Share before = level->counts();
    const Share after = with(*level, more);
    if (level->quota != 0 && (!level->kept || level->is_group)) {
      const bool never = least > level->quota;
      if (never || after.bytes > before.bytes) {
        needs.of[needs.count] = {at, never ? least : after.bytes - before.bytes};
        if (never) needs.never = &needs.of[needs.count];
        ++needs.count;
      }
    }
    more = growth(before, after);
    least -= std::min(least, level->promised);
    at = level->upper;
  }
  return true;
}

bool RequestTable::allows(const RequestRecord& r, Handle handle, Share more,
                          LevelNeed& refused) const noexcept {
  const std::lock_guard lock(budget_mutex_);
  return r.charged_for != handle.generation || check(r.level, more, refused) != Status::quota_exceeded;
}

void RequestTable::take_back(Levels& back) noexcept {
  const std::lock_guard lock(budget_mutex_);
  back = std::exchange(back_, {});
}

}  // namespace slabpool
