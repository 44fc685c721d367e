// RequestBlocks alone: attaching, moving, releasing with and without views, and the count that keeps a slot.
#include "slabpool/request/blocks.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

namespace slabpool {
namespace {

class RequestBlocksTest : public testing::Test {
 protected:
  static constexpr std::uint32_t kSlot = 3;

  RequestBlocksTest() {
    blocks.reset();
    for (Block& block : all) {
      block.bytes = 100;
      block.request.store(kSlot + 1);
    }
  }
  Status attach(Block& block, bool viewed = false) {
    block.start(Block::kRequest | (viewed ? Block::kView : 0));
    return blocks.attach(block, [] { return true; });
  }
  static std::uint32_t views(const RequestBlocks& of) {
    RequestBlocks::ViewCount count(of);
    while (count.next()) {
    }
    return count.views();
  }
  static int length(const Block* chain) {
    int count = 0;
    for (; chain != nullptr; chain = chain->next) ++count;
    return count;
  }

  std::array<Block, 4> all;
  std::atomic<std::uint64_t> retained{0};
  RequestBlocks blocks;
};

TEST_F(RequestBlocksTest, ARequestThatAcceptsNothingChangesNothing) {
  all[0].start(Block::kRequest);
  EXPECT_EQ(blocks.attach(all[0], [] { return false; }), Status::request_closed);
  EXPECT_EQ(blocks.bytes(), 0U);
  ASSERT_EQ(attach(all[1]), Status::ok);
  EXPECT_FALSE(blocks.detach(all[1], [] { return false; }));
  EXPECT_FALSE(blocks.detach(all[2], [] { return true; })) << "it is not attached";
  EXPECT_EQ(blocks.bytes(), 100U);
  EXPECT_TRUE(blocks.detach(all[1], [] { return true; }));
  EXPECT_EQ(blocks.bytes(), 0U);
}

TEST_F(RequestBlocksTest, BlocksWithoutViewsAreReleasedAndTheOthersRetained) {
  ASSERT_EQ(attach(all[0]), Status::ok);
  ASSERT_EQ(attach(all[1], true), Status::ok);
  ASSERT_EQ(attach(all[2]), Status::ok);
  EXPECT_EQ(views(blocks), 1U);
  const RequestBlocks::Released back = blocks.release(retained);
  EXPECT_EQ(length(back.chain), 2);
  EXPECT_EQ(back.freed, 200U);
  EXPECT_EQ(back.retained, 100U);
  EXPECT_EQ(retained.load(), 100U);
  EXPECT_EQ(blocks.bytes(), 100U);
  EXPECT_EQ(views(blocks), 1U);
  EXPECT_FALSE(blocks.retire()) << "a retained block keeps the slot";
  blocks.retain_view();
  all[1].hold();
  EXPECT_EQ(views(blocks), 2U);
  EXPECT_EQ(blocks.drop_retained(all[1]), 0U);
  EXPECT_EQ(views(blocks), 1U);
  const std::uint64_t dropped = blocks.drop_retained(all[1]);
  ASSERT_NE(dropped, 0U);
  EXPECT_EQ(blocks.bytes(), 0U);
  EXPECT_TRUE(blocks.returned_retained(dropped));
  EXPECT_EQ(views(blocks), 0U);
}

TEST_F(RequestBlocksTest, WithoutRetainedBlocksTheSlotIsFreeWhenTheRequestIsRetired) {
  ASSERT_EQ(attach(all[0]), Status::ok);
  EXPECT_EQ(blocks.release(retained).freed, 100U);
  EXPECT_TRUE(blocks.retire());
  blocks.reset();
  EXPECT_EQ(blocks.bytes(), 0U);
}

TEST_F(RequestBlocksTest, ABlockGrowsOnlyIfItIsAcceptedAndCommitted) {
  ASSERT_EQ(attach(all[0]), Status::ok);
  const auto yes = [] { return true; };
  EXPECT_EQ(blocks.grow(
                all[0], 50, [] { return false; }, [] { return Status::ok; }),
            Status::request_closed);
  EXPECT_EQ(blocks.grow(all[0], 50, yes, [] { return Status::exhausted; }), Status::exhausted);
  EXPECT_EQ(all[0].bytes, 100U);
  EXPECT_EQ(blocks.grow(all[0], 50, yes, [] { return Status::ok; }), Status::ok);
  EXPECT_EQ(all[0].bytes, 150U);
  EXPECT_EQ(blocks.bytes(), 150U);
  std::span<std::byte> bytes;
  EXPECT_TRUE(blocks.bytes_of(all[0], kSlot, bytes));
  EXPECT_EQ(bytes.data(), all[0].data);
  EXPECT_EQ(bytes.size(), 150U);
  EXPECT_FALSE(blocks.bytes_of(all[0], kSlot + 1, bytes));
}

TEST_F(RequestBlocksTest, ABlockShrinksOnlyIfItIsAccepted) {
  ASSERT_EQ(attach(all[0]), Status::ok);
  const auto forty = [] { return std::uint64_t{40}; };
  EXPECT_EQ(blocks.shrink(
                all[0], [] { return false; }, forty),
            0U);
  EXPECT_EQ(blocks.bytes(), 100U);
  EXPECT_EQ(blocks.shrink(
                all[0], [] { return true; }, forty),
            40U);
  EXPECT_EQ(all[0].bytes, 60U);
  EXPECT_EQ(blocks.bytes(), 60U);
}

TEST_F(RequestBlocksTest, ABlockMovesWithItsBytes) {
  RequestBlocks other;
  other.reset();
  const auto yes = [] { return true; };
  const auto ok = [] { return Status::ok; };
  ASSERT_EQ(attach(all[0]), Status::ok);
  ASSERT_EQ(attach(all[1], true), Status::ok);
  EXPECT_EQ(RequestBlocks::move(
                all[1], blocks, other, 7, [] { return false; }, ok),
            Status::request_closed);
  EXPECT_EQ(RequestBlocks::move(all[2], blocks, other, 7, yes, ok), Status::invalid_argument);
  EXPECT_EQ(RequestBlocks::move(all[1], blocks, other, 7, yes, [] { return Status::quota_exceeded; }),
            Status::quota_exceeded);
  EXPECT_EQ(blocks.bytes(), 200U);
  EXPECT_EQ(RequestBlocks::move(all[1], blocks, other, 7, yes, ok), Status::ok);
  EXPECT_EQ(blocks.bytes(), 100U);
  EXPECT_EQ(other.bytes(), 100U);
  EXPECT_EQ(views(blocks), 0U);
  EXPECT_EQ(views(other), 1U);
  EXPECT_EQ(all[1].request.load(), 8U);
  EXPECT_EQ(length(blocks.release(retained).chain), 1);
}

// ---- counting views in parts

class ViewCountTest : public testing::Test {
 protected:
  static constexpr std::uint32_t kAtOnce = RequestBlocks::ViewCount::kBlocksAtOnce;
  static constexpr std::uint32_t kBlocks = 10 * kAtOnce;

