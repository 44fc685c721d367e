// Promises made inside others: where their pages come from, and that all of them are there again at the end.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "slabpool/slab/depot.hpp"
#include "slabpool/slab/reserve.hpp"
#include "support/fake_memory.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

class NestedReserve : public testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 256;

  ReserveRef promise(std::uint64_t pages, ReserveRef from = {}) {
    const ReserveRef reserve = depot.open_reserve(pages, from);
    EXPECT_NE(reserve.reserve, nullptr);
    return reserve;
  }
  Block* started(Block* block) {
    if (block != nullptr) block->start(1);
    return block;
  }
  Block* page(ReserveRef reserve) {
    return started(depot.take_reserved(reserve, bin_of(kPageSize), 64).chain);
  }
  Block* span(std::uint64_t pages, ReserveRef reserve = {}) {
    return started(depot.take_span(pages << kPageBits, 1, Depot::Effort::hard, reserve).chain);
  }
  void give(Block* block) {
    ASSERT_TRUE(block->drop());
    block->next = nullptr;
    depot.give(block);
  }
  std::uint64_t left(ReserveRef reserve) { return depot.left_of(reserve) >> kPageBits; }
  std::uint64_t drawable(ReserveRef reserve) { return depot.drawable_bytes(reserve) >> kPageBits; }
  std::uint64_t reserved() { return depot.reserved_bytes() >> kPageBits; }
  void expect_sound() {
    const char* wrong = depot.verify();
    ASSERT_EQ(wrong, nullptr) << wrong;
  }

  test::FakeMemory memory{std::size_t{128} << 20};
  Depot depot{memory, kPages << kPageBits, true};
};

TEST_F(NestedReserve, AnInnerPromiseComesOutOfTheOuterOne) {
  const ReserveRef outer = promise(200);
  const ReserveRef inner = promise(150, outer);
  EXPECT_EQ(reserved(), 200U);
  EXPECT_EQ(left(outer), 50U);
  EXPECT_EQ(drawable(inner), 200U);
  depot.close_reserve(inner);
  EXPECT_EQ(left(outer), 200U);
  depot.close_reserve(outer);
  EXPECT_EQ(reserved(), 0U);
}

TEST_F(NestedReserve, WhatTheOuterOneHasNotLeftComesFromAllAndGoesBackThere) {
  const ReserveRef outer = promise(100);
  const ReserveRef inner = promise(150, outer);
  EXPECT_EQ(reserved(), 150U);
  EXPECT_EQ(depot.open_reserve(257, inner).reserve, nullptr) << "150, and 106 that are room";
  Block* const drawn = span(120, inner);
  depot.close_reserve(inner);
  EXPECT_EQ(left(outer), 0U) << "50 of them were never the outer one's";
  EXPECT_EQ(reserved(), 0U);
  give(drawn);
  EXPECT_EQ(left(outer), 100U);
  EXPECT_EQ(reserved(), 100U);
  depot.close_reserve(outer);
}

TEST_F(NestedReserve, PagesThatReturnLateGoToTheOuterOne) {
  const ReserveRef outer = promise(100);
  const ReserveRef inner = promise(40, outer);
  Block* const large = span(20, inner);
  Block* const small = page(inner);
  Block* const other = page(inner);
  depot.close_reserve(inner);
  EXPECT_EQ(left(outer), 78U);
  give(small);  // between blocks in use: can be cut again, and is not left
  give(large);
  expect_sound();
  EXPECT_EQ(left(outer), 98U);
  give(other);
  EXPECT_EQ(left(outer), 100U);
  EXPECT_EQ(span(157), nullptr) << "the outer promise stands";
  Block* const last = span(156);
  Block* const promised = span(100, outer);
  ASSERT_NE(promised, nullptr);
  give(last);
  give(promised);
  depot.close_reserve(outer);
  expect_sound();
}

TEST_F(NestedReserve, AnInnerPromiseThatIsUsedUpDrawsOnTheOuterOne) {
  const ReserveRef outer = promise(100);
  const ReserveRef inner = promise(10, outer);
  Block* const fill = span(156);
  Block* const large = span(60, inner);
  ASSERT_NE(large, nullptr) << "ten of its own, and fifty of the outer one";
  EXPECT_EQ(drawable(inner), 40U);
  std::vector<Block*> pages;
  for (int i = 0; i < 40; ++i) pages.push_back(page(inner));
  EXPECT_EQ(std::count(pages.begin(), pages.end(), nullptr), 0);
  EXPECT_EQ(page(inner), nullptr);
  give(large);
  EXPECT_EQ(left(inner), 10U);
  EXPECT_EQ(left(outer), 50U) << "what was borrowed is not hoarded";
  for (Block* block : pages) give(block);
  EXPECT_EQ(left(inner) + left(outer), 100U);
  give(fill);
  depot.close_reserve(inner);
  depot.close_reserve(outer);
  expect_sound();
}

