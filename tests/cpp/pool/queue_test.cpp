// Waiting in a pool: order by priority and arrival, one wake-up for each waiter that is served, what the queue does not
// stand in the way of, and every resource that a caller can wait for.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/loop.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::in_seconds;
using test::kept;
using test::kMiB;
using test::Loop;
using test::make_pool;
using test::open;
using test::Opening;
using test::rounds;

constexpr std::int64_t kFar = 60;
constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

// A waiter of an event loop that wants `nbytes`.
struct Wish {
  Wish(Pool& of, Loop& loop, std::uint64_t nbytes, std::int32_t priority = 0, Handle request = {})
      : pool(of), spec(bytes(nbytes, request)) {
    waiter.target = &loop.target;
    waiter.priority = priority;
    waiter.nbytes = nbytes;
    waiter.request = {request.slot, request.generation};
  }
  bool attempt() {
    const Allocation made = pool.allocate(spec, waiter);
    block = made.block;
    status = made.status;
    return block != nullptr;
  }
  // Enters the queue; true if it was served at once.
  bool wait() {
    if (attempt()) return true;
    EXPECT_TRUE(pool.may_come(status, waiter));
    pool.enter(waiter);
    while (pool.take_again(waiter)) {
      if (attempt()) return true;
    }
    return false;
  }

  Pool& pool;
  AllocateSpec spec;
  Waiter waiter;
  Block* block = nullptr;
  Status status = Status::ok;
};

TEST(PoolQueue, AThousandWaitersCostOneWakeUpEach) {
  const auto pool = make_pool(kMiB);
  Loop loop;
  constexpr std::size_t kWaiters = 1000;
  Block* all = pool->allocate(bytes(kMiB)).block;
  std::vector<std::unique_ptr<Wish>> wishes;
  for (std::size_t i = 0; i < kWaiters; ++i) {
    wishes.push_back(std::make_unique<Wish>(*pool, loop, kMiB));
    ASSERT_FALSE(wishes.back()->wait());
  }
  EXPECT_EQ(pool->waiting(), kWaiters);
  const std::uint64_t before = pool->wakeups();
  for (std::size_t i = 0; i < kWaiters; ++i) {
    pool->drop_view(*all);
    ASSERT_EQ(pool->take_woken(loop.target), &wishes[i]->waiter) << "in order of arrival";
    ASSERT_EQ(pool->take_woken(loop.target), nullptr);
    ASSERT_TRUE(wishes[i]->attempt());
    all = wishes[i]->block;
    pool->leave(wishes[i]->waiter);
  }
  EXPECT_EQ(pool->wakeups() - before, kWaiters);
  pool->drop_view(*all);
  expect_all_returned(*pool);
}

TEST(PoolQueue, WhatComesBackIsSetAsideForTheFirst) {
  const auto pool = make_pool(kMiB);
  Loop loop;
  Block* half = pool->allocate(bytes(kMiB / 2)).block;
  Block* quarter = pool->allocate(bytes(kMiB / 4)).block;
  Wish large(*pool, loop, kMiB);
  ASSERT_FALSE(large.wait());
  EXPECT_EQ(pool->allocate(bytes(1000)).status, Status::waiters_ahead) << "a quarter is free";
  Handle none;
  EXPECT_EQ(pool->open(Opening{.reserve = 1000}.spec(), none), Status::waiters_ahead);
  EXPECT_EQ(pool->open_until(Opening{.reserve = 1000}.spec(), none, now_ns() + 1'000'000),
            Status::waiters_ahead);
  // The priority of an opening counts, with and without a waiter.
  ASSERT_EQ(pool->open(Opening{.reserve = 1000, .priority = 1}.spec(), none), Status::ok);
  pool->close_request(none, false);
  ASSERT_EQ(pool->open_until(Opening{.reserve = 1000, .priority = 1}.spec(), none, kForever),
            Status::ok);
  pool->close_request(none, false);
  const Handle request = open(*pool, {});  // needs no memory
  EXPECT_EQ(pool->allocate(bytes(1000, request)).status, Status::waiters_ahead);
  EXPECT_EQ(pool->allocate_until(bytes(1000), now_ns() + 1'000'000).status, Status::waiters_ahead);
  Wish urgent(*pool, loop, 1000, 1);
  ASSERT_TRUE(urgent.attempt()) << "a higher priority passes";
  pool->drop_view(*half);
  EXPECT_EQ(pool->take_woken(loop.target), nullptr);
  pool->drop_view(*urgent.block);
  pool->drop_view(*quarter);
  EXPECT_EQ(pool->take_woken(loop.target), &large.waiter);
  EXPECT_TRUE(large.attempt());
  pool->leave(large.waiter);
  pool->drop_view(*large.block);
  Block* again = pool->allocate(bytes(1000)).block;
  ASSERT_NE(again, nullptr) << "the queue is empty";
  pool->drop_view(*again);
  pool->close_request(request, false);
  expect_all_returned(*pool);
}

