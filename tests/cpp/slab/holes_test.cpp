// Free pages inside slabs: they serve every size, whatever sizes the pool had before, and refusals of the system change
// nothing that can be seen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "slabpool/slab/depot.hpp"
#include "support/fake_memory.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

constexpr auto kHard = Depot::Effort::hard;
constexpr std::uint64_t kKiB = 1024;

class HolesTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kCapacity = std::uint64_t{8} << 20;

  explicit HolesTest(std::size_t granule = kPageSize)
      : memory(std::size_t{64} << 20, granule), depot(memory, kCapacity, true) {}

  Block* take(std::uint64_t bytes) {
    const Depot::Taken taken = bytes <= kMaxSlabBlock ? depot.take_blocks(bin_of(bytes), 1, kHard)
                                                      : depot.take_span(bytes, 1, kHard);
    return taken.chain;
  }
  void give(Block* block) {
    block->next = nullptr;
    depot.give(block);
  }
  // Blocks that are smaller than a page are taken and given in chains, because the depot verifies all pages after each call.
  std::vector<Block*> fill(std::uint64_t bytes) {
    std::vector<Block*> all;
    for (;;) {
      Block* chain = bytes < kPageSize ? depot.take_blocks(bin_of(bytes), 64, kHard).chain : take(bytes);
      if (chain == nullptr) return all;
      for (Block* block = chain; block != nullptr; block = block->next) {
        write(*block);
        all.push_back(block);
      }
    }
  }
  void give_chain(std::span<Block* const> blocks) {
    Block* chain = nullptr;
    for (Block* block : blocks) {
      block->next = chain;
      chain = block;
    }
    depot.give(chain);
  }
  static unsigned char stamp(const Block& block) {
    return static_cast<unsigned char>(1 + reinterpret_cast<std::uintptr_t>(block.data) / 64 % 255);
  }
  static void write(Block& block) {
    std::memset(block.data, stamp(block), block.bytes);
    block.zero = false;
  }
  static bool intact(const Block& block) {
    return test::all_bytes(block.data, stamp(block), block.bytes);
  }
  // Frees a random `part` of the blocks.
  void free_some(std::vector<Block*>& blocks, double part, unsigned seed) {
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(seed));
    const auto kept = static_cast<std::size_t>(static_cast<double>(blocks.size()) * (1 - part));
    for (std::size_t i = kept; i < blocks.size(); ++i) give(blocks[i]);
    blocks.resize(kept);
  }
  // Bytes of the pages on which none of the blocks lies.
  std::uint64_t free_page_bytes(const std::vector<Block*>& blocks) const {
    std::vector<bool> used(memory.address_space() >> kPageBits);
    for (const Block* block : blocks) {
      const auto first = static_cast<std::uint64_t>(block->data - memory.base());
      for (std::uint64_t page = first >> kPageBits; page < pages_for(first + block->bytes); ++page)
        used[page] = true;
    }
    const auto n = static_cast<std::uint64_t>(std::count(used.begin(), used.end(), true));
    return kCapacity - (n << kPageBits);
  }
  void expect_sound() {
    const char* wrong = depot.verify();
    EXPECT_EQ(wrong, nullptr) << wrong;
    EXPECT_EQ(depot.figures().committed, memory.committed_pages() << kPageBits);
    EXPECT_LE(depot.figures().committed, kCapacity);
  }

  test::FakeMemory memory;
  Depot depot;
};

TEST_F(HolesTest, EveryPairOfSizesIsServedFromFreePages) {
  const std::uint64_t sizes[] = {64,        256,       1536,       3 * kKiB,   4 * kKiB,
                                 4608,      12 * kKiB, 16 * kKiB,  20 * kKiB,  48 * kKiB,
                                 80 * kKiB, 96 * kKiB, 128 * kKiB, 192 * kKiB, 1024 * kKiB};
  for (const std::uint64_t small : sizes) {
    std::vector<Block*> kept = fill(small);
    if (small >= 1536) free_some(kept, 0.75, static_cast<unsigned>(small));
    if (small < 1536) {
      // Whole pages: a run of neighbours is freed.
      std::sort(kept.begin(), kept.end(), [](Block* a, Block* b) { return a->data < b->data; });
      give_chain(std::span(kept).subspan(kept.size() / 4));
      kept.resize(kept.size() / 4);
    }
    for (const std::uint64_t big : sizes) {
      if (big < 4 * kKiB || big == 4608) continue;
      const std::uint64_t free = free_page_bytes(kept);
      std::vector<Block*> got = fill(big);
      EXPECT_GE(static_cast<double>(got.size() * big), 0.95 * static_cast<double>(free / big * big))
          << "of " << small << " bytes three quarters were freed, then tensors of " << big;
      std::uint64_t live = 0;
      for (const auto* all : {&kept, &got})
        for (const Block* block : *all) live += block->bytes;
      if (small % kPageSize == 0 && free % big < free / 20) {
        EXPECT_LE(depot.figures().committed, live + live / 20) << small << ", " << big;
      }
      for (const Block* block : kept) ASSERT_TRUE(intact(*block)) << "bytes in use changed";
      for (Block* block : got) give(block);
    }
    expect_sound();
    give_chain(kept);
  }
  EXPECT_GT(memory.punches, 0);
  (void)depot.trim();
  expect_sound();
  EXPECT_EQ(memory.committed_pages(), 0U);
}

