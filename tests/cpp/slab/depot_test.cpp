// The depot: blocks cut from slabs and returned, reserved room, soft and hard effort.
#include "slabpool/slab/depot.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

constexpr auto kSoft = Depot::Effort::soft;
constexpr auto kHard = Depot::Effort::hard;

class DepotTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kCapacity = std::uint64_t{8} << 20;

  Block* span(std::uint64_t bytes, std::uint64_t align = 1, Depot::Effort effort = kHard) {
    return depot.take_span(bytes, align, effort).chain;
  }
  Depot::Taken blocks(unsigned size_class, std::uint32_t want, Depot::Effort effort = kHard) {
    return depot.take_blocks(size_class, want, effort);
  }
  static std::vector<Block*> unchain(Block* chain) {
    std::vector<Block*> all;
    for (; chain != nullptr; chain = chain->next) all.push_back(chain);
    return all;
  }
  void give(Block* block) {
    block->next = nullptr;
    depot.give(block);
  }
  void expect_sound() {
    const char* wrong = depot.verify();
    EXPECT_EQ(wrong, nullptr) << wrong;
  }

  test::FakeMemory memory{std::size_t{64} << 20};
  Depot depot{memory, kCapacity, true};
};

TEST_F(DepotTest, BlocksOfEveryClassAreApartAndInsideTheRange) {
  for (unsigned c = 0; c < kSlabClasses; ++c) {
    const Depot::Taken taken = blocks(c, 5);
    ASSERT_NE(taken.chain, nullptr) << c;
    const std::vector<Block*> all = unchain(taken.chain);
    ASSERT_EQ(all.size(), taken.count);
    std::set<std::byte*> starts;
    for (const Block* block : all) {
      EXPECT_EQ(block->bytes, class_size(c));
      EXPECT_EQ(block->bin, c);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data) % 64, 0U);
      EXPECT_GE(block->data, memory.base());
      EXPECT_LE(block->data + block->bytes, memory.base() + memory.address_space());
      std::memset(block->data, 0x5a, block->bytes);  // faults if any of it is not committed
      EXPECT_TRUE(starts.insert(block->data).second);
    }
    std::byte* last = nullptr;
    for (std::byte* start : starts) {
      if (last != nullptr) {
        EXPECT_GE(static_cast<std::size_t>(start - last), class_size(c));
      }
      last = start;
    }
    depot.give(taken.chain);
    expect_sound();
  }
  (void)depot.trim();
  EXPECT_EQ(depot.figures().committed, 0U);
}

