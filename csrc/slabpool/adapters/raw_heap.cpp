#include "slabpool/adapters/raw_heap.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace slabpool {

void* RawHeap::take(std::size_t nbytes, bool zero) noexcept {
  if (!serves()) [[unlikely]] {
    nbytes = std::max<std::size_t>(nbytes, 1);
    return zero ? std::calloc(nbytes, 1) : std::malloc(nbytes);
  }
  Block* block = zero ? nullptr : pool_.allocate_quickly(nbytes);
  if (block == nullptr) {
    AllocateSpec spec;
    spec.nbytes = nbytes;
    spec.zero = zero;
    const Allocation made = pool_.allocate(spec);
    block = made.block;
    if (block == nullptr) [[unlikely]] {
      if (no_room(made.status) || made.status == Status::system_refused)
        pool_.note_exhausted({}, nbytes);
      return nullptr;
    }
  }
  // Relaxed: for reports.
  block->tag.store(kRawTag, std::memory_order_relaxed);
  return block->data;
}

void* RawHeap::allocate_zeroed(std::size_t count, std::size_t size) noexcept {
  std::size_t nbytes = 0;
  if (__builtin_mul_overflow(count, size, &nbytes)) return nullptr;
  return take(nbytes, true);
}

void RawHeap::release(void* address) noexcept {
  if (address == nullptr) return;
  Block* block = pool_.find_held(address);
  if (block == nullptr) [[unlikely]]
    return std::free(address);
  if (!pool_.usable_here()) [[unlikely]]
    return;  // in a fork's child: the block is the parent's
  block->tag.store(0, std::memory_order_relaxed);
  pool_.drop_view(*block);
}

void* RawHeap::resize(void* address, std::size_t nbytes) noexcept {
  if (address == nullptr) return take(nbytes, false);
  const Block* block = pool_.find_held(address);
  // Memory of the system stays there.
  if (block == nullptr) return std::realloc(address, std::max<std::size_t>(nbytes, 1));
  const std::uint64_t room = block->bytes;
  // In place unless a block of half the size or less would do. Never where the block's end is guarded, because the guard
  // was set for the old size.
  const bool fits = nbytes <= room && (nbytes > room / 2 || room <= kDefaultAlign);
  if (fits && serves() && !pool_.guards_ends()) return address;
  void* moved = take(nbytes, false);
  if (moved == nullptr) return nullptr;
  // The size asked for is not known. Copying the rest of the block too is harmless.
  std::memcpy(moved, address, std::min<std::uint64_t>(room, nbytes));
  release(address);
  return moved;
}

}  // namespace slabpool