TEST_F(HolesTest, EveryOtherBlockFreedServesALargerOne) {
  for (const std::uint64_t small : {16 * kKiB, 64 * kKiB, 128 * kKiB}) {
    std::vector<Block*> all = fill(small);
    std::sort(all.begin(), all.end(), [](Block* a, Block* b) { return a->data < b->data; });
    std::vector<Block*> kept;
    for (std::size_t i = 0; i < all.size(); ++i) i % 2 == 0 ? give(all[i]) : kept.push_back(all[i]);
    std::vector<Block*> got = fill(192 * kKiB);
    EXPECT_EQ(got.size(), kCapacity / 2 / (192 * kKiB)) << small;
    for (const Block* block : kept) ASSERT_TRUE(intact(*block));
    for (Block* block : kept) give(block);
    for (Block* block : got) give(block);
    expect_sound();
  }
}

TEST_F(HolesTest, ABlockOnAHoleIsZeroAndSaysSo) {
  std::vector<Block*> all = fill(16 * kKiB);
  free_some(all, 0.75, 1);
  Block* large = take(kCapacity / 2);
  ASSERT_NE(large, nullptr);
  write(*large);
  give(large);
  int zero = 0;
  for (int i = 0; i < 300; ++i) {
    Block* block = take(16 * kKiB);
    ASSERT_NE(block, nullptr);
    if (block->zero) {
      ++zero;
      EXPECT_TRUE(test::all_bytes(block->data, 0, block->bytes));
    }
    write(*block);
    all.push_back(block);
  }
  EXPECT_GT(zero, 0);
  for (const Block* block : all) ASSERT_TRUE(intact(*block));
  for (Block* block : all) give(block);
  expect_sound();
}

TEST_F(HolesTest, TrimReturnsTheFreePagesOfSlabsAndTheLastBlockTheRest) {
  std::vector<Block*> all = fill(16 * kKiB);
  free_some(all, 0.75, 2);
  (void)depot.trim();
  EXPECT_EQ(depot.figures().committed, all.size() * 16 * kKiB);
  expect_sound();
  for (Block* block : all) give(block);
  (void)depot.trim();
  EXPECT_EQ(depot.figures().committed, 0U);
  expect_sound();
}

TEST_F(HolesTest, FreeBytesThatMakeNoPageAreFragmented) {
  std::vector<Block*> all = fill(1024);
  std::sort(all.begin(), all.end(), [](Block* a, Block* b) { return a->data < b->data; });
  std::uint64_t pages = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool first = (all[i]->data - memory.base()) % static_cast<std::ptrdiff_t>(kPageSize) == 0;
    pages += first ? 1 : 0;
    if (!first) give(all[i]);
  }
  EXPECT_EQ(depot.fragmented_bytes(), pages * (kPageSize - 1024));
  EXPECT_EQ(take(4 * kKiB), nullptr) << "none of them makes a page";
  for (std::size_t i = 0; i < all.size(); ++i) {
    if ((all[i]->data - memory.base()) % static_cast<std::ptrdiff_t>(kPageSize) == 0) give(all[i]);
  }
  EXPECT_EQ(depot.fragmented_bytes(), 0U);
  EXPECT_NE(take(kCapacity), nullptr);
}

TEST_F(HolesTest, ARequestThatFreePagesCannotServePunchesNone) {
  std::vector<Block*> all = fill(16 * kKiB);
  free_some(all, 0.25, 3);
  (void)depot.trim();
  const int before = memory.punches;
  const std::uint64_t committed = depot.figures().committed;
  EXPECT_EQ(take(kCapacity / 2), nullptr);
  EXPECT_EQ(memory.punches, before);
  EXPECT_EQ(depot.figures().committed, committed);
  for (Block* block : all) give(block);
}

