#include "slabpool/request/record.hpp"

#include "slabpool/base/assert.hpp"

namespace slabpool {

void RequestRecord::reset(const OpenSpec& spec, const RequestRecord* of_parent, std::int64_t now_ns) {
  id.assign(spec.id);  // the one step that may fail
  blocks.reset();
  opened_ns = now_ns;
  lease_ns = of_parent != nullptr ? of_parent->lease_ns : spec.lease_ns;
  opened_at = spec.where;
  parent = next_sibling = prev_sibling = 0;
  parent_generation = 0;
  host_left.store(false, std::memory_order_relaxed);
  kept = spec.kept;
  pins = 0;
  idle_since_ns = now_ns;
  has_budget.store(of_parent != nullptr ? of_parent->has_budget.load(std::memory_order_relaxed)
                                        : spec.quota != 0 || spec.reserve != 0,
                   std::memory_order_relaxed);
  SLABPOOL_ASSERT(!kept || has_budget.load(std::memory_order_relaxed), "what is kept has a budget",
                  slot);
}

void RequestRecord::reset_budget(Handle self, const OpenSpec& spec, const RequestRecord* of_parent,
                                 ReserveRef of_reserve) noexcept {
  charged_for = self.generation;
  root = of_parent != nullptr ? of_parent->root : self;
  quota = spec.quota;
  reserve = of_reserve;
  charged = used = 0;
}

}  // namespace slabpool