TEST_F(DepotTest, ABatchNeverTakesASecondSlab) {
  for (const unsigned c : {3U, 30U, 63U}) {
    const Depot::Taken first = blocks(c, 100'000);
    EXPECT_EQ(first.count, depot.slab_bytes(c) / class_size(c));
    depot.give(first.chain);
  }
}

TEST(DepotShapes, SmallPoolsHaveSmallSlabsThatWasteLittle) {
  for (const std::uint64_t capacity : {std::uint64_t{1} << 14, std::uint64_t{1} << 20,
                                       std::uint64_t{1} << 24, std::uint64_t{1} << 30}) {
    test::FakeMemory memory(std::size_t{2} << 30);
    const Depot depot(memory, capacity, false);
    for (unsigned c = 0; c < kSlabClasses; ++c) {
      const std::uint64_t slab = depot.slab_bytes(c);
      EXPECT_LE(slab, kSlabShapes.at[c].pages * kPageSize);
      EXPECT_GE(slab, class_size(c));
      EXPECT_LE((slab % class_size(c)) * 16, slab) << class_size(c) << " in a slab of " << slab;
    }
    EXPECT_LE(depot.slab_bytes(0), std::max<std::uint64_t>(capacity / 256, kPageSize));
  }
}

TEST_F(DepotTest, FindsTheBlockOfEveryAddressInIt) {
  const Depot::Taken taken = blocks(bin_of(5000), 3);
  Block* large = span(300'000);
  std::vector<Block*> all = unchain(taken.chain);
  all.push_back(large);
  for (const Block* block : all) {
    for (std::uint64_t offset = 0; offset < block->bytes; offset += 37)
      EXPECT_EQ(depot.find(block->data + offset), block);
    EXPECT_EQ(depot.find(block->data + block->bytes - 1), block);
  }
  int other = 0;
  EXPECT_EQ(depot.find(&other), nullptr);
  EXPECT_EQ(depot.find(nullptr), nullptr);
  depot.give(taken.chain);
  give(large);
}

TEST_F(DepotTest, NeverCommitsMoreThanTheCapacity) {
  std::vector<Block*> all;
  while (Block* block = span(kPageSize * 3)) all.push_back(block);
  EXPECT_EQ(all.size(), kCapacity / (3 * kPageSize));
  while (Block* chain = blocks(3, 100).chain) {
    for (Block* block : unchain(chain)) all.push_back(block);
  }
  EXPECT_LE(depot.figures().committed, kCapacity);
  EXPECT_EQ(blocks(0, 1).chain, nullptr);
  expect_sound();
  for (Block* block : all) give(block);
  expect_sound();
  EXPECT_NE(span(kCapacity), nullptr) << "all of it is one run again";
}

TEST_F(DepotTest, ASlabOfOneBlockWhereAWholeOneHasNoRoom) {
  Block* most = span(kCapacity - kPageSize * 5);
  ASSERT_NE(most, nullptr);
  const Depot::Taken small =
      blocks(bin_of(std::size_t{20} << 10), 10);  // of five pages; a whole slab takes twenty
  ASSERT_NE(small.chain, nullptr);
  EXPECT_EQ(small.count, 1U);
  EXPECT_EQ(blocks(0, 1).chain, nullptr);
  depot.give(small.chain);
  give(most);
  expect_sound();
}

TEST_F(DepotTest, SoftEffortCommitsOnlyNearWhatIsInUse) {
  std::vector<Block*> all;
  while (Block* block = span(kPageSize, 1, kSoft)) all.push_back(block);
  EXPECT_LT(depot.figures().committed, kCapacity / 2) << "soft effort gives up early";
  Block* more = span(kPageSize, 1, kHard);
  ASSERT_NE(more, nullptr);
  Block* and_then = span(kPageSize, 1, kSoft);
  EXPECT_NE(and_then, nullptr) << "hard effort makes room for soft effort after it";
  all.insert(all.end(), {more, and_then});
  for (Block* block : all) give(block);
}

TEST_F(DepotTest, ARefusalOfTheSystemIsToldApartAndChangesNothing) {
  memory.refuse_commits_after = 0;
  EXPECT_TRUE(depot.take_span(kPageSize, 1, kHard).system_refused);
  EXPECT_TRUE(depot.take_blocks(5, 1, kHard).system_refused);
  const ReserveRef reserve = depot.open_reserve(1);
  ASSERT_NE(reserve.reserve, nullptr);
  EXPECT_TRUE(depot.take_span(kPageSize, 1, kHard, reserve).system_refused);
  EXPECT_TRUE(depot.take_reserved(reserve, 3, 64).system_refused);
  EXPECT_EQ(depot.reserved_bytes(), kPageSize);
  EXPECT_EQ(depot.figures().committed, 0U);
  expect_sound();
  memory.refuse_commits_after = -1;
  EXPECT_NE(span(kPageSize), nullptr);
  Block* block = depot.take_reserved(reserve, 3, 64).chain;
  ASSERT_NE(block, nullptr);
  block->start(1);
  ASSERT_TRUE(block->drop());
  give(block);
  depot.close_reserve(reserve);
}

TEST_F(DepotTest, FreshBlocksAreZeroAndSaySo) {
  const Depot::Taken taken = blocks(bin_of(9000), 4);
  for (Block* block : unchain(taken.chain)) {
    EXPECT_TRUE(block->zero);
    EXPECT_TRUE(test::all_bytes(block->data, 0, block->bytes));
    std::memset(block->data, 0x5a, block->bytes);
    block->zero = false;
  }
  depot.give(taken.chain);
  (void)depot.trim();
  const Depot::Taken again = blocks(bin_of(9000), 4);
  for (const Block* block : unchain(again.chain)) {
    EXPECT_TRUE(block->zero);
    EXPECT_TRUE(test::all_bytes(block->data, 0, block->bytes)) << "the system had the pages in between";
  }
  depot.give(again.chain);
}

TEST_F(DepotTest, AlignsSpans) {
  for (std::uint64_t align = kPageSize; align <= std::uint64_t{2} << 20; align *= 2) {
    Block* block = span(kPageSize, align);
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data) % align, 0U);
    give(block);
  }
}

