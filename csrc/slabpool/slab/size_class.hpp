// The size that an allocation is rounded up to, and the free list of blocks of that size.
//
// Up to 128 KiB an allocation gets a block of one of 72 *size classes* in a slab: steps of 64 bytes up to 1 KiB, then
// eight steps to a doubling. Larger allocations get a span of their own, rounded up to whole pages.
//
// A *bin* is a free list of a thread cache: one for each size class, then sixteen to a doubling for spans up to 256 MiB.
// Spans of one bin may differ in size, so the thread cache compares sizes before it takes one.
//
// Invariants:
//   bytes <= class_size(bin_of(bytes))   and, above 64 bytes, the rest is at most 1/8 of it
//   a < b  =>  bin_of(a) <= bin_of(b)
//   c < kSlabClasses  =>  bin_of(class_size(c)) = c
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "slabpool/base/assert.hpp"
#include "slabpool/memory/memory_resource.hpp"

namespace slabpool {

inline constexpr std::size_t kMaxSlabBlock = std::size_t{128} << 10;
inline constexpr std::size_t kMaxBinned = std::size_t{256} << 20;
inline constexpr unsigned kSlabClasses = 16 + 7 * 8;
inline constexpr unsigned kBins = kSlabClasses + 11 * 16;

// Bin of `bytes`, 1 <= bytes <= kMaxBinned. Below kSlabClasses it is also the size class.
constexpr unsigned bin_of(std::size_t bytes) noexcept {
  SLABPOOL_ASSERT(bytes != 0 && bytes <= kMaxBinned, "sizes from 1 to kMaxBinned have a bin", bytes);
  if (bytes <= 1024) return static_cast<unsigned>((bytes + 63) / 64) - 1;
  const auto top = static_cast<unsigned>(std::bit_width(bytes - 1)) - 1;  // bytes in (2^top, 2^(top+1)]
  if (bytes <= kMaxSlabBlock) {
    return 16 + (top - 10) * 8 + static_cast<unsigned>((bytes - 1) >> (top - 3)) - 8;
  }
  return kSlabClasses + (top - 17) * 16 + static_cast<unsigned>((bytes - 1) >> (top - 4)) - 16;
}

// The same for up to kMaxSlabBlock, from a table: a load in place of ten instructions.
struct SlabBins {
  std::uint8_t at[kMaxSlabBlock / 64]{};
  constexpr SlabBins() {
    for (std::size_t i = 0; i < kMaxSlabBlock / 64; ++i)
      at[i] = static_cast<std::uint8_t>(bin_of((i + 1) * 64));
  }
};
inline constexpr SlabBins kSlabBins{};
inline unsigned slab_bin_of(std::size_t bytes) noexcept { return kSlabBins.at[(bytes - 1) / 64]; }

// The same by pages, for a span of up to kMaxTabled bytes.
inline constexpr std::size_t kMaxTabled = std::size_t{16} << 20;
struct SpanBins {
  std::uint8_t at[kMaxTabled / kPageSize]{};
  constexpr SpanBins() {
    for (std::size_t i = kMaxSlabBlock / kPageSize; i < kMaxTabled / kPageSize; ++i)
      at[i] = static_cast<std::uint8_t>(bin_of((i + 1) * kPageSize));
  }
};
inline constexpr SpanBins kSpanBins{};
static_assert(kBins <= 256);
inline unsigned span_bin_of(std::size_t bytes) noexcept { return kSpanBins.at[(bytes - 1) / kPageSize]; }

// Size in bytes of a block of a slab's size class.
constexpr std::size_t class_size(unsigned size_class) noexcept {
  SLABPOOL_ASSERT(size_class < kSlabClasses, "a size class is below kSlabClasses", size_class);
  if (size_class < 16) return (size_class + std::size_t{1}) * 64;
  const unsigned k = size_class - 16;
  return (std::size_t{9} + k % 8) << (7 + k / 8);
}

constexpr std::size_t pages_for(std::size_t bytes) noexcept {
  return (bytes + kPageSize - 1) >> kPageBits;
}

// Bytes of the pool that a new block for `bytes` occupies. Quotas count these bytes.
constexpr std::size_t block_size_for(std::size_t bytes) noexcept {
  if (bytes <= kMaxSlabBlock) return class_size(bin_of(bytes == 0 ? 1 : bytes));
  return pages_for(bytes) << kPageBits;
}

// Pages of a slab: the fewest that hold at least 16 KiB and eight blocks (four above 16 KiB, where a slab already has 72 KiB
// or more) and leave at most 1/64 of the slab unused at its end.
constexpr std::size_t slab_pages(unsigned size_class) noexcept {
  constexpr std::size_t kLeastBytes = std::size_t{16} << 10;
  const std::size_t size = class_size(size_class);
  const std::size_t least = size > kLeastBytes ? 4 : 8;
  std::size_t pages = pages_for(std::max(size * least, kLeastBytes));
  while ((pages * kPageSize) % size > pages * kPageSize / 64) ++pages;
  return pages;
}

struct SlabShape {
  std::uint32_t pages;
  std::uint32_t blocks;
};

struct SlabShapes {
  SlabShape at[kSlabClasses]{};
  constexpr SlabShapes() {
    for (unsigned c = 0; c < kSlabClasses; ++c) {
      const std::size_t pages = slab_pages(c);
      at[c] = {static_cast<std::uint32_t>(pages),
               static_cast<std::uint32_t>(pages * kPageSize / class_size(c))};
    }
  }
};
inline constexpr SlabShapes kSlabShapes{};

static_assert(bin_of(kMaxSlabBlock) == kSlabClasses - 1 && bin_of(kMaxSlabBlock + 1) == kSlabClasses);
static_assert(bin_of(kMaxBinned) == kBins - 1);
static_assert(class_size(kSlabClasses - 1) == kMaxSlabBlock);
static_assert(class_size(bin_of(1025)) == 1152 && class_size(bin_of(2048)) == 2048);

}  // namespace slabpool
