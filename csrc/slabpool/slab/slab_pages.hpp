// The pages of one slab: how many blocks in use lie on each, and which are holes.
//
// A block is in use here from the time the depot hands it out until the depot has it back, also while a thread cache
// has it. A page is free while no block in use lies on it. The depot's mutex guards all of it.
//
// Invariants, for each page:
//   a hole is free;   solid_free() = pages that are free and no holes
#pragma once

#include <bit>
#include <cstdint>

#include "slabpool/base/assert.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

struct SlabPages {
  static constexpr std::uint32_t kMost = 128;  // pages of the largest slab

  std::uint64_t holes[kMost / 64] = {};
  std::uint8_t in_use[kMost] = {};  // blocks in use that lie on the page, wholly or in part

  bool is_hole(std::uint32_t page) const noexcept { return (holes[page / 64] >> (page % 64) & 1) != 0; }
  bool is_solid_free(std::uint32_t page) const noexcept { return in_use[page] == 0 && !is_hole(page); }
  void set_holes(std::uint32_t first, std::uint32_t end, bool hole) noexcept {
    for (std::uint32_t page = first; page < end; ++page) {
      SLABPOOL_ASSERT(is_hole(page) != hole && in_use[page] == 0, "only a free page becomes a hole", page,
                      in_use[page]);
      holes[page / 64] ^= std::uint64_t{1} << (page % 64);
    }
  }

  // The pages of a slab that bytes [offset, offset + bytes) of it lie on.
  struct Run {
    std::uint32_t first;
    std::uint32_t end;
  };
  static constexpr Run run(std::uint64_t offset, std::uint64_t bytes) noexcept {
    return {static_cast<std::uint32_t>(offset >> kPageBits),
            static_cast<std::uint32_t>(pages_for(offset + bytes))};
  }
  bool has_hole(Run run) const noexcept {
    for (std::uint32_t page = run.first; page < run.end; ++page) {
      if (is_hole(page)) return true;
    }
    return false;
  }
  // Returns how many of the pages were free before.
  std::uint32_t take(Run run) noexcept {
    std::uint32_t were_free = 0;
    for (std::uint32_t page = run.first; page < run.end; ++page) {
      SLABPOOL_ASSERT(!is_hole(page) && in_use[page] != 0xff, "a block in use lies on no hole", page);
      were_free += in_use[page]++ == 0 ? 1 : 0;
    }
    return were_free;
  }
  // Returns how many of the pages are free now.
  std::uint32_t give(Run run) noexcept {
    std::uint32_t are_free = 0;
    for (std::uint32_t page = run.first; page < run.end; ++page) {
      SLABPOOL_ASSERT(!is_hole(page) && in_use[page] != 0, "a block returns once", page);
      are_free += --in_use[page] == 0 ? 1 : 0;
    }
    return are_free;
  }
};

constexpr bool slabs_fit_in_slab_pages() noexcept {
  for (const SlabShape& shape : kSlabShapes.at) {
    if (shape.pages > SlabPages::kMost) return false;
  }
  return true;
}
static_assert(slabs_fit_in_slab_pages());

}  // namespace slabpool
