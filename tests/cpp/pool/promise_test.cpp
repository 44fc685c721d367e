// What was promised can be drawn: what a level counts for its promise and beside it, when memory returns and when it moves.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::in_seconds;
using test::kept;
using test::kMiB;
using test::open;

constexpr std::uint64_t kKiB = 1024;

class PromiseTest : public test::PoolFixture {
 protected:
  Handle group(std::uint64_t quota, std::uint64_t reserve = 0) {
    OpenSpec spec;
    spec.id = "tenant";
    spec.quota = quota;
    spec.reserve = reserve;
    Handle made;
    EXPECT_EQ(pool->open_group(spec, made, nullptr), Status::ok);
    return made;
  }
  // In KiB: what the level has left of its quota, and what its promise has left.
  std::uint64_t left(Handle of, std::uint64_t quota) {
    Handle level;
    const std::uint64_t over = pool->over_quota(of, quota, false, level);
    return (quota - over) / kKiB;
  }
  std::uint64_t reserved() { return pool->stats().reserved / kKiB; }
  Block* grown(Handle request, std::uint64_t nbytes) {
    Block* block = pool->open_growing(request, nbytes).block;
    std::uint64_t usable = 0;
    EXPECT_EQ(pool->grow(*block, request, nbytes, usable), Status::ok);
    return block;
  }
  void give_all(Block* block, Handle request) {
    Pool::Extent extent;
    EXPECT_TRUE(pool->give_part(*block, request, 0, 0, 1, extent));
  }
  Pool::Adopted adopt(Block* block, Handle from, Handle to) {
    Pool::Adopted adopted{};
    EXPECT_EQ(pool->adopt(*block, from, to, adopted), Status::ok);
    EXPECT_EQ(pool->verify(), nullptr);
    return adopted;
  }
  Status status_of(std::uint64_t nbytes, Handle request) {
    return pool->allocate(kept(nbytes, request)).status;
  }
};

