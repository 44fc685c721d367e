// The set of first pages: floor() across words and levels.
#include "slabpool/slab/page_bits.hpp"

#include <gtest/gtest.h>

#include <iterator>
#include <random>
#include <set>

#include "support/scale.hpp"

namespace slabpool {
namespace {

TEST(PageBits, FindsTheLargestUpToAPage) {
  PageBits bits(1 << 20);
  ASSERT_TRUE(bits.open(0, 4097));
  ASSERT_TRUE(bits.open(500'000, 500'001));
  for (const std::uint64_t page : {0U, 63U, 64U, 4095U, 4096U, 500'000U}) bits.set(page);
  EXPECT_EQ(bits.floor(0), 0U);
  EXPECT_EQ(bits.floor(62), 0U);
  EXPECT_EQ(bits.floor(63), 63U);
  EXPECT_EQ(bits.floor(4094), 64U);
  EXPECT_EQ(bits.floor(4095), 4095U);
  EXPECT_EQ(bits.floor(499'999), 4096U);
  EXPECT_EQ(bits.floor((1 << 20) - 1), 500'000U);  // of pages that are not open too
  bits.clear(4096);
  bits.clear(4095);
  EXPECT_EQ(bits.floor(499'999), 64U);
}

TEST(PageBits, AtRandomAsASortedSet) {
  constexpr std::uint64_t kPages = 300'000;
  PageBits bits(kPages);
  ASSERT_TRUE(bits.open(0, kPages));
  std::set<std::uint64_t> known{0};
  bits.set(0);
  std::mt19937_64 random(1);
  for (int step = 0; step < test::rounds(200'000) && !HasFailure(); ++step) {
    // Members close to each other and far apart.
    const std::uint64_t page = random() % 3 == 0 ? random() % 200 : random() % kPages;
    if (random() % 2 == 0) {
      if (known.insert(page).second) bits.set(page);
    } else if (const auto member = known.lower_bound(std::max<std::uint64_t>(page, 1));
               member != known.end()) {
      bits.clear(*member);
      known.erase(member);
    }
    const std::uint64_t asked = random() % kPages;
    EXPECT_EQ(bits.floor(asked), *std::prev(known.upper_bound(asked)));
  }
}

}  // namespace
}  // namespace slabpool
