// Records of blocks and spans: their pages go back by trim(), and no stale pointer finds its allocation in new ones.
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "slabpool/slab/depot.hpp"
#include "support/fake_memory.hpp"

namespace slabpool {
namespace {

class RecordsTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kCapacity = std::uint64_t{32} << 20;

  // As the pool hands out: the request's hold, which makes a serial.
  std::vector<Block*> fill(unsigned size_class) {
    std::vector<Block*> all;
    for (;;) {
      const Depot::Taken taken = depot.take_blocks(size_class, 64, Depot::Effort::hard);
      if (taken.chain == nullptr) return all;
      for (Block* block = taken.chain; block != nullptr; block = block->next) {
        block->start(Block::kRequest);
        all.push_back(block);
      }
    }
  }
  std::vector<Block*> fill_spans(std::uint64_t bytes) {
    std::vector<Block*> all;
    while (Block* block = depot.take_span(bytes, 1, Depot::Effort::hard).chain) {
      block->start(Block::kRequest);
      all.push_back(block);
    }
    return all;
  }
  void give(const std::vector<Block*>& blocks) {
    for (Block* block : blocks) {
      (void)block->let_go();
      block->next = nullptr;
      depot.give(block);
    }
  }
  void expect_sound() {
    const char* wrong = depot.verify();
    EXPECT_EQ(wrong, nullptr) << wrong;
  }

  test::FakeMemory memory{std::size_t{64} << 20};
  Depot depot{memory, kCapacity, false};
};

TEST_F(RecordsTest, TrimGivesRecordsOfBlocksBack) {
  const std::uint64_t fresh = depot.metadata_bytes();
  for (const unsigned size_class : {0U, 8U, 40U, kSlabClasses - 1}) {
    const std::vector<Block*> blocks = fill(size_class);
    const std::uint64_t full = depot.metadata_bytes();
    EXPECT_GE(full - fresh, blocks.size() * sizeof(Block)) << size_class;
    give(blocks);
    expect_sound();
    EXPECT_GE(depot.metadata_bytes() - fresh, blocks.size() * sizeof(Block));
    (void)depot.trim();
    expect_sound();
    // Left: what one chunk of spans has, and the tables of pages.
    EXPECT_LE(depot.metadata_bytes() - fresh, 2 * RecordChunks::kChunkBytes) << size_class;
  }
}

TEST_F(RecordsTest, TrimGivesRecordsOfSpansBack) {
  const std::uint64_t fresh = depot.metadata_bytes();
  const std::vector<Block*> spans = fill_spans(std::uint64_t{1} << 14);
  ASSERT_GE(spans.size(), 1900U);
  EXPECT_GE(depot.metadata_bytes() - fresh, spans.size() * sizeof(Span));
  give(spans);
  (void)depot.trim();
  expect_sound();
  EXPECT_LE(depot.metadata_bytes() - fresh, 2 * RecordChunks::kChunkBytes);
  EXPECT_EQ(fill_spans(std::uint64_t{1} << 14).size(), spans.size());
}

TEST_F(RecordsTest, RecordsInUseStay) {
  std::vector<Block*> blocks = fill(8);
  std::vector<Block*> kept;
  for (std::size_t i = 0; i < blocks.size(); i += 1000) kept.push_back(blocks[i]);
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (i % 1000 != 0) give({blocks[i]});
  (void)depot.trim();
  expect_sound();
  for (const Block* block : kept) {
    EXPECT_EQ(Block::holds(block->state.load()), Block::kRequest);
    EXPECT_EQ(depot.find(block->data), block);
  }
  give(kept);
  (void)depot.trim();
  expect_sound();
}

TEST_F(RecordsTest, AStalePointerFindsNoLaterAllocation) {
  struct Stale {
    Block* block;
    std::uint32_t serial;
  };
  std::vector<Stale> stale;
  const auto note = [&](const std::vector<Block*>& blocks) {
    for (Block* block : blocks) stale.push_back({block, block->serial()});
  };
  const auto none_found = [&] {
    for (const Stale& one : stale) EXPECT_FALSE(one.block->hold_if(one.serial));
  };
  std::size_t again = 0;
  for (int round = 0; round < 5; ++round) {
    // Small blocks and spans in turn, so that the addresses of records serve another kind, and with more in one round than in
    // the other.
    std::vector<Block*> blocks = round % 2 == 0 ? fill(12) : fill_spans(std::uint64_t{20} << 10);
    if (round == 3)
      blocks = [&] {
        give(blocks);
        return fill(0);
      }();
    std::set<const Block*> now(blocks.begin(), blocks.end());
    for (const Stale& one : stale) again += now.count(one.block);
    none_found();
    note(blocks);
    give(blocks);
    none_found();
    (void)depot.trim();
    none_found();
  }
  EXPECT_GT(again, 1000U) << "addresses of records are used again";
}

}  // namespace
}  // namespace slabpool
