// Promises: every promised byte can be allocated whatever the sizes, others cannot take it, and returned blocks return it.
#include "slabpool/slab/reserve.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "slabpool/slab/depot.hpp"
#include "support/fake_memory.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

constexpr auto kHard = Depot::Effort::hard;

class ReserveTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 256;
  static constexpr std::uint64_t kCapacity = kPages << kPageBits;

  ReserveRef promise(std::uint64_t pages) {
    const ReserveRef reserve = depot.open_reserve(pages);
    EXPECT_NE(reserve.reserve, nullptr);
    return reserve;
  }
  Block* cut(ReserveRef reserve, std::uint64_t bytes, std::uint64_t align = 64) {
    Block* block = depot.take_reserved(reserve, bin_of(bytes), align).chain;
    if (block != nullptr) block->start(1);
    return block;
  }
  Block* span(std::uint64_t bytes, ReserveRef reserve = {}) {
    Block* block = depot.take_span(bytes, 1, kHard, reserve).chain;
    if (block != nullptr) block->start(1);
    return block;
  }
  void give(Block* block) {
    EXPECT_TRUE(block->drop());
    block->next = nullptr;
    depot.give(block);
  }
  void expect_sound() {
    const char* wrong = depot.verify();
    ASSERT_EQ(wrong, nullptr) << wrong;
    ASSERT_EQ(depot.figures().committed, memory.committed_pages() << kPageBits);
    ASSERT_LE(depot.figures().committed, kCapacity);
  }
  std::uint64_t reserved_pages() { return depot.reserved_bytes() >> kPageBits; }

  test::FakeMemory memory{std::size_t{128} << 20};
  Depot depot{memory, kCapacity, true};
};

TEST_F(ReserveTest, RoomIsPromisedOnce) {
  const ReserveRef first = promise(200);
  EXPECT_EQ(depot.open_reserve(57).reserve, nullptr);
  EXPECT_EQ(span(57 << kPageBits), nullptr);
  Block* others = span(56 << kPageBits);
  ASSERT_NE(others, nullptr);
  Block* own = span(200 << kPageBits, first);
  ASSERT_NE(own, nullptr);
  EXPECT_EQ(reserved_pages(), 0U);
  expect_sound();
  give(own);
  EXPECT_EQ(reserved_pages(), 200U) << "it serves the same promise again";
  depot.close_reserve(first);
  EXPECT_EQ(reserved_pages(), 0U);
  give(others);
  expect_sound();
}

TEST_F(ReserveTest, SlabsThatStandEmptyCountAsRoom) {
  Block* block = depot.take_blocks(10, 1, kHard).chain;
  depot.give(block);  // its slab stays
  depot.close_reserve(promise(kPages));
}

TEST_F(ReserveTest, EverySizeIsServedToTheLastByte) {
  std::mt19937_64 random(3);
  for (int round = 0; round < test::rounds(200) && !HasFailure(); ++round) {
    const std::uint64_t pages = 8 + random() % 120;
    const ReserveRef reserve = promise(pages);
    std::vector<Block*> others;  // use up all other memory
    while (Block* block = span(kPageSize)) others.push_back(block);
    std::vector<Block*> own;
    std::uint64_t used = 0;
    for (;;) {
      // Small blocks and spans in any order, as long as the promise has enough bytes left.
      const std::uint64_t bytes = 1 + (random() % 4 == 0 ? random() % 400'000 : random() % 5'000);
      const std::uint64_t size = block_size_for(bytes);
      if (pages_for(used + size) > pages) break;
      Block* block = bytes <= kMaxSlabBlock ? cut(reserve, bytes) : span(bytes, reserve);
      ASSERT_NE(block, nullptr) << used << " of " << (pages << kPageBits) << " used, then " << size;
      std::memset(block->data, 0x5a, block->bytes);  // faults if any of it is not committed
      used += size;
      own.push_back(block);
    }
    expect_sound();
    std::shuffle(own.begin(), own.end(), random);
    for (Block* block : own) give(block);
    EXPECT_EQ(reserved_pages(), pages);
    expect_sound();
    depot.close_reserve(reserve);
    for (Block* block : others) give(block);
    (void)depot.trim();
    EXPECT_EQ(memory.committed_pages(), 0U);
  }
}

TEST_F(ReserveTest, BlocksAreApartAlignedAndFoundByAddress) {
  const ReserveRef reserve = promise(64);
  std::mt19937_64 random(5);
  std::vector<Block*> all;
  for (int i = 0; i < 60; ++i) {
    const std::uint64_t align = std::uint64_t{64} << (random() % 9);  // to 16 KiB
    Block* block = cut(reserve, 1 + random() % 3000, align);
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data) % align, 0U);
    all.push_back(block);
  }
  std::sort(all.begin(), all.end(), [](const Block* a, const Block* b) { return a->data < b->data; });
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i > 0) {
      EXPECT_LE(all[i - 1]->data + all[i - 1]->bytes, all[i]->data);
    }
    EXPECT_EQ(depot.find(all[i]->data), all[i]);
    EXPECT_EQ(depot.find(all[i]->data + all[i]->bytes - 1), all[i]);
  }
  for (Block* block : all) give(block);
  depot.close_reserve(reserve);
  expect_sound();
}

TEST_F(ReserveTest, StepsThatGrowDoNotUseItUp) {
  const ReserveRef reserve = promise(80);
  Block* first = cut(reserve, 1000);
  for (std::uint64_t bytes = 64; bytes <= 100'000; bytes += 64) {
    Block* one = cut(reserve, bytes);
    Block* two = cut(reserve, bytes);
    ASSERT_NE(two, nullptr) << bytes;
    give(one);
    give(two);
  }
  Block* large = span(79 << kPageBits, reserve);
  ASSERT_NE(large, nullptr) << "all but the page of the first";
  EXPECT_EQ(large->span->reserve_pages, 79U);
  give(large);
  give(first);
  depot.close_reserve(reserve);
  expect_sound();
}

