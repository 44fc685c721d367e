// What the return of kept blocks would bring, and which groups of them suffice; and which sessions became idle.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::kept;
using test::kMiB;
using test::open;

using Groups = Pool::Groups;
using Planned = Pool::Planned;

class PlanReturn : public test::PoolFixture {
 protected:
  // What was chosen, or {-1} for never and {} for room.
  std::vector<int> plan(Status status, const Pool::Shortage& shortage,
                        const std::vector<std::vector<Block*>>& of) {
    Groups groups;
    for (const std::vector<Block*>& group : of) {
      groups.blocks.insert(groups.blocks.end(), group.begin(), group.end());
      groups.ends.push_back(static_cast<std::uint32_t>(groups.blocks.size()));
    }
    const Planned planned = pool->plan_return(status, shortage, {}, groups);
    if (planned == Planned::never) return {-1};
    std::vector<int> chosen;
    for (std::size_t i = 0; i != groups.chosen.size(); ++i) {
      if (groups.chosen[i] != 0) chosen.push_back(static_cast<int>(i));
    }
    EXPECT_EQ(planned == Planned::chosen, !chosen.empty());
    return chosen;
  }
  std::vector<int> plan_tensor(std::uint64_t nbytes, const std::vector<std::vector<Block*>>& of) {
    return plan(Status::exhausted, pool->shortage({}, nbytes, false), of);
  }
  void fill(std::uint64_t nbytes) {
    while (pool->allocate(kept(nbytes, rest)).block != nullptr) {
    }
  }
  Block* growing(std::uint64_t most, std::uint64_t nbytes) {
    const Allocation made = pool->open_growing(rest, most);
    EXPECT_EQ(made.status, Status::ok);
    std::uint64_t usable = 0;
    EXPECT_EQ(pool->grow(*made.block, rest, nbytes, usable), Status::ok);
    pool->drop_view(*made.block);
    return made.block;
  }
  void TearDown() override {
    close(rest);
    test::expect_all_returned(*pool);
  }

  Handle rest = open(*pool, {});
  Handle mine = open(*pool, {});
};

TEST_F(PlanReturn, SpansBringTheirPages) {
  Block* small = take(kept(kMiB, mine));
  Block* large = take(kept(4 * kMiB, mine));
  Block* other = take(kept(kMiB, mine));
  fill(kMiB);
  EXPECT_EQ(plan_tensor(kMiB, {{small}, {large}, {other}}), std::vector({0}));
  EXPECT_EQ(plan_tensor(2 * kMiB, {{small}, {other}, {large}}), std::vector({0, 1}));
  EXPECT_EQ(plan_tensor(3 * kMiB, {{small}, {other}, {large}}), std::vector({2}));
  EXPECT_EQ(plan_tensor(5 * kMiB, {{small}, {other}, {large}}), std::vector({0, 2}));
  EXPECT_EQ(plan_tensor(7 * kMiB, {{small}, {other}, {large}}), std::vector({-1}));
  EXPECT_EQ(plan_tensor(6 * kMiB, {{small, other, large}}), std::vector({0}));
  EXPECT_EQ(plan_tensor(1, {}), std::vector({-1}));
  close(mine);
  EXPECT_EQ(plan_tensor(kMiB, {}), std::vector<int>{}) << "there is room now";
  EXPECT_EQ(plan(Status::system_refused, {kMiB, true}, {}), std::vector({-1}))
      << "what is free does not help where the system refuses";
}

