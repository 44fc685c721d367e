// Devices in other processes: handing them the pool's files, letting them go, and references to bytes.
#include "slabpool/shared/owner.hpp"

#include <cerrno>

#include "slabpool/acks/polled_acks.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

std::uint64_t Pool::shared_id() const noexcept { return shared_->pool_id(); }

int Pool::writable_data() const noexcept { return shared_->writable_data(); }

void Pool::dismiss_peers() noexcept { shared_->close(); }

int Pool::bell() const noexcept { return shared_ != nullptr ? shared_->bell() : -1; }

bool Pool::attach_peer(std::uint32_t device, PeerFiles& files, Error& error) noexcept {
  if (!usable_here() || closed() || shared_ == nullptr) {
    error.status = !usable_here() ? Status::forked : Status::pool_closed;
    error.system_errno = ESHUTDOWN;
    return false;
  }
  if (!shared_->attach(device, files, error)) return false;
  devices_.hold(device);
  return true;
}

std::uint64_t Pool::detach_peer(std::uint32_t device) noexcept {
  if (!usable_here()) return 0;
  collect_acks();  // those it posted while it lived
  const bool attached = shared_->detach(device);
  const std::uint64_t lost = device_lost(device);
  if (attached) devices_.drop(device);
  if (closed()) (void)trim();  // no later call will do it
  return lost;
}

bool Pool::peer_holds(std::uint32_t device) noexcept {
  if (!usable_here()) return false;
  collect_acks();
  return table_.holds_any(device_bit(device));
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
    // The caller has a view of the bytes, so they stay allocated. Their block may grow meanwhile, or shrink, and move to a session: a
    // block that this request pins is there for its devices too, under this request's seal.
    const Block* block = depot_.find(data);
    if (block == nullptr) return Status::invalid_argument;
    std::span<std::byte> bytes;
    std::uint32_t owner = 0;
    do {
      owner = block->request.load(std::memory_order_relaxed);
      if (owner == 0 || (owner != handle.slot + 1 && !table_.pins(handle, owner - 1)))
        return Status::invalid_argument;
    } while (!table_.record(owner - 1)->blocks.bytes_of(*block, owner - 1, bytes));
    const auto* first = static_cast<const std::byte*>(data);
    if (first < bytes.data() || nbytes > bytes.size() || first + nbytes > bytes.data() + bytes.size())
      return Status::invalid_argument;
    offset = static_cast<std::uint64_t>(first - memory_->base());
  }
  // A block of an earlier request in the slot is no block of this one; but while such a block is retained, the slot stays
  // that request's, so it is enough that this request is not over.
  if (table_.is_over(handle)) return Status::request_closed;
  seal = table_.seal(handle, offset, nbytes);
  return Status::ok;
}

}  // namespace slabpool
