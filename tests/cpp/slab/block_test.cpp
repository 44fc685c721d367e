// A block's holds: exactly one thread sees the last hold go, and the serial tells allocations apart.
#include "slabpool/slab/block.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "support/meeting.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

std::uint32_t holds(const Block& block) { return Block::holds(block.state.load()); }

TEST(Block, TheLastToLetGoIsToldSo) {
  Block block;
  block.start(2);
  block.hold();
  EXPECT_EQ(holds(block), 3U);
  EXPECT_FALSE(block.drop());
  EXPECT_FALSE(block.drop_private());
  EXPECT_TRUE(block.drop_private());
  EXPECT_EQ(holds(block), 0U);
}

TEST(Block, OnlyWhoHoldsItAloneCanLetGoOnThatCondition) {
  Block block;
  block.start(Block::kRequest | Block::kView);
  const std::uint64_t before = block.state.load();
  EXPECT_FALSE(block.let_go_if_alone());
  EXPECT_EQ(block.state.load(), before);
  EXPECT_TRUE(block.drop_with_request());
  EXPECT_TRUE(block.let_go_if_alone());
  EXPECT_EQ(holds(block), 0U);
}

TEST(Block, ViewsAreCountedApartFromTheRequest) {
  Block block;
  block.start(Block::kRequest | Block::kView);
  EXPECT_TRUE(block.hold_with_request());
  EXPECT_EQ(Block::views(block.state.load()), 2U);
  EXPECT_EQ(block.let_go(), 2U);
  const std::uint64_t before = block.state.load();
  EXPECT_FALSE(block.hold_with_request());
  EXPECT_FALSE(block.drop_with_request());
  EXPECT_EQ(block.state.load(), before) << "without a request these return false and change nothing";
  EXPECT_FALSE(block.drop());
  EXPECT_TRUE(block.drop());
}

TEST(Block, ASerialIsOfOneAllocation) {
  Block block;
  block.start(Block::kRequest);
  const std::uint32_t first = block.serial();
  EXPECT_TRUE(block.hold_if(first));
  EXPECT_EQ(block.let_go(), 1U);
  EXPECT_FALSE(block.hold_if(first)) << "its request has released it; a remaining view is no reason";
  EXPECT_TRUE(block.drop());
  EXPECT_FALSE(block.hold_if(first)) << "it is free";
  block.start(Block::kRequest);
  EXPECT_NE(block.serial(), first);
  EXPECT_FALSE(block.hold_if(first)) << "it is another allocation";
  EXPECT_TRUE(block.hold_if(block.serial()));
}

TEST(Block, AnAllocationThatWasGivenUpLeavesNoHolds) {
  Block block;
  block.request = 7;
  block.next = &block;
  block.start(Block::kRequest | Block::kView);
  const std::uint32_t serial = block.serial();
  block.abandon();
  EXPECT_EQ(holds(block), 0U);
  EXPECT_EQ(block.request.load(), 0U);
  EXPECT_EQ(block.next, nullptr);
  EXPECT_FALSE(block.hold_if(serial));
  block.start(1);
  EXPECT_NE(block.serial(), serial);
}

// The request releases the block while views come and go: exactly one release is the last.
TEST(Block, OneIsLastHoweverTheyRace) {
  Block block;
  std::atomic<int> last{0};
  int wrong = 0;
  std::uint32_t serial = 0;
  bool first = true;
  constexpr int kThreads = 3;
  test::Meeting start(kThreads, [&] {
    if (!first && (last.load() != 1 || holds(block) != 0)) ++wrong;
    first = false;
    last.store(0);
    block.start(Block::kRequest);
    serial = block.serial();
  });
  const int total = test::rounds(10'000);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int round = 0; round < total; ++round) {
        start.arrive();
        if (t == 0) {
          test::dawdle(random, 8);
          if (block.let_go_if_alone() || block.let_go() == 0) ++last;
          continue;
        }
        // Bounded, because two threads that take turns might keep the block alive for ever.
        for (int i = 0; i < 40 && block.hold_if(serial); ++i) {
          if (!block.drop_with_request() && block.drop()) ++last;
        }
      }
      start.arrive();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace slabpool