TEST_F(PromiseTest, WhatIsHeldBesideAPromiseCountsBesideIt) {
  const Handle tenant = group(300 * kKiB);
  const Handle r = open(*pool, {.parent = tenant, .reserve = 256 * kKiB});
  const Handle s = open(*pool, {.parent = tenant});
  Block* large = grown(r, 256 * kKiB);
  ASSERT_NE(take(kept(40 * kKiB, r)), nullptr);
  EXPECT_EQ(left(tenant, 300 * kKiB), 4U);
  give_all(large, r);
  EXPECT_EQ(reserved(), 256U);
  EXPECT_EQ(left(tenant, 300 * kKiB), 4U) << "the promise stands, and 40 KiB are held beside it";
  EXPECT_EQ(status_of(40 * kKiB, s), Status::quota_exceeded);
  ASSERT_NE(take(kept(256 * kKiB, r)), nullptr) << "what was promised";
  EXPECT_EQ(status_of(8 * kKiB, r), Status::quota_exceeded);
  pool->drop_view(*large);
  close(s);
  close(r);
  EXPECT_EQ(left(tenant, 300 * kKiB), 300U);
  close(tenant);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, OneThatMoveInIsBesideThePromiseOfTheOther) {
  const Handle r = open(*pool, {.reserve = 256 * kKiB, .quota = 300 * kKiB});
  const Handle o = open(*pool, {});
  Block* block = take(bytes(200 * kKiB, o));
  EXPECT_EQ(adopt(block, o, r), Pool::Adopted::quota_exceeded) << "256 are promised";
  Block* small = take(bytes(40 * kKiB, o));
  EXPECT_EQ(adopt(small, o, r), Pool::Adopted::ok);
  ASSERT_NE(take(kept(256 * kKiB, r)), nullptr);
  for (Block* one : {block, small}) pool->drop_view(*one);
  close(o);
  close(r);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, WhatMovesWithinAGroupTakesItsPartOfThePromiseAlong) {
  const Handle tenant = group(300 * kKiB);
  const Handle a = open(*pool, {.parent = tenant, .reserve = 256 * kKiB});
  const Handle b = open(*pool, {.parent = tenant});
  Block* block = take(bytes(200 * kKiB, a));
  std::vector<Block*> small;
  for (int i = 0; i < 8; ++i) small.push_back(take(bytes(4 * kKiB, a)));
  EXPECT_EQ(left(tenant, 300 * kKiB), 44U);
  EXPECT_EQ(adopt(block, a, b), Pool::Adopted::ok);
  for (Block* one : small) EXPECT_EQ(adopt(one, a, b), Pool::Adopted::ok);
  EXPECT_EQ(left(tenant, 300 * kKiB), 44U) << "counted once, before and after";
  EXPECT_EQ(reserved(), 24U);
  ASSERT_NE(take(kept(24 * kKiB, a)), nullptr) << "what is left of the promise";
  for (Block* one : small) pool->drop_view(*one);
  pool->drop_view(*block);
  close(b);
  EXPECT_EQ(reserved(), 0U) << "nothing returns to the promise";
  EXPECT_EQ(left(tenant, 300 * kKiB), 300U - 24U);
  close(a);
  close(tenant);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, WhatWasDrawnFromTheGroupsPromiseStaysDrawnFromIt) {
  const Handle tenant = group(256 * kKiB, 256 * kKiB);
  const Handle a = open(*pool, {.parent = tenant, .reserve = 200 * kKiB});
  const Handle b = open(*pool, {.parent = tenant});
  Block* block = take(bytes(180 * kKiB, a));
  EXPECT_EQ(adopt(block, a, b), Pool::Adopted::ok);
  EXPECT_EQ(reserved(), 76U);
  ASSERT_NE(take(kept(20 * kKiB, a)), nullptr);
  ASSERT_NE(take(kept(56 * kKiB, b)), nullptr) << "all of the group's promise can be drawn";
  EXPECT_EQ(status_of(4 * kKiB, b), Status::quota_exceeded);
  pool->drop_view(*block);
  close(b);
  EXPECT_EQ(reserved(), 236U);
  close(a);
  EXPECT_EQ(reserved(), 256U);
  close(tenant);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, FromAChildToItsParentAndIntoASession) {
  const Handle a = open(*pool, {.quota = 300 * kKiB});
  const Handle c = open(*pool, {.parent = a, .reserve = 256 * kKiB});
  Block* block = take(bytes(200 * kKiB, c));
  EXPECT_EQ(adopt(block, c, a), Pool::Adopted::ok);
  pool->drop_view(*block);
  close(a);
  const Handle tenant = group(300 * kKiB);
  Handle session, mine;
  ASSERT_EQ(pool->open_session("k", kMiB, {}, session, tenant), Status::ok);
  const Handle turn = open(*pool, {.parent = tenant, .reserve = 256 * kKiB});
  Block* kept_block = take(kept(200 * kKiB, turn));
  KeepSpec spec;
  spec.id = "k";
  spec.block = kept_block;
  spec.from = turn;
  spec.session = session;
  EXPECT_EQ(pool->keep(spec, mine), Status::ok);
  ASSERT_NE(take(kept(56 * kKiB, turn)), nullptr);
  for (const Handle one : {turn, session, tenant}) close(one);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, AMoveAsksTheWaitersOfAQuota) {
  const Handle tenant = group(kMiB);
  const Handle holder = open(*pool, {.parent = tenant});
  ASSERT_NE(take(kept(512 * kKiB, holder)), nullptr);
  std::atomic<Status> served{Status::exhausted};
  std::thread waits([&] {
    const Handle w = open(*pool, {.parent = tenant});
    served = pool->allocate_until(kept(900 * kKiB, w), in_seconds(10)).status;
    pool->close_request(w, false);
  });
  while (pool->waiting() != 1) std::this_thread::yield();
  const Handle outside = open(*pool, {});
  const Handle inside = open(*pool, {.parent = tenant});
  Block* block = take(bytes(300 * kKiB, outside));
  Pool::Adopted adopted{};
  EXPECT_EQ(pool->adopt(*block, outside, inside, adopted), Status::waiters_ahead);
  EXPECT_NE(adopted, Pool::Adopted::ok);
  EXPECT_EQ(pool->owner_of(*block).generation, outside.generation);
  const Handle other = open(*pool, {.parent = tenant});
  EXPECT_EQ(pool->adopt(*take(kept(1, outside)), outside, other, adopted), Status::waiters_ahead);
  close(holder);
  waits.join();
  EXPECT_EQ(served.load(), Status::ok);
  EXPECT_EQ(adopt(block, outside, inside), Pool::Adopted::ok);
  pool->drop_view(*block);
  for (const Handle one : {other, outside, inside, tenant}) close(one);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, AWaiterHearsThatItsPromiseIsFullAgain) {
  const Handle tenant = group(300 * kKiB);
  const Handle r = open(*pool, {.parent = tenant, .reserve = 256 * kKiB});
  const Handle child = open(*pool, {.parent = r});
  ASSERT_NE(take(kept(256 * kKiB, child)), nullptr);
  std::atomic<Status> served{Status::exhausted};
  std::thread waits([&] { served = pool->allocate_until(kept(200 * kKiB, r), in_seconds(10)).status; });
  while (pool->waiting() != 1) std::this_thread::yield();
  close(child);
  waits.join();
  EXPECT_EQ(served.load(), Status::ok);
  close(r);
  close(tenant);
  expect_all_returned(*pool);
}

