// The charge of a block that moves from one request to another: what each level counts changes by the net effect.
//
// A level that both requests count in sees no difference. So the part of a request's promise that the block was drawn from goes
// along: otherwise that level would count it twice, as promised and as moved. What was drawn from the promise of a level above
// both stays drawn from it. So does what was drawn from a group's promise, wherever the block goes: it returns there.
#include <algorithm>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {
namespace {

// The budgets of levels before a change that may be refused.
class Saved {
 public:
  void add(RequestRecord& level) noexcept {
    SLABPOOL_ASSERT(count_ < 3 * kMaxLevels, "three chains of levels are saved", count_);
    levels_[count_++] = {&level,         level.used,           level.used_drawn,
                         level.promised, level.promised_above, level.owed};
  }
  // The last one first: a level may be in both chains.
  void restore() noexcept {
    while (count_ != 0) {
      const Level& saved = levels_[--count_];
      saved.of->used = saved.used;
      saved.of->used_drawn = saved.used_drawn;
      saved.of->promised = saved.promised;
      saved.of->promised_above = saved.promised_above;
      saved.of->owed = saved.owed;
    }
  }

 private:
  struct Level {
    RequestRecord* of;
    std::uint64_t used, used_drawn, promised, promised_above, owed;
  };
  Level levels_[3 * kMaxLevels];
  unsigned count_ = 0;
};

}  // namespace

// Under the budget mutex and the locks of both requests' blocks. `old`, if not null, is not charged any more. With `needs`
// nothing changes: it is written what waiters of quotas have to be asked for.
Status RequestTable::move_charge(Block& block, RequestRecord& source, Handle from, RequestRecord& target,
                                 Handle to, RequestRecord* old, LevelNeeds* needs, LevelNeed& refused) {
  const auto pays = [](const RequestRecord& r) { return r.has_budget.load(std::memory_order_relaxed); };
  const bool paid = pays(source) && source.charged_for == from.generation;
  if (pays(target) && target.charged_for != to.generation) return Status::request_closed;
  // What the levels of the target counted before.
  Handle above[kMaxLevels];
  std::uint64_t counted[kMaxLevels];
  unsigned above_count = 0;
  for (Handle at = pays(target) ? target.level : Handle{}; const RequestRecord* r = budget_of(at);
       at = r->upper) {
    counted[above_count] = r->counts().bytes;
    above[above_count++] = at;
  }
  Saved saved;
  bool common = false;
  ReserveRef left[kMaxLevels];
  ReserveRef shared[kMaxLevels];
  unsigned left_count = 0;
  unsigned shared_count = 0;
  for (Handle at = paid ? source.level : Handle{}; RequestRecord* r = budget_of(at); at = r->upper) {
    saved.add(*r);
    common = common || std::any_of(above, above + above_count,
                                   [&](Handle level) { return level.slot == at.slot; });
    if (r->reserve.reserve == nullptr) continue;
    if (common || r->is_group) {
      shared[shared_count++] = r->reserve;
    } else {
      left[left_count++] = r->reserve;
    }
  }
  const std::uint64_t returned = old != nullptr ? old->charged : 0;
  const auto decide = [&](const Leaving& leaving) {
    const Share gone{block.bytes, leaving.drawn};
    const Share come{block.bytes, common ? leaving.stays : 0};
    // First taken off, then put on: both may count in one level.
    Levels back;
    if (old != nullptr) {
      for (Handle at = old->level; RequestRecord* r = budget_of(at); at = r->upper) saved.add(*r);
      change(old->level, {old->charged, old->charged_drawn}, {}, &back);
    }
    if (paid) change(source.level, gone, {}, &back, &leaving);
    Status status = Status::ok;
    if (pays(target)) {
      status = check(target.level, come, refused);
      if (status == Status::quota_exceeded) refused.excess = excess(refused);
    }
    if (needs != nullptr) {
      for (unsigned i = 0; i < above_count; ++i) saved.add(*budget_of(above[i]));
      if (pays(target)) change(target.level, {}, come, nullptr);
      for (unsigned i = 0; i < above_count; ++i) {
        const RequestRecord& r = *budget_of(above[i]);
        const std::uint64_t now = r.counts().bytes;
        if (r.quota != 0 && (!r.kept || r.is_group) && now > counted[i])
          needs->of[needs->count++] = {above[i], now - counted[i]};
      }
    }
    if (status == Status::ok && target.kept && kept_bytes_ - returned + block.bytes > kept_quota_)
      status = Status::exhausted;
    if (status != Status::ok || needs != nullptr) {
      saved.restore();
      return needs != nullptr ? Status::waiters_ahead : status;
    }
    if (pays(target)) change(target.level, {}, come, nullptr);
    target.charged += come.bytes;
    target.charged_drawn += come.drawn;
    if (target.kept) kept_bytes_ += block.bytes - returned;
    if (old != nullptr) {
      old->charged = 0;
      old->charged_for = 0;
    }
    if (paid) take_off(source, gone);
    back_.add(back);
    return Status::ok;
  };
  return depot_.leave(block, {left, left_count}, {shared, shared_count}, decide);
}

}  // namespace slabpool
