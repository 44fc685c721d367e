// A tensor changes requests: its bytes and charges move at once, and it goes back with the last of the two requests.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::held;
using test::kept;
using test::make_pool;
using test::open;

using Adopted = Pool::Adopted;

class Adopt : public test::PoolFixture {
 protected:
  Adopted adopt(Block* block, Handle from, Handle to) {
    Adopted adopted{};
    EXPECT_EQ(pool->adopt(*block, from, to, adopted), Status::ok);
    test::expect_adds_up(pool->stats());
    return adopted;
  }
  std::uint64_t bytes_of(Handle handle) {
    RequestInfo info;
    return pool->describe(handle, info) ? info.nbytes : 0;
  }
  // A block of the request, with a view for the caller.
  Block* viewed(std::uint64_t nbytes, Handle request) { return take(bytes(nbytes, request)); }
};

TEST_F(Adopt, TheBlockIsTheOtherRequestsAndReturnsWithIt) {
  const Handle a = open(*pool, {.id = "a"}), b = open(*pool, {.id = "b"});
  Block* block = viewed(5000, a);
  std::memset(block->data, 7, 5000);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  pool->drop_view(*block);
  EXPECT_EQ(bytes_of(a), 0U);
  EXPECT_EQ(bytes_of(b), block->bytes);
  EXPECT_EQ(pool->owner_of(*block).generation, b.generation);
  close(a);
  EXPECT_TRUE(pool->released(a));
  EXPECT_EQ(held(pool->stats()), block->bytes);
  EXPECT_EQ(block->data[4999], std::byte{7});
  close(b);
  expect_all_returned(*pool);
}