TEST(PoolQueue, WhatWasPromisedToARequestIsNotSetAside) {
  const auto pool = make_pool(kMiB);
  Loop loop;
  const Handle request = open(*pool, {.reserve = kMiB / 2});
  Block* rest = pool->allocate(bytes(kMiB / 2)).block;
  Wish large(*pool, loop, kMiB);
  ASSERT_FALSE(large.wait());
  EXPECT_EQ(pool->allocate(kept(1000, request)).status, Status::ok);
  EXPECT_EQ(pool->allocate(kept(kMiB / 4, request)).status, Status::ok);
  EXPECT_EQ(pool->allocate(kept(kMiB / 4, request)).status, Status::waiters_ahead)
      << "the promise is used up";
  Block* tensor = pool->open_growing(request, kMiB).block;
  ASSERT_NE(tensor, nullptr);
  std::uint64_t usable = 0;
  EXPECT_EQ(pool->grow(*tensor, request, kMiB / 8, usable), Status::ok);
  EXPECT_EQ(pool->grow(*tensor, request, kMiB / 2, usable), Status::waiters_ahead);
  pool->drop_view(*tensor);
  pool->leave(large.waiter);
  pool->close_request(request, false);
  pool->drop_view(*rest);
  expect_all_returned(*pool);
}

