#include "slabpool/request/record.hpp"

#include <memory>

#include "slabpool/base/assert.hpp"

namespace slabpool {

void RequestRecord::reset(const OpenSpec& spec, const RequestRecord* above, std::int64_t now_ns) {
  // Often as long as that of the request before, and copying it in place is a third of assign(). The one step that may fail.
  if (spec.id.size() == id.size()) {
    (void)spec.id.copy(id.data(), id.size());
  } else {
    id.assign(spec.id);
  }
  blocks.reset();
  opened_ns = now_ns;
  lease_ns = above != nullptr && spec.lease_ns == 0 ? above->lease_ns : spec.lease_ns;
  opened_at = spec.where;
  has_reserve.store(spec.reserve != 0, std::memory_order_relaxed);
  priority.store(spec.priority, std::memory_order_relaxed);
  parent = next_sibling = prev_sibling = 0;
  parent_generation = 0;
  host_left.store(false, std::memory_order_relaxed);
  kept = spec.kept;
  pins = 0;
  idle_since_ns = now_ns;
  has_budget.store((spec.quota | spec.reserve) != 0 || spec.kept ||
                       (above != nullptr && above->has_budget.load(std::memory_order_relaxed)),
                   std::memory_order_relaxed);
  SLABPOOL_ASSERT(!is_group && group == 0, "a record leaves its group at its end", slot);
}

void RequestRecord::empty() noexcept {
  // Swapped: an assignment may keep the memory.
  std::string().swap(id);
  std::vector<Handle>().swap(pinned);
  std::set<Block*>().swap(lent);
}

void RequestRecord::revive(std::uint32_t own_slot) noexcept {
  std::construct_at(&id);
  std::construct_at(&pinned);
  std::construct_at(&lent);
  slot = own_slot;
}

}  // namespace slabpool
