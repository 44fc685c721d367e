// Assertions: a broken invariant aborts with its place, its message and its values; one that holds does nothing.
#include "slabpool/base/assert.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include "slabpool/base/error.hpp"
#include "slabpool/slab/block.hpp"
#include "slabpool/slab/depot.hpp"
#include "slabpool/slab/page_bits.hpp"
#include "support/fake_memory.hpp"

namespace slabpool {
namespace {

enum class Colour : signed char { red = -3 };

TEST(AssertDeathTest, PrintsPlaceConditionMessageAndValues) {
  const int committed = 5;
  const std::uint64_t capacity = std::numeric_limits<std::uint64_t>::max();
  EXPECT_DEATH(
      SLABPOOL_ASSERT_ALWAYS(committed == 6, "the figures agree", committed, capacity, Colour::red,
                             nullptr, true),
      "slabpool: .*assert_test.cpp:[0-9]+: assertion failed: committed == 6: the figures agree "
      "\\[committed, capacity, Colour::red, nullptr, true = 5, 18446744073709551615, -3, 0x0, 1\\]\n");
  EXPECT_DEATH(SLABPOOL_ASSERT_ALWAYS(committed < 0, "no values"),
               "assertion failed: committed < 0: no values\n");
}

TEST(AssertDeathTest, ALongMessageIsCutOffAndStillAborts) {
  const std::string message(5000, 'x');
  EXPECT_DEATH(SLABPOOL_ASSERT_ALWAYS(message.empty(), message.c_str()), "assertion failed: .*x+\n");
}

TEST(AssertDeathTest, AStructureIsVerifiedWhereItIsEnabled) {
  int evaluated = 0;
  const auto verdict = [&](const char* broken) {
    ++evaluated;
    return broken;
  };
  SLABPOOL_VERIFY(true, verdict(nullptr));
  EXPECT_EQ(evaluated, 1);
  SLABPOOL_VERIFY(false, verdict(nullptr));
  EXPECT_EQ(evaluated, SLABPOOL_ASSERT_LEVEL >= 2 ? 2 : 1);
  EXPECT_DEATH(SLABPOOL_VERIFY(true, verdict("pages do not add up")),
               "assertion failed: .*: pages do not add up\n");
}

TEST(Assert, TheConditionIsEvaluatedOnceAtItsLevelAndNeverBelow) {
  int first = 0;
  int second = 0;
  SLABPOOL_ASSERT(++first == 1, "level 1", first);
  SLABPOOL_ASSERT2(++second == 1, "level 2", second);
  EXPECT_EQ(first, SLABPOOL_ASSERT_LEVEL >= 1 ? 1 : 0);
  EXPECT_EQ(second, SLABPOOL_ASSERT_LEVEL >= 2 ? 1 : 0);
}

TEST(Error, KeepsStatusErrnoAndText) {
  Error error;
  EXPECT_EQ(error.status, Status::ok);
  EXPECT_FALSE(error.fail_errno("the file", ENOSPC));
  EXPECT_EQ(error.status, Status::system_refused);
  EXPECT_EQ(error.system_errno, ENOSPC);
  EXPECT_EQ(error.text, "the file: No space left on device");
  EXPECT_FALSE(error.fail_errno({}, EMFILE));
  EXPECT_EQ(error.system_errno, EMFILE);
  EXPECT_EQ(error.text, "");
  EXPECT_FALSE(error.fail(Status::forked));
  EXPECT_EQ(error.status, Status::forked);
  EXPECT_EQ(error.system_errno, 0);
  EXPECT_EQ(error.text, "");
}

#if SLABPOOL_ASSERT_LEVEL >= 1

TEST(InvariantDeathTest, ABlockIsReleasedOnce) {
  Block block;
  block.start(Block::kView);
  EXPECT_TRUE(block.drop());
  EXPECT_DEATH((void)block.drop(), "a view is removed once");
  EXPECT_DEATH((void)block.let_go(), "a request releases a block once");
  block.start(Block::kRequest);
  EXPECT_DEATH(block.start(Block::kView), "a block is handed out while it has a holder");
}

TEST(InvariantDeathTest, ABlockReturnsToTheDepotOnceAndWithoutHolders) {
  test::FakeMemory memory(std::size_t{16} << 20);
  Depot depot(memory, std::uint64_t{1} << 20, false);
  Block* block = depot.take_span(256 << 10, 64, Depot::Effort::hard).chain;
  ASSERT_NE(block, nullptr);
  block->start(Block::kView);
  EXPECT_DEATH(depot.give(block), "a block returns when it has no holder");
  ASSERT_TRUE(block->drop());
  depot.give(block);
  EXPECT_DEATH(depot.give(block), "a block returns once");
}

TEST(InvariantDeathTest, ASlabCountsItsFreeBlocks) {
  test::FakeMemory memory(std::size_t{16} << 20);
  Depot depot(memory, std::uint64_t{1} << 20, false);
  Block* block = depot.take_blocks(0, 1, Depot::Effort::hard).chain;
  ASSERT_NE(block, nullptr);
  block->span->free_blocks += 1;  // a stray write
  ASSERT_EQ(block->span->count, kPageSize / class_size(0));
  EXPECT_DEATH(depot.give(block), "a block returns once.*64, 64");
  block->span->free_blocks -= 1;
  depot.give(block);
  EXPECT_EQ(depot.verify(), nullptr);
}

TEST(InvariantDeathTest, WholeGranulesOfTheRangeAreCommitted) {
  test::FakeMemory memory(std::size_t{16} << 20, std::size_t{2} << 20);
  EXPECT_DEATH(memory.assert_granules(0, kPageSize), "whole granules are committed and decommitted");
  EXPECT_DEATH(memory.assert_granules(std::size_t{14} << 20, std::size_t{4} << 20),
               "they lie in the range");
}

TEST(InvariantDeathTest, APageIsAMemberOnce) {
  PageBits bits(10'000);
  ASSERT_TRUE(bits.open(0, 10'000));
  bits.set(0);
  bits.set(7000);
  EXPECT_DEATH(bits.set(7000), "a page is added once");
  EXPECT_DEATH(bits.clear(6999), "only a member is removed");
}

#endif

}  // namespace
}  // namespace slabpool