TEST(PoolQueue, AQuotaIsWaitedFor) {
  const auto pool = make_pool(4 * kMiB);
  const Handle tenant = open(*pool, {.quota = kMiB});
  const Handle first = open(*pool, {.parent = tenant});
  const Handle second = open(*pool, {.parent = tenant});
  ASSERT_EQ(pool->allocate(kept(700'000, first)).status, Status::ok);
  EXPECT_EQ(pool->allocate_until(kept(2 * kMiB, second), kForever).status, Status::quota_exceeded)
      << "it can never be served, so it is refused at once";
  std::thread other([&] {
    while (pool->waiting() == 0) std::this_thread::yield();
    EXPECT_EQ(pool->allocate(kept(1000, second)).status, Status::waiters_ahead) << "of the same tenant";
    Block* free = pool->allocate(bytes(1000)).block;
    EXPECT_NE(free, nullptr) << "no caller has the memory";
    pool->drop_view(*free);
    pool->close_request(first, false);
  });
  EXPECT_EQ(pool->allocate_until(kept(700'000, second), in_seconds(kFar)).status, Status::ok);
  other.join();
  pool->close_request(tenant, false);
  expect_all_returned(*pool);
}

TEST(PoolQueue, AddressesAreWaitedFor) {
  const auto pool = make_pool(kMiB);
  const Handle holder = open(*pool, {});
  const Handle late = open(*pool, {});
  std::vector<Block*> tensors;
  const std::uint64_t most = pool->stats().address_space / 8;
  for (;;) {
    const Allocation made = pool->open_growing(holder, most);
    if (made.block == nullptr) break;
    tensors.push_back(made.block);
  }
  Waiter waiter;
  const Allocation refused = pool->open_growing(late, most, &waiter);
  ASSERT_EQ(refused.status, Status::no_addresses);
  EXPECT_TRUE(pool->may_come(refused.status, waiter));
  std::thread other([&] {
    while (pool->waiting() == 0) std::this_thread::yield();
    EXPECT_EQ(pool->open_growing(late, most).status, Status::waiters_ahead);
    for (Block* tensor : tensors) pool->drop_view(*tensor);
    pool->close_request(holder, false);
  });
  pool->enter(waiter);
  Allocation made;
  while (made.block == nullptr && pool->wait(waiter, in_seconds(kFar)))
    made = pool->open_growing(late, most, &waiter);
  other.join();
  pool->leave(waiter);
  ASSERT_NE(made.block, nullptr);
  pool->drop_view(*made.block);
  pool->close_request(late, false);
  expect_all_returned(*pool);
}

TEST(PoolQueue, AWaiterIsCancelledByWhatItDependsOn) {
  const auto pool = make_pool(kMiB);
  Loop loop;
  Block* all = pool->allocate(bytes(kMiB)).block;
  const Handle parent = open(*pool, {});
  const Handle child = open(*pool, {.parent = parent});
  Handle session;
  ASSERT_EQ(pool->open_session("k", kMiB, {}, session), Status::ok);
  Wish in_child(*pool, loop, 1000, 0, child);
  ASSERT_FALSE(in_child.wait());
  Waiter turn;
  turn.target = &loop.target;
  turn.session = {session.slot, session.generation};
  Handle none;
  ASSERT_EQ(pool->open(Opening{.reserve = 1000}.spec(), none, &turn), Status::waiters_ahead);
  pool->enter(turn);
  pool->close_request(session, false);
  EXPECT_EQ(pool->take_woken(loop.target), &turn);
  EXPECT_TRUE(turn.cancelled());
  EXPECT_FALSE(in_child.waiter.cancelled());
  pool->close_request(parent, true);
  EXPECT_EQ(pool->take_woken(loop.target), &in_child.waiter);
  EXPECT_TRUE(in_child.waiter.cancelled());
  EXPECT_FALSE(in_child.attempt());
  EXPECT_EQ(in_child.status, Status::request_closed);
  pool->leave(turn);
  pool->leave(in_child.waiter);
  pool->drop_view(*all);
  expect_all_returned(*pool);
}

TEST(PoolQueue, WaitersAreReported) {
  const auto pool = make_pool(kMiB);
  Loop loop;
  Block* all = pool->allocate(bytes(kMiB)).block;
  const Handle request = open(*pool, {.id = "srequest"});
  Wish first(*pool, loop, 1000, 0, request);
  Wish second(*pool, loop, 2000, 3);
  second.waiter.id = "sopening";
  second.waiter.where = {"here.py", 12};
  ASSERT_FALSE(first.wait());
  ASSERT_FALSE(second.wait());
  const std::vector<WaiterInfo> waiters = pool->waiters();
  ASSERT_EQ(waiters.size(), 2U);
  EXPECT_EQ(waiters[0].id, "srequest");
  EXPECT_EQ(waiters[0].nbytes, 1000U);
  EXPECT_EQ(waiters[0].resource, Resource::memory);
  EXPECT_GE(waiters[0].waited_ns, waiters[1].waited_ns);
  EXPECT_EQ(waiters[1].id, "sopening");
  EXPECT_EQ(waiters[1].priority, 3);
  EXPECT_EQ(waiters[1].where.line, 12);
  const Ahead ahead = pool->ahead_of(first.waiter);
  EXPECT_EQ(ahead.count, 1U);
  ASSERT_EQ(ahead.first.size(), 1U);
  EXPECT_EQ(ahead.first[0].id, "sopening");
  pool->leave(first.waiter);
  pool->leave(second.waiter);
  pool->close_request(request, false);
  pool->drop_view(*all);
  expect_all_returned(*pool);
}

TEST(PoolQueue, RequestsThatHoldAndWaitForEachOtherAreRecognised) {
  const auto pool = make_pool(4 * kMiB);
  Loop loop;
  std::vector<Handle> requests;
  std::vector<std::unique_ptr<Wish>> wishes;
  for (int i = 0; i < 4; ++i) {
    requests.push_back(open(*pool, {}));
    ASSERT_EQ(pool->allocate(kept(kMiB, requests.back())).status, Status::ok);
  }
  EXPECT_FALSE(pool->in_circle());
  for (const Handle request : requests) {
    EXPECT_FALSE(pool->in_circle()) << "one of the holders does not wait";
    wishes.push_back(std::make_unique<Wish>(*pool, loop, kMiB / 2, 0, request));
    ASSERT_FALSE(wishes.back()->wait());
  }
  EXPECT_TRUE(pool->in_circle());
  pool->leave(wishes[2]->waiter);
  EXPECT_FALSE(pool->in_circle());
  pool->leave(wishes[0]->waiter);
  pool->leave(wishes[1]->waiter);
  pool->leave(wishes[3]->waiter);
  for (const Handle request : requests) pool->close_request(request, false);
  expect_all_returned(*pool);
}

// The first waiter needs what a request behind it holds, so that request may pass.
TEST(PoolQueue, ARequestPassesAWaiterThatNeedsWhatItHolds) {
  const auto pool = make_pool(4 * kMiB);
  Loop loop;
  const Handle holder = open(*pool, {.reserve = 2 * kMiB});
  Wish large(*pool, loop, 3 * kMiB);
  ASSERT_FALSE(large.wait());
  EXPECT_EQ(pool->allocate(bytes(kMiB)).status, Status::waiters_ahead) << "it holds nothing";
  Wish more(*pool, loop, 3 * kMiB, 0, holder);
  ASSERT_TRUE(more.wait()) << "2 MiB of its reserve, and 1 MiB of what is free";
  pool->leave(more.waiter);
  EXPECT_EQ(pool->take_woken(loop.target), nullptr);
  pool->drop_view(*more.block);
  pool->close_request(holder, false);
  EXPECT_EQ(pool->take_woken(loop.target), &large.waiter);
  ASSERT_TRUE(large.attempt());
  pool->leave(large.waiter);
  pool->drop_view(*large.block);
  expect_all_returned(*pool);
}

TEST(PoolQueue, ARequestPassesAWaiterThatNeedsWhatItHoldsOfTheirQuota) {
  const auto pool = make_pool(8 * kMiB);
  Loop loop;
  const Handle tenant = open(*pool, {.quota = 4 * kMiB});
  const Handle one = open(*pool, {.parent = tenant});
  const Handle two = open(*pool, {.parent = tenant});
  ASSERT_EQ(pool->allocate(kept(2 * kMiB, one)).status, Status::ok);
  Wish large(*pool, loop, 3 * kMiB, 0, two);
  ASSERT_FALSE(large.wait());
  Wish more(*pool, loop, kMiB, 0, one);
  ASSERT_TRUE(more.wait());
  Wish none(*pool, loop, 1000, 0, two);
  ASSERT_FALSE(none.wait()) << "it holds nothing that the first needs";
  pool->leave(more.waiter);
  pool->drop_view(*more.block);
  pool->close_request(one, false);
  EXPECT_EQ(pool->take_woken(loop.target), &large.waiter);
  ASSERT_TRUE(large.attempt());
  pool->leave(large.waiter);
  pool->leave(none.waiter);
  pool->drop_view(*large.block);
  pool->close_request(tenant, false);
  expect_all_returned(*pool);
}

TEST(PoolQueue, OfSeveralHoldersTheOneThatCanBeServedPasses) {
  const auto pool = make_pool(6 * kMiB);
  Loop loop;
  const Handle one = open(*pool, {});
  const Handle two = open(*pool, {});
  ASSERT_EQ(pool->allocate(kept(2 * kMiB, one)).status, Status::ok);
  ASSERT_EQ(pool->allocate(kept(2 * kMiB, two)).status, Status::ok);
  Wish large(*pool, loop, 3 * kMiB);
  ASSERT_FALSE(large.wait());
  Wish small(*pool, loop, kMiB, 0, one);
  ASSERT_FALSE(small.wait()) << "the other request may let go, which is enough for the first";
  EXPECT_EQ(pool->take_woken(loop.target), nullptr);
  Wish medium(*pool, loop, 3 * kMiB - 1, 0, two);
  ASSERT_FALSE(medium.wait()) << "2 MiB are free";
  EXPECT_EQ(pool->take_woken(loop.target), &small.waiter) << "now it is for one of the two to go on";
  ASSERT_TRUE(small.attempt());
  pool->leave(small.waiter);
  pool->drop_view(*small.block);
  pool->close_request(one, false);
  EXPECT_EQ(pool->take_woken(loop.target), &large.waiter);
  ASSERT_TRUE(large.attempt());
  pool->leave(large.waiter);
  pool->drop_view(*large.block);
  EXPECT_EQ(pool->take_woken(loop.target), &medium.waiter);
  ASSERT_TRUE(medium.attempt());
  pool->leave(medium.waiter);
  pool->drop_view(*medium.block);
  pool->close_request(two, false);
  expect_all_returned(*pool);
}

// Threads of three priorities, blocks of different sizes, quotas and reserves: all are served, and none waits for ever.
TEST(PoolQueue, AMixedCrowdIsServed) {
  const auto pool = make_pool(2 * kMiB);
  const Handle tenant = open(*pool, {.quota = kMiB});
  std::atomic<int> unserved{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < rounds(1500); ++i) {
        if (t % 3 == 0) {
          Handle request;
          if (pool->open_until(Opening{.reserve = kMiB}.spec(), request, in_seconds(kFar)) !=
              Status::ok) {
            ++unserved;
            continue;
          }
          if (pool->allocate(kept(kMiB / 2, request)).status != Status::ok) ++unserved;
          pool->close_request(request, false);
        } else if (t % 3 == 1) {
          const Handle child = open(*pool, {.parent = tenant});
          if (pool->allocate_until(kept(600'000, child), in_seconds(kFar)).status != Status::ok)
            ++unserved;
          pool->close_request(child, false);
        } else {
          const Allocation made =
              pool->allocate_until(bytes(i % 7 == 0 ? 1'900'000 : 1000), in_seconds(kFar));
          if (made.block == nullptr) {
            ++unserved;
          } else {
            pool->drop_view(*made.block);
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(unserved.load(), 0);
  pool->close_request(tenant, false);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
