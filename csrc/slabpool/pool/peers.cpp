// Devices in other processes: handing them the pool's files, letting them go. Their acks: polled_acks.cpp.
#include <cerrno>

#include "slabpool/pool/pool.hpp"

namespace slabpool {

bool Pool::attach_peer(std::uint32_t device, PeerFiles& files) noexcept {
  if (!usable_here() || closed() || shared_ == nullptr) {
    errno = ESHUTDOWN;
    return false;
  }
  return shared_->attach(device, files);
}

std::uint64_t Pool::detach_peer(std::uint32_t device) noexcept {
  if (!usable_here()) return 0;
  collect_acks();  // those it made while it lived
  shared_->detach(device);
  return device_lost(device);
}

void Pool::answer_bell() noexcept {
  if (!usable_here()) return;
  shared_->silence();
  collect_acks();
}

Status Pool::refer(Handle handle, const void* data, std::uint64_t nbytes, std::uint64_t& offset,
                   std::uint64_t& seal) noexcept {
  if (!usable_here()) return Status::forked;
  offset = 0;
  if (nbytes != 0) {
    // The caller has a view of what it asks for, so the block stays what it is. It may grow meanwhile, and move
    // to a session: what this request pins is there for its devices too, under its own seal.
    const Block* block = depot_.find(data);
    if (block == nullptr) return Status::invalid_argument;
    std::uint64_t bytes = 0;
    for (bool moved = true; moved;) {
      const std::uint32_t owner = block->request.load(std::memory_order_relaxed);
      if (owner == 0 || (owner != handle.slot + 1 && !table_.pins(handle, owner - 1)))
        return Status::invalid_argument;
      const std::lock_guard lock(table_.record(owner - 1)->lock);
      moved = block->request.load(std::memory_order_relaxed) != owner;
      bytes = block->bytes;
    }
    const auto* first = static_cast<const std::byte*>(data);
    if (first < block->data || nbytes > bytes || first + nbytes > block->data + bytes) {
      return Status::invalid_argument;
    }
    offset = static_cast<std::uint64_t>(first - memory_->base());
  }
  // A block of a request before this one in the slot is no block of this one, but while it is retained
  // the slot stays that request's: it is enough that this one is not over.
  if (table_.is_over(handle)) return Status::request_closed;
  seal = table_.seal(handle, offset, nbytes);
  return Status::ok;
}

}  // namespace slabpool