TEST_F(PromiseTest, NothingStaysWithARequestThatNoDeviceHolds) {
  const Handle hub = open(*pool, {});
  for (int i = 0; i < 1000; ++i) {
    const Handle from = open(*pool, {});
    const Handle to = open(*pool, {});
    Block* block = take(bytes(64 * kKiB, from));
    EXPECT_EQ(adopt(block, from, hub), Pool::Adopted::ok);
    EXPECT_EQ(adopt(block, hub, to), Pool::Adopted::ok);
    pool->drop_view(*block);
    close(from);
    close(to);
  }
  EXPECT_EQ(pool->stats().retained + pool->stats().live, 0U);
  close(hub);
  expect_all_returned(*pool);
}

// Requests of two promises inside a group's, in threads: no draw within a promise is refused, no quota is exceeded, and all
// is there again at the end.
TEST_F(PromiseTest, ThreadsDrawMoveAndReturn) {
  const Handle tenant = group(4 * kMiB, 2 * kMiB);
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < test::rounds(300); ++i) {
      const Handle a = open(*pool, {.parent = tenant, .reserve = 256 * kKiB});
      const Handle b = open(*pool, {.parent = tenant});
      std::vector<Block*> mine;
      for (std::uint64_t drawn = 0; drawn < 256;) {
        const std::uint64_t size = std::min<std::uint64_t>(256 - drawn, random() % 2 == 0 ? 4 : 132);
        Block* block = pool->allocate(bytes(size * kKiB, a)).block;
        ASSERT_NE(block, nullptr) << drawn;
        mine.push_back(block);
        drawn += size;
      }
      for (Block* block : mine) {
        Pool::Adopted adopted{};
        if (random() % 2 == 0) {
          EXPECT_EQ(pool->adopt(*block, a, b, adopted), Status::ok);
        }
        pool->drop_view(*block);
      }
      pool->close_request(random() % 2 == 0 ? a : b, false);
      pool->close_request(a, false);
      pool->close_request(b, false);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 3; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(reserved(), 2048U);
  EXPECT_EQ(left(tenant, 4 * kMiB), 2048U);
  close(tenant);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