// Every k-th call of the system is refused, one kind at a time and all together.
class RefusedHolesTest : public HolesTest, public testing::WithParamInterface<int> {};

TEST_P(RefusedHolesTest, RefusalsLoseNothing) {
  std::mt19937_64 random(static_cast<std::uint64_t>(GetParam()));
  std::vector<Block*> all;
  int refused = 0;
  for (int step = 0; step < test::rounds(6'000) && !HasFailure(); ++step) {
    const auto maybe = [&](int kind) {
      return GetParam() == kind || GetParam() == 3 ? static_cast<int>(random() % 4) : -1;
    };
    memory.refuse_punches_after = maybe(0);
    memory.refuse_fills_after = maybe(1);
    memory.refuse_commits_after = maybe(2);
    memory.refuse_decommits_after = maybe(2);
    const std::uint64_t size = std::uint64_t{1} << (6 + random() % 15);
    if (Block* block = take(size + random() % size)) {
      if (block->zero) {
        ASSERT_TRUE(test::all_bytes(block->data, 0, block->bytes)) << step;
      }
      write(*block);
      all.push_back(block);
    } else {
      ++refused;
      for (std::size_t n = all.size() / 3; n > 0; --n) {
        const std::size_t i = random() % all.size();
        ASSERT_TRUE(intact(*all[i])) << step;
        give(all[i]);
        all[i] = all.back();
        all.pop_back();
      }
    }
    if (random() % 500 == 0) (void)depot.trim();
    if (random() % 500 == 0) depot.settle(0);
    if (step % 32 == 0) expect_sound();
  }
  EXPECT_GT(refused, 0);
  memory.refuse_punches_after = memory.refuse_fills_after = memory.refuse_commits_after =
      memory.refuse_decommits_after = -1;
  for (Block* block : all) {
    ASSERT_TRUE(intact(*block));
    give(block);
  }
  expect_sound();
  (void)depot.trim();
  (void)depot.trim();
  EXPECT_NE(take(kCapacity), nullptr) << "all of it is usable again";
}

INSTANTIATE_TEST_SUITE_P(Kinds, RefusedHolesTest, testing::Range(0, 4));

// A system with pages of 16 KiB.
class LargePageHolesTest : public HolesTest {
 protected:
  LargePageHolesTest() : HolesTest(16 * kKiB) {}
};

TEST_F(LargePageHolesTest, HolesAreWholePagesOfTheSystem) {
  for (const std::uint64_t small : {16 * kKiB, 48 * kKiB, 64 * kKiB, 128 * kKiB}) {
    std::vector<Block*> kept = fill(small);
    free_some(kept, 0.75, static_cast<unsigned>(small));
    const std::uint64_t free = kCapacity - kept.size() * small;
    std::vector<Block*> got = fill(256 * kKiB);
    EXPECT_GE(static_cast<double>(got.size() * 256 * kKiB),
              0.95 * static_cast<double>(free / (256 * kKiB) * (256 * kKiB)))
        << small;
    for (const Block* block : kept) ASSERT_TRUE(intact(*block));
    for (Block* block : kept) give(block);
    for (Block* block : got) give(block);
    expect_sound();
  }
  EXPECT_GT(memory.punches, 0);
}

// ---- committed memory follows the use down

TEST_F(HolesTest, SettlingReturnsWhatIsNotInUse) {
  std::vector<Block*> all;
  std::mt19937_64 random(4);
  std::uint64_t live = 0;
  while (live < kCapacity * 3 / 4) {
    Block* block = take(2 * kKiB + random() % (254 * kKiB));
    ASSERT_NE(block, nullptr);
    write(*block);
    live += block->bytes;
    all.push_back(block);
  }
  std::shuffle(all.begin(), all.end(), random);
  while (live > kCapacity / 4) {
    live -= all.back()->bytes;
    give(all.back());
    all.pop_back();
  }
  const std::uint64_t before = depot.figures().committed;
  depot.settle(kCapacity);
  EXPECT_EQ(depot.figures().committed, before) << "as much was in use a short while ago";
  depot.settle(0);
  EXPECT_LE(depot.figures().committed, live + live / 16);
  for (const Block* block : all) ASSERT_TRUE(intact(*block));
  expect_sound();
  for (Block* block : all) give(block);
}

}  // namespace
}  // namespace slabpool
