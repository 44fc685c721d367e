// Quotas and reserves: limits that hold, and memory that is there when a request asks for it.
#include "slabpool/pool/pool.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::held;
using test::in_seconds;
using test::kept;
using test::kMiB;
using test::open;

class PoolBudget : public test::PoolFixture {};

TEST_F(PoolBudget, AQuotaBoundsARequestAndItsChildren) {
  const Handle request = open(*pool, {.quota = 300'000});
  const Handle child = open(*pool, {.parent = request});
  Block* first = take(kept(200'000, request));
  ASSERT_NE(first, nullptr);
  const Stats before = pool->stats();
  EXPECT_EQ(pool->allocate(kept(150'000, child)).status, Status::quota_exceeded);
  EXPECT_EQ(pool->stats().live, before.live);
  EXPECT_EQ(pool->stats().exhaustions, before.exhaustions) << "the pool has room";
  EXPECT_NE(take(kept(50'000, child)), nullptr);
  close(child);
  EXPECT_NE(take(kept(80'000, request)), nullptr);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolBudget, AReserveIsThereWhateverOtherRequestsTake) {
  for (const std::uint64_t piece : {std::uint64_t{64}, std::uint64_t{1000}, std::uint64_t{5000},
                                    std::uint64_t{70'000}, std::uint64_t{200'000}, kMiB}) {
    const std::uint64_t reserve = 4 * kMiB;
    const Handle request = open(*pool, {.reserve = reserve});
    std::vector<Block*> others;
    for (const std::uint64_t size : {kMiB, std::uint64_t{100'000}, std::uint64_t{100}}) {
      Allocation made;
      while ((made = pool->allocate(bytes(size))).block != nullptr) others.push_back(made.block);
      EXPECT_EQ(made.status, Status::exhausted);
    }
    const std::uint64_t need = block_size_for(piece);
    std::uint64_t got = 0;
    while (got + need <= reserve) {
      const Allocation made = pool->allocate(kept(piece, request));
      if (made.status != Status::ok) break;
      got += need;
    }
    EXPECT_GT(got + need, reserve) << piece << ": the reserve serves to its last block";
    test::expect_adds_up(pool->stats());
    close(request);
    for (Block* block : others) pool->drop_view(*block);
    expect_all_returned(*pool);
  }
}

TEST_F(PoolBudget, RequestsThatReservedAllOfThePoolAreBothServed) {
  for (const std::uint64_t piece : {std::uint64_t{64}, std::uint64_t{5000}, std::uint64_t{200'000}}) {
    const std::uint64_t reserve = kCapacity / 2;
    const Handle requests[] = {open(*pool, {.id = "sa", .reserve = reserve}),
                               open(*pool, {.id = "sb", .reserve = reserve})};
    const std::uint64_t need = block_size_for(piece);
    std::uint64_t got = 0;
    bool served = true;
    // In turns, so that neither request has pages to itself by chance.
    while (served && got + need <= reserve) {
      for (const Handle request : requests)
        served = served && pool->allocate(kept(piece, request)).block != nullptr;
      if (served) got += need;
    }
    EXPECT_GT(got + need, reserve) << piece;
    for (const Handle request : requests) close(request);
    expect_all_returned(*pool);
  }
}

TEST_F(PoolBudget, AReserveIsPromisedOrRefused) {
  const Handle first = open(*pool, {.reserve = 10 * kMiB});
  EXPECT_EQ(pool->stats().reserved, 10 * kMiB);
  Handle second;
  EXPECT_EQ(pool->open(test::Opening{.reserve = 7 * kMiB}.spec(), second), Status::exhausted);
  EXPECT_EQ(pool->open(test::Opening{.reserve = kCapacity + 1}.spec(), second), Status::too_large);
  EXPECT_EQ(pool->open(test::Opening{.reserve = 2000, .quota = 1000}.spec(), second),
            Status::invalid_argument);
  EXPECT_EQ(pool->stats().requests_open, 1U);
  EXPECT_EQ(pool->stats().reserved, 10 * kMiB);
  close(first);
  expect_all_returned(*pool);
}

TEST_F(PoolBudget, CachedMemoryCountsAsRoomForAReserve) {
  std::vector<Block*> all;
  for (int i = 0; i < 16; ++i) all.push_back(take(bytes(kMiB)));
  for (Block* block : all) pool->drop_view(*block);
  const Handle request = open(*pool, {.reserve = kCapacity});
  EXPECT_NE(take(kept(kCapacity, request)), nullptr);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolBudget, AReserveGoesBackWhenTheHostLeaves) {
  const std::uint32_t device = *pool->devices().add("sd");
  for (const bool cancel : {false, true}) {
    const Handle request = open(*pool, {.devices = {device}, .reserve = 12 * kMiB});
    Block* small = take(bytes(5000, request));
    const Block* large = take(kept(kMiB, request));
    ASSERT_NE(large, nullptr);
    EXPECT_EQ(info(request).reserved, pool->stats().reserved);
    EXPECT_GE(pool->stats().reserved, 11 * kMiB - 2 * kPageSize);
    pool->close_request(request, cancel);
    EXPECT_EQ(pool->stats().reserved, 0U);
    EXPECT_EQ(info(request).reserved, 0U);
    EXPECT_STREQ(pool->verify(), nullptr);
    // All but what the device may still read.
    Block* rest = take(bytes(kCapacity - kMiB - 2 * kPageSize));
    ASSERT_NE(rest, nullptr);
    pool->drop_view(*rest);
    pool->drop_view(*small);
    EXPECT_EQ(ack(request, device), AckResult::released);
    expect_all_returned(*pool);
  }
}

TEST_F(PoolBudget, ChildrenDrawOnAReserveUntilTheParentCloses) {
  const std::uint32_t device = *pool->devices().add("sd");
  const Handle parent = open(*pool, {.devices = {device}, .reserve = 8 * kMiB});
  const Handle first = open(*pool, {.id = "sb", .devices = {device}, .parent = parent});
  const Handle second = open(*pool, {.id = "sc", .parent = parent});
  for (int i = 0; i < 100; ++i) {
    for (const Handle child : {first, second}) ASSERT_NE(take(kept(20'000, child)), nullptr);
  }
  ASSERT_NE(take(kept(kMiB, first)), nullptr);
  Block* tensor = pool->open_growing(first, 4 * kMiB).block;
  std::uint64_t usable = 0;
  ASSERT_EQ(pool->grow(*tensor, first, kMiB, usable), Status::ok);
  EXPECT_EQ(info(first).reserved, 0U) << "the parent has it";
  const std::uint64_t set_aside = pool->stats().reserved;
  EXPECT_EQ(info(parent).reserved, set_aside);
  close(second);
  EXPECT_GT(pool->stats().reserved, set_aside) << "an ended child returns its blocks to it";
  close(first);
  EXPECT_GT(pool->stats().reserved, set_aside) << "the parent may draw";
  EXPECT_EQ(info(parent).reserved, pool->stats().reserved);
  close(parent);
  EXPECT_EQ(pool->stats().reserved, 0U);
  EXPECT_STREQ(pool->verify(), nullptr);
  pool->drop_view(*tensor);
  // What the child had drawn is anybody's when its device leaves, although the parent is not over.
  EXPECT_EQ(ack(first, device), AckResult::released);
  EXPECT_EQ(held(pool->stats()), 0U);
  Block* all = take(bytes(kCapacity));
  ASSERT_NE(all, nullptr);
  pool->drop_view(*all);
  EXPECT_EQ(ack(parent, device), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolBudget, AClosingRequestServesAWaiterFromItsReserve) {
  const std::uint32_t device = *pool->devices().add("sd");
  const Handle request = open(*pool, {.devices = {device}, .reserve = 12 * kMiB});
  Handle next;
  std::thread waiter([&] {
    EXPECT_EQ(
        pool->open_until(test::Opening{.id = "sb", .reserve = 16 * kMiB}.spec(), next, in_seconds(60)),
        Status::ok);
  });
  close(request);
  waiter.join();
  EXPECT_EQ(pool->stats().reserved, 16 * kMiB);
  close(next);
  EXPECT_EQ(ack(request, device), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolBudget, MemoryBeyondTheReserveComesFromTheRest) {
  const Handle request = open(*pool, {.reserve = kMiB});
  Block* large = take(kept(5 * kMiB, request));
  ASSERT_NE(large, nullptr);
  EXPECT_EQ(pool->stats().reserved, 0U);
  close(request);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
