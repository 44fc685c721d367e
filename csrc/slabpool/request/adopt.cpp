// Tensors that change requests.
//
// Devices of the request that had the block may go on reading it, so that request keeps a view of it until it is over: the
// block goes back with the last of the two requests. A request that no device holds keeps none: a device that is added to it
// later reads what it is given then, and that is not the block. The move holds the table's and the budget's mutex and the locks
// of both requests' blocks, and changes all or nothing. It allocates before it takes any of them.
#include <set>
#include <utility>

#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

RequestTable::Adopted RequestTable::adopt(Block& block, Handle from, Handle to, LevelNeeds* needs,
                                          LevelNeed& refused) {
  std::set<Block*> lent{&block};
  std::set<Block*>::node_type entry = lent.extract(lent.begin());
  std::set<Block*>::node_type taken_back;  // freed without a lock
  const std::lock_guard lock(mutex_);
  RequestRecord* source = live_record(from);
  RequestRecord* target = live_record(to);
  if (target == nullptr || !target->accepts(to)) return Adopted::closed;
  if (source == nullptr) return Adopted::released;
  if (source == target || source->kept || target->kept) return Adopted::not_its;
  bool lends = false;
  if (needs == nullptr)
    holders(source->slot).each_device(from.generation, [&](std::uint32_t) { lends = true; });
  const std::lock_guard budget_lock(budget_mutex_);
  // Exact, as in RequestBlocks::attach(): a claim that comes after this check takes what is attached and lent then.
  const auto accepts = [&] { return target->accepts(to) && !is_over(from); };
  // Under the locks of both: the thread that claims the source has what is lent, once it has had the lock of its blocks.
  const auto decide = [&] {
    const Status status = move_charge(block, *source, from, *target, to, nullptr, needs, refused);
    if (status != Status::ok) return status;
    // The target had it before, and is about to have it again: never the last hold, because `from` has the block.
    taken_back = target->lent.extract(&block);
    if (!taken_back.empty()) (void)block.drop_with_request();
    if (lends) {
      (void)block.hold_with_request();
      source->lent.insert(std::move(entry));
    }
    return Status::ok;
  };
  const Status status =
      RequestBlocks::move(block, source->blocks, target->blocks, target->slot, accepts, decide);
  switch (status) {
    case Status::ok:
    case Status::waiters_ahead:  // with `needs`
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