TEST_F(DepotTest, OneEmptySlabOfAClassStays) {
  // The blocks of three slabs. Returning all of them leaves one slab, so that the next block needs no new one.
  const unsigned c = bin_of(40'000);
  std::vector<Block*> all;
  for (int i = 0; i < 3; ++i) {
    for (Block* block : unchain(blocks(c, 1000).chain)) all.push_back(block);
  }
  const Block* any = all.front();
  for (Block* block : all) give(block);
  const int commits = memory.commits;
  Block* again = blocks(c, 1).chain;
  EXPECT_EQ(memory.commits, commits);
  EXPECT_EQ(again->bytes, any->bytes);
  give(again);
  expect_sound();
}

TEST_F(DepotTest, TrimGivesEverythingFreeBack) {
  Block* kept = span(kPageSize * 4);
  Block* gone = span(kPageSize * 30);
  depot.give(blocks(20, 8).chain);
  give(gone);
  const std::uint64_t committed = depot.figures().committed;
  const std::uint64_t bytes = depot.trim();
  EXPECT_EQ(depot.figures().committed, kPageSize * 4);
  EXPECT_EQ(committed - bytes, kPageSize * 4);
  EXPECT_EQ(memory.committed_pages(), 4U);
  EXPECT_GE(depot.figures().peak_committed, committed);
  give(kept);
}

TEST_F(DepotTest, AtRandomEveryBlockHasOneOwner) {
  struct Out {
    Block* block;
    unsigned char fill;
  };
  std::mt19937_64 random(7);
  std::vector<Out> out;
  for (int step = 0; step < test::rounds(40'000) && !HasFailure(); ++step) {
    if (random() % 100 < 52) {
      Block* chain = nullptr;
      if (random() % 3 == 0) {
        chain = span(1 + random() % 200'000, std::uint64_t{1} << (random() % 18),
                     random() % 2 == 0 ? kSoft : kHard);
      } else {
        chain = blocks(static_cast<unsigned>(random() % kSlabClasses),
                       1 + static_cast<std::uint32_t>(random() % 4), random() % 2 == 0 ? kSoft : kHard)
                    .chain;
      }
      for (Block* block : unchain(chain)) {
        if (block->zero) {
          ASSERT_TRUE(test::all_bytes(block->data, 0, 64));
          ASSERT_TRUE(test::all_bytes(block->data + block->bytes - 64, 0, 64));
        }
        block->zero = false;
        const auto fill = static_cast<unsigned char>(1 + random() % 255);
        std::memset(block->data, fill, 64);
        std::memset(block->data + block->bytes - 64, fill, 64);
        out.push_back({block, fill});
      }
    }
    for (std::uint64_t n = random() % 3; n > 0 && !out.empty(); --n) {
      const std::size_t i = random() % out.size();
      ASSERT_TRUE(test::all_bytes(out[i].block->data, out[i].fill, 64)) << "two owners";
      ASSERT_TRUE(test::all_bytes(out[i].block->data + out[i].block->bytes - 64, out[i].fill, 64));
      give(out[i].block);
      out[i] = out.back();
      out.pop_back();
    }
    if (random() % 500 == 0) (void)depot.trim();
    if (step % 64 == 0) expect_sound();
    ASSERT_EQ(depot.figures().committed, memory.committed_pages() << kPageBits);
    ASSERT_LE(depot.figures().committed, kCapacity);
  }
  for (const Out& one : out) give(one.block);
  expect_sound();
  (void)depot.trim();
  EXPECT_EQ(memory.committed_pages(), 0U);
}

TEST_F(DepotTest, ThreadsTakeAndGiveAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int i = 0; i < test::rounds(20'000); ++i) {
        Block* chain = random() % 4 == 0
                           ? span(1 + random() % 100'000)
                           : blocks(static_cast<unsigned>(random() % kSlabClasses), 3).chain;
        if (chain == nullptr) continue;
        for (Block* block : unchain(chain)) {
          std::memset(block->data, t + 1, 64);
          if (depot.find(block->data) != block)
            ADD_FAILURE() << "a block that is handed out is not found";
        }
        for (const Block* block : unchain(chain)) {
          if (!test::all_bytes(block->data, static_cast<unsigned char>(t + 1), 64))
            ADD_FAILURE() << "two owners";
        }
        depot.give(chain);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect_sound();
}

// ---- memory that is committed in granules of 2 MiB

class DepotGranuleTest : public DepotTest {
 protected:
  static constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

  std::uint64_t committed() const { return large.figures().committed; }
  Block* take(std::uint64_t bytes, Depot::Effort effort = kHard) {
    Block* block = large.take_span(bytes, 1, effort).chain;
    EXPECT_EQ(large.verify(), nullptr);
    return block;
  }
  void put(Block* block) {
    block->next = nullptr;
    large.give(block);
    EXPECT_EQ(large.verify(), nullptr);
  }

  test::FakeMemory granules{std::size_t{64} << 20, std::size_t{2} << 20};
  Depot large{granules, kCapacity, true};
};

TEST_F(DepotGranuleTest, AllOfTheCapacityCanBeHad) {
  EXPECT_NE(take(1000, kSoft), nullptr) << "a granule is more than the soft limit of a small pool";
  EXPECT_EQ(committed(), 2 * kMiB);
  std::vector<Block*> all;
  for (int i = 0; i < 7; ++i) all.push_back(take(kMiB));
  EXPECT_EQ(std::count(all.begin(), all.end(), nullptr), 0);
  EXPECT_EQ(committed(), kCapacity);
  const Depot::Taken none = large.take_span(kMiB, 1, kHard, {});
  EXPECT_EQ(none.chain, nullptr);
  EXPECT_FALSE(none.system_refused);
  for (Block* block : all) put(block);
  EXPECT_NE(take(6 * kMiB), nullptr);
  EXPECT_EQ(committed(), kCapacity);
}

TEST_F(DepotGranuleTest, GranulesInPartUseDoNotStopOthers) {
  // One small tensor is in each of three granules; the next allocation needs the fourth.
  std::vector<Block*> small;
  std::vector<Block*> fill;
  for (int i = 0; i < 3; ++i) {
    small.push_back(take(64 << 10));
    fill.push_back(take(2 * kMiB - (64 << 10)));
  }
  for (Block* block : fill) put(block);
  EXPECT_NE(take(2 * kMiB), nullptr);
  EXPECT_EQ(take(2 * kMiB), nullptr) << "no granule is free, though 5.8 MiB are";
  EXPECT_NE(take(kMiB), nullptr);
  for (Block* block : small) put(block);
  EXPECT_EQ(large.trim(), 4 * kMiB);
}

}  // namespace
}  // namespace slabpool
