// Tensors that change requests: see request/adopt.cpp.
#include <new>

#include "slabpool/pool/pool.hpp"

namespace slabpool {

// As an allocation asks the queue: only those quotas that the move takes something of.
Status Pool::asks_quotas(const LevelNeeds& needs, const RequestRecord& record, Handle holder) noexcept {
  return passes_quotas(needs, {holder.slot, holder.generation}, nullptr, priority_of(&record))
             ? Status::ok
             : Status::waiters_ahead;
}

Status Pool::adopt(Block& block, Handle from, Handle to, Adopted& adopted, LevelNeed& refused) noexcept {
  adopted = Adopted::not_its;
  if (!usable_here()) return Status::forked;
  collect_acks();
  // Relaxed: the thread that ends `from` takes the lock under which the block moves before it reads the flag.
  slow_path_flags_.fetch_or(kLent, std::memory_order_relaxed);
  try {
    if (queue_.has_waiters()) {
      LevelNeeds needs;
      adopted = table_.adopt(block, from, to, &needs, refused);
      if (adopted != Adopted::ok) return Status::ok;
      if (asks_quotas(needs, *table_.record(to.slot), to) == Status::waiters_ahead) {
        adopted = Adopted::not_its;
        return Status::waiters_ahead;
      }
    }
    adopted = table_.adopt(block, from, to, nullptr, refused);
  } catch (const std::bad_alloc&) {
    return Status::system_refused;
  }
  if (adopted != Adopted::ok) return Status::ok;
  table_.note_grown(*table_.record(to.slot));
  log(EventKind::adopt, to.generation, kNoDevice, block.bytes);
  if (queue_.any()) [[unlikely]]
    notify_left();
  return Status::ok;
}

void Pool::return_lent(RequestRecord& claimed) noexcept {
  if (claimed.lent.empty()) return;
  for (Block* block : claimed.lent) drop_view(*block);
  claimed.lent.clear();
}

}  // namespace slabpool
