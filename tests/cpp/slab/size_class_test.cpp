// Size classes: every size fits in its block, rounding wastes little, and larger sizes never get smaller bins.
#include "slabpool/slab/size_class.hpp"

#include <gtest/gtest.h>

#include <random>

namespace slabpool {
namespace {

// Rounding up wastes at most an eighth of the requested size.
bool wastes_an_eighth_at_most(std::size_t bytes, std::size_t block) {
  return (block - bytes) * 8 <= bytes;
}

TEST(SizeClass, EverySizeUpToAMegabyteFitsAndWastesLittle) {
  for (std::size_t bytes = 1; bytes <= std::size_t{1} << 20; ++bytes) {
    const std::size_t block = block_size_for(bytes);
    ASSERT_GE(block, bytes);
    if (bytes > 1024) {
      ASSERT_TRUE(wastes_an_eighth_at_most(bytes, block)) << bytes << " in " << block;
    } else {
      ASSERT_LT(block - bytes, 64U) << bytes;
    }
  }
}

TEST(SizeClass, LargeSizesWasteLittle) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 200'000; ++i) {
    const auto bits = static_cast<unsigned>(random() % 22);
    const std::size_t bytes = (std::size_t{1} << 20 << bits) + random() % (std::size_t{1} << 20 << bits);
    ASSERT_TRUE(wastes_an_eighth_at_most(bytes, block_size_for(bytes))) << bytes;
  }
}

TEST(SizeClass, NothingStillGetsABlock) { EXPECT_EQ(block_size_for(0), class_size(0)); }

TEST(SizeClass, ClassesGrowStrictlyAndAreMultiplesOfALine) {
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    EXPECT_EQ(class_size(c) % 64, 0U) << c;
    if (c > 0) {
      EXPECT_GT(class_size(c), class_size(c - 1)) << c;
    }
    EXPECT_EQ(bin_of(class_size(c)), c);
    EXPECT_EQ(bin_of(class_size(c) + 1), c + 1);
  }
}

TEST(SizeClass, EverySizeIsInTheLeastClassThatHoldsIt) {
  for (std::size_t bytes = 1; bytes <= kMaxSlabBlock; ++bytes) {
    const unsigned c = bin_of(bytes);
    ASSERT_LT(c, kSlabClasses);
    ASSERT_GE(class_size(c), bytes);
    if (c > 0) {
      ASSERT_LT(class_size(c - 1), bytes);
    }
  }
}

TEST(SizeClass, BinsOfSpansAreMonotonicAndNarrow) {
  unsigned last = kSlabClasses;
  std::size_t first_of_bin = kMaxSlabBlock + 1;
  for (std::size_t bytes = kMaxSlabBlock + kPageSize; bytes <= kMaxBinned; bytes += kPageSize) {
    const unsigned bin = bin_of(bytes);
    ASSERT_LT(bin, kBins) << bytes;
    ASSERT_GE(bin, last) << bytes;
    if (bin != last) {
      ASSERT_GT(bin, last);
      first_of_bin = bytes;
    }
    // The sizes in a bin differ by at most 1/16, so a span of the next bin wastes at most 1/8.
    ASSERT_LE((bytes - first_of_bin) * 16, first_of_bin) << bytes;
    last = bin;
  }
  EXPECT_EQ(bin_of(kMaxBinned), kBins - 1);
}

TEST(SizeClass, SlabsHoldSeveralBlocksAndWasteLittleAtTheirEnd) {
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    const SlabShape shape = kSlabShapes.at[c];
    const std::size_t bytes = shape.pages * kPageSize;
    const std::size_t used = shape.blocks * class_size(c);
    EXPECT_GE(shape.blocks, class_size(c) > (std::size_t{16} << 10) ? 4U : 8U) << c;
    EXPECT_LE(used, bytes) << c;
    EXPECT_LE((bytes - used) * 64, bytes) << c;
  }
}

}  // namespace
}  // namespace slabpool
