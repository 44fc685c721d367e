// The records of the blocks of a slab: an array for each slab, of one size for all slabs of a class.
//
// An array returns to arrays_ when its slab is freed, and its pages go back to the system by trim(). A block in such pages
// that is made again gets a serial above all that there were, so that a stale pointer does not find its allocation in it.
#include <algorithm>

#include "slabpool/slab/depot.hpp"

namespace slabpool {

void Depot::ready_array(unsigned size_class) {
  if (arrays_[size_class] != nullptr) return;
  // Sized for a whole slab even if this slab will be smaller.
  auto* blocks = static_cast<Block*>(chunks_.make(kinds_[size_class], array_bytes(size_class)));
  SLABPOOL_ASSERT(blocks->next == nullptr, "a new array is in no list", size_class);
  arrays_[size_class] = blocks;
  ++arrays_spare_[size_class];
}

void Depot::close_arrays() noexcept {
  std::uint32_t highest = first_serial_;
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    const std::uint32_t count = shapes_[c].blocks;
    arrays_spare_[c] -=
        chunks_.close_spare(arrays_[c], kinds_[c], arrays_spare_[c], 0, [&](const Block& first) {
          bool guarded = false;
          for (const Block* block = &first; block != &first + count; ++block) {
            highest = std::max(highest, block->serial());
            guarded = guarded || block->debug != nullptr;
          }
          return !guarded;  // the guard counts on finding what it keeps for a block
        });
  }
  first_serial_ = highest;
}

}  // namespace slabpool