  ViewCountTest() : all(kBlocks) {
    blocks.reset();
    for (Block& block : all) {
      block.start(Block::kRequest | Block::kView);
      EXPECT_EQ(blocks.attach(block, yes), Status::ok);
    }
  }
  static bool yes() { return true; }
  // The count goes from the block that was attached last to the first.
  Block& counted_at(std::uint32_t place) { return all[kBlocks - 1 - place]; }

  std::vector<Block> all;
  std::atomic<std::uint64_t> retained{0};
  RequestBlocks blocks;
};

TEST_F(ViewCountTest, AHoldOfTheLockCountsAFewBlocksHoweverManyThereAre) {
  RequestBlocks::ViewCount count(blocks);
  std::uint32_t holds = 1;
  for (; count.next(); ++holds) EXPECT_EQ(count.views(), holds * kAtOnce);
  EXPECT_EQ(holds, kBlocks / kAtOnce);
  EXPECT_EQ(count.views(), kBlocks);
}

TEST_F(ViewCountTest, BetweenTwoHoldsBlocksComeAndGo) {
  RequestBlocks::ViewCount count(blocks);
  RequestBlocks::ViewCount other(blocks);
  ASSERT_TRUE(count.next());
  RequestBlocks to;
  to.reset();
  // The next two to be counted, the last one, and one that was counted.
  for (const std::uint32_t place : {kAtOnce, kAtOnce + 1, kBlocks - 1, 0U})
    EXPECT_TRUE(blocks.detach(counted_at(place), yes));
  EXPECT_EQ(RequestBlocks::move(counted_at(kAtOnce + 2), blocks, to, 7, yes, [] { return Status::ok; }),
            Status::ok);
  Block later;
  later.start(Block::kRequest | Block::kView);
  ASSERT_EQ(blocks.attach(later, yes), Status::ok);
  while (count.next()) {
  }
  while (other.next()) {
  }
  EXPECT_EQ(count.views(), kBlocks - 4);
  EXPECT_EQ(other.views(), kBlocks - 5);
}

TEST_F(ViewCountTest, TheCountEndsWithTheRequest) {
  RequestBlocks::ViewCount count(blocks);
  ASSERT_TRUE(count.next());
  (void)blocks.release(retained);
  EXPECT_FALSE(count.next());
  EXPECT_EQ(count.views(), kAtOnce);
}

TEST_F(ViewCountTest, ObserversCountWhileBlocksComeAndGo) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> observers;
  for (int i = 0; i < 2; ++i) {
    observers.emplace_back([&] {
      while (!stop.load()) {
        RequestBlocks::ViewCount count(blocks);
        while (count.next()) {
        }
        EXPECT_LE(count.views(), kBlocks);
      }
    });
  }
  for (int i = 0; i < 3000; ++i) {
    Block& block = all[static_cast<std::size_t>(i * 7) % kBlocks];
    ASSERT_TRUE(blocks.detach(block, yes));
    ASSERT_EQ(blocks.attach(block, yes), Status::ok);
  }
  (void)blocks.release(retained);
  stop.store(true);
  for (std::thread& observer : observers) observer.join();
}

}  // namespace
}  // namespace slabpool