TEST_F(Adopt, DevicesOfTheFirstRequestKeepTheBytes) {
  const Handle a = open(*pool, {.id = "a", .devices = {0}}),
               b = open(*pool, {.id = "b", .devices = {1}});
  Block* block = viewed(5000, a);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  pool->drop_view(*block);
  close(a);
  close(b);
  EXPECT_EQ(ack(b, 1), AckResult::released);
  EXPECT_EQ(pool->stats().retained, block->bytes) << "device 0 may read it";
  EXPECT_EQ(ack(a, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(Adopt, AlongAChainItWaitsForAll) {
  const Handle a = open(*pool, {.id = "a", .devices = {0}}),
               b = open(*pool, {.id = "b", .devices = {0}}),
               c = open(*pool, {.id = "c", .devices = {0}});
  Block* block = viewed(5000, a);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  EXPECT_EQ(adopt(block, b, c), Adopted::ok);
  pool->drop_view(*block);
  for (const Handle one : {a, b, c}) close(one);
  EXPECT_EQ(ack(c, 0), AckResult::released);
  EXPECT_EQ(ack(a, 0), AckResult::released);
  EXPECT_EQ(held(pool->stats()), block->bytes);
  EXPECT_EQ(ack(b, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(Adopt, BackAndForthLeavesOneViewAtMost) {
  const Handle a = open(*pool, {.id = "a", .devices = {0}}),
               b = open(*pool, {.id = "b", .devices = {0}});
  Block* block = viewed(5000, a);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(adopt(block, a, b), Adopted::ok);
    EXPECT_EQ(block->live_views(), 2U);
    EXPECT_EQ(adopt(block, b, a), Adopted::ok);
    EXPECT_EQ(block->live_views(), 2U) << "b's devices may read it";
  }
  pool->drop_view(*block);
  close(a);
  EXPECT_EQ(ack(a, 0), AckResult::released);
  EXPECT_EQ(pool->stats().retained, block->bytes);
  close(b);
  EXPECT_EQ(ack(b, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(Adopt, ChargesMoveExactly) {
  const Handle a = open(*pool, {.id = "a", .quota = 1 << 20}),
               b = open(*pool, {.id = "b", .quota = 64 << 10});
  Block* block = viewed(40 << 10, a);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  EXPECT_EQ(pool->allocate(kept(40 << 10, b)).status, Status::quota_exceeded);
  Block* other = viewed(40 << 10, a);
  const std::uint64_t of_a = bytes_of(a), of_b = bytes_of(b);
  EXPECT_EQ(adopt(other, a, b), Adopted::quota_exceeded);
  EXPECT_EQ(bytes_of(a), of_a);
  EXPECT_EQ(bytes_of(b), of_b);
  // What a refusal gave back to it, a still pays for.
  EXPECT_EQ(pool->allocate(kept((1 << 20) - (40 << 10) + 1, a)).status, Status::quota_exceeded);
  EXPECT_EQ(pool->allocate(kept((1 << 20) - (40 << 10), a)).status, Status::ok);
  EXPECT_EQ(adopt(block, b, a), Adopted::quota_exceeded);
  pool->drop_view(*block);
  pool->drop_view(*other);
  close(a);
  close(b);
  expect_all_returned(*pool);
}

TEST_F(Adopt, RequestsOfOneQuotaNeverCountTheBlockTwice) {
  const Handle parent = open(*pool, {.id = "p", .quota = 64 << 10});
  const Handle child = open(*pool, {.id = "p", .parent = parent});
  Block* block = viewed(64 << 10, child);
  EXPECT_EQ(adopt(block, child, parent), Adopted::ok);
  close(child);
  EXPECT_TRUE(pool->released(child));
  EXPECT_EQ(pool->allocate(kept(1, parent)).status, Status::quota_exceeded);
  pool->drop_view(*block);
  close(parent);
  expect_all_returned(*pool);
}

TEST_F(Adopt, RefusalsChangeNothing) {
  const Handle a = open(*pool, {.id = "a", .devices = {0}}),
               b = open(*pool, {.id = "b", .devices = {0}});
  Block* block = viewed(5000, a);
  EXPECT_EQ(adopt(block, a, a), Adopted::not_its);
  EXPECT_EQ(adopt(block, b, a), Adopted::not_its) << "b never had it";
  close(b);
  EXPECT_EQ(adopt(block, a, b), Adopted::closed);
  EXPECT_EQ(ack(b, 0), AckResult::released);
  EXPECT_EQ(adopt(block, a, b), Adopted::closed);
  const Handle c = open(*pool, {.id = "c"});
  close(a);
  EXPECT_EQ(ack(a, 0), AckResult::released);
  EXPECT_EQ(adopt(block, a, c), Adopted::released) << "only the view keeps it";
  EXPECT_EQ(block->live_views(), 1U);
  pool->drop_view(*block);
  close(c);
  expect_all_returned(*pool);
}

TEST_F(Adopt, OfARequestThatTheHostHasClosed) {
  const Handle a = open(*pool, {.id = "a", .devices = {0}}), b = open(*pool, {.id = "b"});
  Block* block = viewed(5000, a);
  close(a);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  pool->drop_view(*block);
  EXPECT_EQ(ack(a, 0), AckResult::released);
  EXPECT_EQ(bytes_of(b), block->bytes);
  close(b);
  expect_all_returned(*pool);
}

TEST_F(Adopt, WhatASessionKeepsStays) {
  const Handle a = open(*pool, {.id = "a"}), b = open(*pool, {.id = "b"});
  Handle session, mine;
  ASSERT_EQ(pool->open_session("k", 1 << 20, {"test.cpp", 1}, session), Status::ok);
  Block* block = viewed(5000, a);
  KeepSpec spec;
  spec.id = "k-name";
  spec.block = block;
  spec.from = a;
  spec.session = session;
  ASSERT_EQ(pool->keep(spec, mine), Status::ok);
  EXPECT_EQ(adopt(block, mine, b), Adopted::not_its);
  // What a request adopted, a session can keep.
  Block* other = viewed(5000, a);
  EXPECT_EQ(adopt(other, a, b), Adopted::ok);
  spec.block = other;
  spec.from = b;
  Handle second;
  ASSERT_EQ(pool->keep(spec, second), Status::ok);
  pool->drop_view(*block);
  pool->drop_view(*other);
  for (const Handle one : {second, mine, session, b}) close(one);
  EXPECT_EQ(held(pool->stats()), block->bytes) << "no device of the first may read the other one";
  close(a);
  expect_all_returned(*pool);
}

TEST_F(Adopt, AGrowingTensorGrowsInTheOtherName) {
  const Handle a = open(*pool, {.id = "a", .devices = {0}, .quota = 64 << 10}),
               b = open(*pool, {.id = "b", .quota = 1 << 20});
  const Allocation made = pool->open_growing(a, 1 << 20);
  ASSERT_EQ(made.status, Status::ok);
  Block* block = made.block;
  std::uint64_t usable = 0;
  ASSERT_EQ(pool->grow(*block, a, 60 << 10, usable), Status::ok);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  EXPECT_EQ(pool->grow(*block, a, 512 << 10, usable), Status::quota_exceeded);
  EXPECT_EQ(pool->grow(*block, b, 512 << 10, usable), Status::ok);
  Pool::Extent left;
  EXPECT_FALSE(pool->give_part(*block, b, 0, 4096, 1, left)) << "device 0 may read all of it";
  close(a);
  EXPECT_EQ(ack(a, 0), AckResult::released);
  EXPECT_TRUE(pool->give_part(*block, b, 0, 4096, 1, left));
  EXPECT_EQ(left.to, 4096U);
  pool->drop_view(*block);
  close(b);
  expect_all_returned(*pool);
}

// The block moves between two requests while both end: by acks, by the host, by views. It returns once.
TEST_F(Adopt, RacesWithTheEndOfBoth) {
  constexpr int kRounds = 3000;
  std::atomic<int> round{-1};
  std::atomic<int> done{0};
  struct Round {
    Handle a, b;
    Block* block = nullptr;
  } now;
  const auto worker = [&](auto work) {
    return std::thread([&, work] {
      for (int i = 0; i < kRounds; ++i) {
        while (round.load(std::memory_order_acquire) < i) std::this_thread::yield();
        work(now);
        done.fetch_add(1, std::memory_order_release);
      }
    });
  };
  std::thread threads[] = {
      worker([&](const Round& r) {
        Adopted adopted{};
        (void)pool->adopt(*r.block, r.a, r.b, adopted);
        if (adopted == Adopted::ok) (void)pool->adopt(*r.block, r.b, r.a, adopted);
        pool->drop_view(*r.block);
      }),
      worker([&](const Round& r) {
        (void)pool->ack(r.a, 0);
        pool->close_request(r.b, true);
      }),
      worker([&](const Round& r) {
        pool->close_request(r.a, false);
        (void)pool->ack(r.b, 0);
      }),
  };
  for (int i = 0; i < kRounds; ++i) {
    now.a = open(*pool, {.id = "a", .devices = {0}, .quota = 1 << 20});
    now.b = open(*pool, {.id = "b", .devices = {0}, .quota = 1 << 20});
    now.block = viewed(4096, now.a);
    done.store(0, std::memory_order_relaxed);
    round.store(i, std::memory_order_release);
    while (done.load(std::memory_order_acquire) != 3) std::this_thread::yield();
    const Stats s = pool->stats();
    ASSERT_EQ(held(s), 0U) << i;
    ASSERT_EQ(s.requests_open + s.requests_draining, 0U) << i;
  }
  for (std::thread& thread : threads) thread.join();
  expect_all_returned(*pool);
}

TEST_F(Adopt, IsLogged) {
  PoolOptions options;
  options.capacity = kCapacity;
  options.events = 64;
  pool = make_pool(options);
  const Handle a = open(*pool, {.id = "a"}), b = open(*pool, {.id = "b"});
  Block* block = viewed(5000, a);
  EXPECT_EQ(adopt(block, a, b), Adopted::ok);
  int found = 0;
  for (const Event& event : pool->events())
    found += event.kind == EventKind::adopt && event.generation == b.generation ? 1 : 0;
  EXPECT_EQ(found, 1);
  pool->drop_view(*block);
  close(a);
  close(b);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
