#include "slabpool/request/record.hpp"

#include "slabpool/base/assert.hpp"

namespace slabpool {

void RequestRecord::reset(const OpenSpec& spec, const RequestRecord* of_parent, std::int64_t now_ns) {
  id.assign(spec.id);  // the one step that may fail
  blocks.reset();
  opened_ns = now_ns;
  lease_ns = of_parent != nullptr && spec.lease_ns == 0 ? of_parent->lease_ns : spec.lease_ns;
  opened_at = spec.where;
  parent = next_sibling = prev_sibling = 0;
  parent_generation = 0;
  host_left.store(false, std::memory_order_relaxed);
  cancelled = false;
  kept = spec.kept;
  is_group = spec.is_group;
  priority = spec.priority;
  group = requests = sessions = 0;
  pins = 0;
  idle_since_ns = now_ns;
  has_budget.store(spec.quota != 0 || spec.reserve != 0 || spec.is_group || spec.group.has_value() ||
                       (of_parent != nullptr && of_parent->has_budget.load(std::memory_order_relaxed)),
                   std::memory_order_relaxed);
  SLABPOOL_ASSERT(!kept || has_budget.load(std::memory_order_relaxed), "what is kept has a budget",
                  slot);
}

}  // namespace slabpool
