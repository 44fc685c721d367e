// Tensors that change requests: see request/adopt.cpp.
#include <new>

#include "slabpool/pool/pool.hpp"

namespace slabpool {

Status Pool::adopt(Block& block, Handle from, Handle to, Adopted& adopted) noexcept {
  adopted = Adopted::not_its;
  if (!usable_here()) return Status::forked;
  collect_acks();
  // Relaxed: the thread that ends `from` takes the lock under which the block moves before it reads the flag.
  slow_path_flags_.fetch_or(kLent, std::memory_order_relaxed);
  try {
    adopted = table_.adopt(block, from, to);
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
  for (Block* block : claimed.lent) drop_view(*block);
  claimed.lent.clear();
}

}  // namespace slabpool