TEST_F(ReserveTest, WhatViewsKeepOfAnEndedPromiseKeepsNoOtherPages) {
  std::mt19937_64 random(9);
  for (int round = 0; round < test::rounds(300) && !HasFailure(); ++round) {
    const ReserveRef reserve = promise(100);
    std::vector<Block*> all;
    while (Block* block = cut(reserve, 1 + random() % 60'000)) {
      std::memset(block->data, 0x5a, block->bytes);
      all.push_back(block);
    }
    // The promise is closed before blocks return, as when the host leaves, or after it.
    const bool closed_first = round % 2 != 0;
    if (closed_first) {
      depot.close_reserve(reserve);
      EXPECT_EQ(reserved_pages(), 0U);
      if (round % 4 == 1) std::shuffle(all.begin(), all.end(), random);
    }
    std::vector<Block*> kept;
    for (Block* block : all) {
      if (random() % 8 == 0) {
        kept.push_back(block);
      } else {
        give(block);
        expect_sound();
      }
    }
    depot.close_reserve(reserve);
    expect_sound();
    std::uint64_t in_use = 0;
    std::uint64_t end = 0;  // of the page that was counted last
    std::sort(kept.begin(), kept.end(),
              [](const Block* a, const Block* b) { return a->data < b->data; });
    for (const Block* block : kept) {
      const auto first = (reinterpret_cast<std::uint64_t>(block->data) >> kPageBits);
      const auto last =
          (reinterpret_cast<std::uint64_t>(block->data + block->bytes - 1) >> kPageBits) + 1;
      in_use += last - std::max(first, end);
      end = last;
    }
    // All other pages are anybody's, now and not with the last block.
    const ReserveRef rest = depot.open_reserve(kPages - in_use);
    EXPECT_NE(rest.reserve, nullptr);
    depot.close_reserve(rest);
    (void)depot.trim();
    std::uint64_t most = 0;
    for (const Block* block : kept) {
      most += pages_for(block->bytes) + 1;
      EXPECT_EQ(depot.find(block->data), block);
      ASSERT_TRUE(test::all_bytes(block->data, 0x5a, block->bytes)) << "its pages were handed out again";
    }
    EXPECT_LE(memory.committed_pages(), most);
    std::shuffle(kept.begin(), kept.end(), random);
    for (Block* block : kept) {
      give(block);
      expect_sound();
    }
    (void)depot.trim();
    EXPECT_EQ(memory.committed_pages(), 0U);
  }
}

TEST_F(ReserveTest, AtRandomEveryPromiseIsKept) {
  struct Out {
    Block* block;
    unsigned char fill;
  };
  struct Family {
    ReserveRef reserve;
    std::vector<Out> out;
  };
  std::mt19937_64 random(11);
  std::vector<Family> families;
  std::vector<Block*> others;
  for (int step = 0; step < test::rounds(30'000) && !HasFailure(); ++step) {
    if (families.size() < 4 && random() % 20 == 0) {
      const ReserveRef reserve = depot.open_reserve(1 + random() % 80);
      if (reserve.reserve != nullptr) families.push_back({reserve, {}});
    }
    if (random() % 3 == 0) {
      if (Block* block = span(1 + random() % 300'000)) others.push_back(block);
    }
    if (!families.empty()) {
      Family& family = families[random() % families.size()];
      const std::uint64_t left = family.reserve.reserve->pages_left;
      const std::uint64_t bytes = 1 + random() % (random() % 3 == 0 ? 300'000 : 9'000);
      Block* block = bytes <= kMaxSlabBlock ? cut(family.reserve, bytes) : span(bytes, family.reserve);
      if (block == nullptr) {
        EXPECT_GT(pages_for(block_size_for(bytes)), left);
      } else {
        if (block->zero) {
          ASSERT_TRUE(test::all_bytes(block->data, 0, block->bytes));
        }
        block->zero = false;
        const auto fill = static_cast<unsigned char>(1 + random() % 255);
        std::memset(block->data, fill, block->bytes);
        family.out.push_back({block, fill});
      }
      for (std::uint64_t n = random() % 3; n > 0 && !family.out.empty(); --n) {
        const std::size_t i = random() % family.out.size();
        const Out one = family.out[i];
        ASSERT_TRUE(test::all_bytes(one.block->data, one.fill, one.block->bytes)) << "two owners";
        family.out[i] = family.out.back();
        family.out.pop_back();
        give(one.block);
      }
      if (random() % 40 == 0) {
        depot.close_reserve(family.reserve);
        for (const Out& one : family.out) others.push_back(one.block);
        std::swap(family, families.back());
        families.pop_back();
      }
    }
    while (others.size() > 12) {
      const std::size_t i = random() % others.size();
      give(others[i]);
      others[i] = others.back();
      others.pop_back();
    }
    if (random() % 300 == 0) (void)depot.trim();
    if (step % 16 == 0) expect_sound();
  }
  for (const Family& family : families) {
    for (const Out& one : family.out) give(one.block);
    depot.close_reserve(family.reserve);
  }
  for (Block* block : others) give(block);
  expect_sound();
  (void)depot.trim();
  EXPECT_EQ(memory.committed_pages(), 0U);
  EXPECT_EQ(reserved_pages(), 0U);
}

}  // namespace
}  // namespace slabpool