TEST_F(NestedReserve, ASpanThatGetsNoPagesLeavesThePromisesAsTheyWere) {
  const ReserveRef outer = promise(50);
  const ReserveRef inner = promise(10, outer);
  Block* const fill = span(200);
  EXPECT_EQ(span(60, inner), nullptr) << "fifty are promised, and six are room";
  EXPECT_EQ(left(inner), 10U);
  EXPECT_EQ(left(outer), 40U);
  give(fill);
  depot.close_reserve(inner);
  depot.close_reserve(outer);
}

TEST_F(NestedReserve, PagesFindTheirWayThroughPromisesThatAreOver) {
  const ReserveRef outer = promise(100);
  const ReserveRef middle = promise(50, outer);
  const ReserveRef inner = promise(20, middle);
  Block* const of_inner = span(20, inner);
  Block* const of_middle = span(30, middle);
  depot.close_reserve(inner);
  depot.close_reserve(middle);
  EXPECT_EQ(left(outer), 50U);
  give(of_middle);
  EXPECT_EQ(left(outer), 80U);
  expect_sound();
  give(of_inner);
  EXPECT_EQ(left(outer), 100U);
  // The records are used again: nothing refers to the old ones.
  const ReserveRef again = promise(30, outer);
  Block* const block = span(30, again);
  depot.close_reserve(outer);
  give(block);
  EXPECT_EQ(reserved(), 30U) << "the outer one is over, this one is not";
  depot.close_reserve(again);
  EXPECT_EQ(reserved(), 0U);
  expect_sound();
}

TEST_F(NestedReserve, AtRandomNothingIsLost) {
  struct Family {
    ReserveRef outer;
    std::uint64_t pages;
    std::vector<ReserveRef> inner;  // each in the one before it, or in the outer one
    std::vector<Block*> out;
  };
  std::mt19937_64 random(7);
  std::vector<Family> families;
  for (int step = 0; step < test::rounds(20'000) && !HasFailure(); ++step) {
    if (families.size() < 3 && random() % 30 == 0) {
      const std::uint64_t pages = 20 + random() % 60;
      const ReserveRef outer = depot.open_reserve(pages);
      if (outer.reserve != nullptr) families.push_back({outer, pages, {}, {}});
    }
    if (families.empty()) continue;
    Family& family = families[random() % families.size()];
    const auto any = [&] {
      const std::size_t i = random() % (family.inner.size() + 1);
      return i == 0 ? family.outer : family.inner[i - 1];
    };
    switch (random() % 6) {
      case 0:
        if (family.inner.size() < 5) {
          const ReserveRef from = family.inner.empty() ? family.outer : family.inner.back();
          const ReserveRef made = depot.open_reserve(1 + random() % 30, from);
          if (made.reserve != nullptr) family.inner.push_back(made);
        }
        break;
      case 1:
        if (!family.inner.empty() && random() % 3 == 0) {
          depot.close_reserve(family.inner.back());
          family.inner.pop_back();
        }
        break;
      case 2:
      case 3: {
        Block* block = random() % 2 == 0 ? page(any()) : span(33 + random() % 10, any());
        if (block != nullptr) family.out.push_back(block);
        break;
      }
      default:
        for (std::uint64_t n = random() % 3; n > 0 && !family.out.empty(); --n) {
          const std::size_t i = random() % family.out.size();
          give(family.out[i]);
          family.out[i] = family.out.back();
          family.out.pop_back();
        }
    }
    if (random() % 50 == 0) {
      // All that the family has comes back, in any order: the outer promise is whole.
      std::shuffle(family.out.begin(), family.out.end(), random);
      const auto half = static_cast<std::ptrdiff_t>(family.out.size() / 2);
      std::for_each(family.out.begin(), family.out.begin() + half, [&](Block* block) { give(block); });
      for (; !family.inner.empty(); family.inner.pop_back()) depot.close_reserve(family.inner.back());
      std::for_each(family.out.begin() + half, family.out.end(), [&](Block* block) { give(block); });
      family.out.clear();
      ASSERT_EQ(left(family.outer), family.pages);
      if (random() % 2 == 0) {
        depot.close_reserve(family.outer);
        std::swap(family, families.back());
        families.pop_back();
      }
    }
    if (step % 8 == 0) expect_sound();
  }
  for (Family& family : families) {
    for (; !family.inner.empty(); family.inner.pop_back()) depot.close_reserve(family.inner.back());
    depot.close_reserve(family.outer);
    for (Block* block : family.out) give(block);
  }
  expect_sound();
  EXPECT_EQ(reserved(), 0U);
  (void)depot.trim();
  EXPECT_EQ(memory.committed_pages(), 0U);
}

}  // namespace
}  // namespace slabpool