TEST_F(PlanReturn, APageOfASlabIsFreeWithItsLastBlock) {
  std::vector<Block*> blocks;
  while (Block* block = pool->allocate(kept(1'024, mine)).block) blocks.push_back(block);
  fill(1);
  ASSERT_GT(blocks.size(), 100U);
  EXPECT_EQ(plan_tensor(1'024, {{blocks[0]}, {blocks[1]}}), std::vector({0})) << "a block of the size";
  EXPECT_EQ(plan_tensor(300, {{blocks[0]}, {blocks[1]}}), std::vector({-1})) << "no whole page";
  std::vector<std::vector<Block*>> all;
  for (Block* block : blocks) all.push_back({block});
  const std::vector<int> chosen = plan_tensor(300, all);
  ASSERT_FALSE(chosen.empty());
  std::set<std::uintptr_t> pages;
  for (const int i : chosen)
    pages.insert(reinterpret_cast<std::uintptr_t>(blocks[static_cast<std::size_t>(i)]->data) >>
                 kPageBits);
  EXPECT_EQ(pages.size(), 1U) << "blocks of other pages bring nothing";
  EXPECT_EQ(chosen.size(), kPageSize / 1'024);
  EXPECT_EQ(plan(Status::exhausted, {300, true}, {{blocks[0]}}), std::vector({-1}));
  close(mine);
}

TEST_F(PlanReturn, WhatReturnsToAPromiseBringsNothing) {
  const Handle owner = open(*pool, {.reserve = 4 * kMiB});
  Block* span = take(kept(2 * kMiB, owner));
  Block* piece = take(kept(1000, owner));
  fill(kMiB);
  fill(kPageSize);
  EXPECT_EQ(plan_tensor(kMiB, {{span}, {piece}}), std::vector({-1}));
  EXPECT_EQ(pool->shortage(owner, 3 * kMiB, false).bytes, kMiB + kPageSize)
      << "the promise has the rest";
  EXPECT_EQ(pool->shortage(owner, kMiB, true).bytes, 0U);
  EXPECT_FALSE(pool->shortage(owner, 1000, false).pages);
  const Handle chat = open(*pool, {});
  pool->hold_view(*span);
  pool->hold_view(*piece);
  close(owner);
  fill(kMiB);
  fill(kPageSize);
  EXPECT_EQ(plan_tensor(kMiB, {{piece}, {span}}), std::vector({1})) << "once it is closed, they do";
  EXPECT_EQ(plan(Status::exhausted, {1, true}, {{piece}, {span}}), std::vector({0}));
  pool->drop_view(*span);
  pool->drop_view(*piece);
  close(chat);
  close(mine);
}

TEST_F(PlanReturn, AddressesMustLieInARow) {
  const std::uint64_t part = pool->stats().address_space / 8;
  std::vector<Block*> blocks;
  for (int i = 0; i < 7; ++i) blocks.push_back(growing(part, i % 2 == 0 ? 1 : 100'000));
  for (std::uint64_t left = part; left >= 16'384;) {
    Block* block = pool->open_growing(rest, left).block;
    if (block == nullptr) {
      left /= 2;
    } else {
      pool->drop_view(*block);
    }
  }
  const auto address = [](const Block* a, const Block* b) { return a->data < b->data; };
  std::sort(blocks.begin(), blocks.end(), address);
  const auto wants = [&](std::uint64_t parts, const std::vector<std::vector<Block*>>& of) {
    return plan(Status::no_addresses, {parts * part - 16'384, true}, of);
  };
  EXPECT_EQ(wants(1, {{blocks[2]}, {blocks[0]}}), std::vector({0}));
  EXPECT_EQ(wants(2, {{blocks[0]}, {blocks[2]}, {blocks[4]}}), std::vector({-1})) << "not in a row";
  EXPECT_EQ(wants(2, {{blocks[0]}, {blocks[2]}, {blocks[5]}, {blocks[1]}}), std::vector({0, 3}))
      << "the later of two that would do is spared";
  EXPECT_EQ(wants(3, {{blocks[4]}, {blocks[6]}, {blocks[0]}, {blocks[5]}}), std::vector({0, 1, 3}));
  EXPECT_EQ(wants(2, {{blocks[0], blocks[1]}}), std::vector({0})) << "of one session";
  close(mine);
}

TEST_F(PlanReturn, ASessionIsReportedOnceEachTimeItBecomesIdle) {
  Handle chat;
  Handle other;
  Handle found;
  ASSERT_EQ(pool->open_session("k-1", kMiB, {"test.cpp", 1}, chat), Status::ok);
  ASSERT_EQ(pool->open_session("k-2", kMiB, {"test.cpp", 1}, other), Status::ok);
  EXPECT_FALSE(pool->take_idle(found));
  for (int round = 0; round < 3; ++round) {
    const Handle turn = open(*pool, {.devices = {0}});
    ASSERT_EQ(pool->pin(turn, {&chat, 1}), Status::ok);
    close(turn);
    EXPECT_FALSE(pool->take_idle(found)) << "its device reads";
    (void)ack(turn, 0);
    ASSERT_TRUE(pool->take_idle(found));
    EXPECT_EQ(found.generation, chat.generation);
    EXPECT_FALSE(pool->take_idle(found));
  }
  // One that is in use again, or over, is not reported; nor one that has its slot.
  const Handle both[] = {chat, other};
  const Handle turn = open(*pool, {});
  ASSERT_EQ(pool->pin(turn, both), Status::ok);
  close(turn);
  const Handle again = open(*pool, {});
  ASSERT_EQ(pool->pin(again, {&chat, 1}), Status::ok);
  close(other);
  ASSERT_EQ(pool->open_session("k-3", kMiB, {"test.cpp", 1}, other), Status::ok);
  while (pool->take_idle(found))
    EXPECT_EQ(found.generation, other.generation) << "the new one of the slot";
  close(again);
  ASSERT_TRUE(pool->take_idle(found));
  EXPECT_EQ(found.generation, chat.generation);
  close(chat);
  close(other);
  close(mine);
}

TEST_F(PlanReturn, AQuotaIsOfTheRequestThatHasIt) {
  const Handle owner = open(*pool, {.quota = kMiB});
  const Handle child = open(*pool, {.parent = owner});
  (void)take(kept(kMiB / 2, child));
  Handle root;
  EXPECT_EQ(pool->over_quota(child, kMiB / 2, true, root), 0U);
  EXPECT_EQ(pool->over_quota(child, kMiB, true, root), kMiB / 2);
  EXPECT_EQ(root.generation, owner.generation);
  Handle chat;
  ASSERT_EQ(pool->open_session("k-1", kMiB, {"test.cpp", 1}, chat), Status::ok);
  EXPECT_FALSE(pool->charged_to(chat, owner));
  EXPECT_TRUE(pool->charged_to(chat, chat));
  const std::uint64_t before = pool->bytes_not_kept();
  EXPECT_GE(before, kMiB / 2);
  close(chat);
  EXPECT_FALSE(pool->charged_to(chat, chat));
  close(child);
  close(owner);
  close(mine);
}

}  // namespace
}  // namespace slabpool
