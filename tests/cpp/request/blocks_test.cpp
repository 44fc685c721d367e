// RequestBlocks alone: attaching, moving, releasing with and without views, and the count that keeps a slot.
#include "slabpool/request/blocks.hpp"

#include <gtest/gtest.h>

#include <array>

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
  EXPECT_EQ(blocks.views(), 1U);
  const RequestBlocks::Released back = blocks.release(retained);
  EXPECT_EQ(length(back.chain), 2);
  EXPECT_EQ(back.freed, 200U);
  EXPECT_EQ(back.retained, 100U);
  EXPECT_EQ(retained.load(), 100U);
  EXPECT_EQ(blocks.bytes(), 100U);
  EXPECT_EQ(blocks.views(), 1U);
  EXPECT_FALSE(blocks.retire()) << "a retained block keeps the slot";
  blocks.retain_view();
  all[1].hold();
  EXPECT_FALSE(blocks.drop_retained(all[1], retained));
  EXPECT_TRUE(blocks.drop_retained(all[1], retained));
  EXPECT_EQ(retained.load(), 0U);
  EXPECT_EQ(blocks.bytes(), 0U);
  EXPECT_EQ(blocks.views(), 0U);
  EXPECT_TRUE(blocks.returned_retained());
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
  EXPECT_EQ(blocks.views(), 0U);
  EXPECT_EQ(other.views(), 1U);
  EXPECT_EQ(all[1].request.load(), 8U);
  EXPECT_EQ(length(blocks.release(retained).chain), 1);
}

}  // namespace
}  // namespace slabpool
