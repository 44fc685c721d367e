// Tensors that change requests.
//
// Devices of the request that had the block may go on reading it, so that request keeps a view of it until it is over: the
// block goes back with the last of the two requests. The move holds the table's and the budget's mutex and the locks of both
// requests' blocks, and changes all or nothing.
#include <algorithm>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

RequestTable::Adopted RequestTable::adopt(Block& block, Handle from, Handle to) {
  const std::lock_guard lock(mutex_);
  RequestRecord* source = live_record(from);
  RequestRecord* target = live_record(to);
  if (target == nullptr || !target->accepts(to)) return Adopted::closed;
  if (source == nullptr) return Adopted::released;
  if (source == target || source->kept || target->kept) return Adopted::not_its;
  source->lent.reserve(source->lent.size() + 1);
  const std::lock_guard budget_lock(budget_mutex_);
  // Exact, as in RequestBlocks::attach(): a claim that comes after this check takes what is attached and lent then.
  const auto accepts = [&] { return target->accepts(to) && !is_over(from); };
  const auto decide = [&] {
    const auto pays = [](const RequestRecord& r) {
      return r.has_budget.load(std::memory_order_relaxed);
    };
    // Both may share a level. So the charge is taken off before the quotas are checked, and put back if one refuses.
    Levels back;
    const bool paid = pays(*source) && source->charged_for == from.generation;
    if (paid) subtract(source->level, block.bytes, back);
    if (pays(*target)) {
      LevelNeed refused;
      const Status status = target->charged_for == to.generation
                                ? check(target->level, block.bytes, refused)
                                : Status::request_closed;
      if (status != Status::ok) {
        if (paid) add(source->level, block.bytes);
        return status;
      }
      add(target->level, block.bytes);
      target->charged += block.bytes;
    }
    if (paid) {
      SLABPOOL_ASSERT(source->charged >= block.bytes, "a request is charged for all its blocks",
                      source->charged, block.bytes);
      source->charged -= block.bytes;
    }
    for (unsigned i = 0; i < back.count; ++i) back_.add(back.at[i]);
    // The target had it before, and is about to have it again.
    const auto own = std::find(target->lent.begin(), target->lent.end(), &block);
    if (own != target->lent.end()) {
      target->lent.erase(own);
      (void)block.drop_with_request();  // never the last hold: `from` has the block
    }
    (void)block.hold_with_request();
    source->lent.push_back(&block);
    return Status::ok;
  };
  switch (RequestBlocks::move(block, source->blocks, target->blocks, target->slot, accepts, decide)) {
    case Status::ok:
      return Adopted::ok;
    case Status::quota_exceeded:
      return Adopted::quota_exceeded;
    case Status::request_closed:
      // The budget of a child goes with the request that it descends from, a moment before the child.
      return is_over(from) ? Adopted::released : Adopted::closed;
    default:
      return Adopted::not_its;
  }
}

}  // namespace slabpool
