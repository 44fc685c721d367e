// Tensors that grow: one address for life, bytes committed on demand, and all of them returned once.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_adds_up;
using test::expect_all_returned;
using test::held;
using test::in_seconds;
using test::kept;
using test::kMiB;
using test::open;

class PoolGrowing : public test::PoolFixture {
 protected:
  Block* growing(Handle request, std::uint64_t most) {
    const Allocation made = pool->open_growing(request, most);
    EXPECT_EQ(made.status, Status::ok);
    return made.block;
  }
  Status grow(Block* block, Handle request, std::uint64_t nbytes) {
    std::uint64_t usable = 7;
    const Status status = pool->grow(*block, request, nbytes, usable);
    EXPECT_EQ(usable, status == Status::request_closed ? 7 : block->bytes);
    if (status == Status::ok) {
      EXPECT_GE(usable, nbytes);
    }
    expect_adds_up(pool->stats());
    const char* wrong = pool->verify();
    EXPECT_EQ(wrong, nullptr) << wrong;
    return status;
  }
  // The caller has the block's one view.
  bool give(Block* block, Handle request, std::uint64_t from, std::uint64_t to) {
    const bool given = pool->give_part(*block, request, from, to, 1, left);
    expect_adds_up(pool->stats());
    EXPECT_STREQ(pool->verify(), nullptr);
    return given;
  }

  Pool::Extent left;
};

TEST_F(PoolGrowing, AddressesAreForTheLimitAndBytesForTheLength) {
  const Handle request = open(*pool, {});
  Block* block = growing(request, 64 * kMiB);  // more than the capacity: only what is committed counts
  std::byte* data = block->data;
  EXPECT_EQ(held(pool->stats()), 0U);
  for (std::uint64_t n = 1; n <= 3 * kMiB; n += n / 3 + 5000) {
    ASSERT_EQ(grow(block, request, n), Status::ok);
    EXPECT_EQ(block->data, data);
    std::memset(data, 0x5A, n);
    const std::uint64_t pages = pages_for(n) << kPageBits;
    EXPECT_GE(block->bytes, pages);
    EXPECT_LE(block->bytes, pages + pages / 8);
    EXPECT_EQ(held(pool->stats()), block->bytes);
    EXPECT_EQ(info(request).nbytes, block->bytes);
  }
  EXPECT_EQ(pool->find(data + 3 * kMiB / 2), block);
  pool->drop_view(*block);
  EXPECT_GT(held(pool->stats()), 0U) << "the request holds it";
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, ARefusalChangesNothing) {
  const Handle request = open(*pool, {});
  Block* block = growing(request, 64 * kMiB);
  ASSERT_EQ(grow(block, request, 2 * kMiB), Status::ok);
  Block* other = take(bytes(10 * kMiB));
  const Stats before = pool->stats();
  const std::uint64_t was = block->bytes;
  EXPECT_EQ(grow(block, request, 7 * kMiB), Status::exhausted);
  EXPECT_EQ(grow(block, request, 17 * kMiB), Status::too_large);
  EXPECT_EQ(grow(block, request, 65 * kMiB), Status::invalid_argument);
  EXPECT_EQ(block->bytes, was);
  EXPECT_EQ(pool->stats().live, before.live);
  ASSERT_EQ(grow(block, request, 6 * kMiB), Status::ok)
      << "the last bytes are used, without the extra eighth";
  EXPECT_EQ(pool->stats().live, kCapacity);
  pool->drop_view(*other);
  pool->drop_view(*block);
  close(request);
  EXPECT_EQ(pool->open_growing(request, kMiB).status, Status::request_closed);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, ItStopsGrowingWhenTheHostHasLeft) {
  const std::uint32_t device = *pool->devices().add("sd");
  const Handle request = open(*pool, {.devices = {device}});
  Block* block = growing(request, 8 * kMiB);
  ASSERT_EQ(grow(block, request, kMiB), Status::ok);
  close(request);
  EXPECT_EQ(grow(block, request, 2 * kMiB), Status::request_closed);
  std::memset(block->data, 1, kMiB);
  EXPECT_EQ(ack(request, device), AckResult::released);
  EXPECT_EQ(pool->stats().retained, block->bytes);
  std::memset(block->data, 2, kMiB);
  pool->drop_view(*block);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, TheNextRequestGrowsIntoCommittedPages) {
  std::uint64_t committed = 0;
  for (int round = 0; round < 20; ++round) {
    const Handle request = open(*pool, {});
    std::vector<Block*> blocks;
    for (int i = 0; i < 4; ++i) blocks.push_back(growing(request, 8 * kMiB));
    for (std::uint64_t n = 1; n <= 2 * kMiB; n += 50'000) {
      for (Block* block : blocks) ASSERT_EQ(grow(block, request, n), Status::ok);
    }
    for (Block* block : blocks) pool->drop_view(*block);
    close(request);
    if (round == 0) committed = pool->stats().peak_committed;
  }
  EXPECT_LE(pool->stats().peak_committed, committed + committed / 8);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, CommittedPagesAheadServeOtherRequests) {
  const Handle first = open(*pool, {});
  Block* block = growing(first, 12 * kMiB);
  ASSERT_EQ(grow(block, first, 12 * kMiB), Status::ok);
  pool->drop_view(*block);
  close(first);
  // The next tensor starts before 12 MiB that are committed, and needs none of them yet.
  const Handle request = open(*pool, {});
  block = growing(request, 12 * kMiB);
  EXPECT_EQ(pool->stats().committed, 12 * kMiB);
  EXPECT_EQ(pool->stats().cached, 12 * kMiB);
  Block* all = take(bytes(kCapacity - kPageSize));
  ASSERT_NE(all, nullptr);
  EXPECT_EQ(grow(block, request, kPageSize), Status::ok);
  EXPECT_EQ(grow(block, request, kPageSize + 1), Status::exhausted);
  pool->drop_view(*all);
  EXPECT_EQ(pool->trim(), kCapacity - kPageSize);
  ASSERT_EQ(grow(block, request, kMiB), Status::ok);
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, ItCountsForTheQuotaAndDrawsFromTheReserve) {
  const Handle request = open(*pool, {.reserve = 6 * kMiB, .quota = 8 * kMiB});
  Block* block = growing(request, 64 * kMiB);
  Block* other = take(bytes(10 * kMiB));
  ASSERT_NE(other, nullptr);
  ASSERT_EQ(grow(block, request, kMiB), Status::ok);
  EXPECT_EQ(pool->stats().reserved + block->bytes, 6 * kMiB);
  ASSERT_EQ(grow(block, request, 6 * kMiB), Status::ok) << "the reserve is there";
  EXPECT_EQ(pool->stats().reserved, 0U);
  EXPECT_EQ(grow(block, request, 6 * kMiB + 1), Status::exhausted);
  pool->drop_view(*other);
  ASSERT_EQ(grow(block, request, 8 * kMiB), Status::ok);
  EXPECT_EQ(grow(block, request, 8 * kMiB + 1), Status::quota_exceeded);
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, RunningOutOfAddressesIsAnAnswer) {
  const Handle request = open(*pool, {});
  std::vector<Block*> blocks;
  const std::uint64_t addresses = pool->stats().address_space;
  for (;;) {
    const Allocation made = pool->open_growing(request, addresses / 8);
    if (made.block == nullptr) {
      EXPECT_EQ(made.status, Status::no_addresses);
      break;
    }
    blocks.push_back(made.block);
  }
  EXPECT_EQ(blocks.size(), 8U);
  EXPECT_EQ(pool->open_growing(request, addresses + 1).status, Status::no_addresses);
  pool->cancel_growing(*blocks.back(), request);
  EXPECT_EQ(info(request).live_views, 7U);
  EXPECT_EQ(pool->open_growing(request, addresses / 8).status, Status::ok);
  EXPECT_EQ(pool->close(true), Status::ok);
}

TEST_F(PoolGrowing, AnOrdinaryBlockDoesNotGrow) {
  const Handle request = open(*pool, {});
  Block* block = take(bytes(kMiB, request));
  EXPECT_EQ(grow(block, request, 2 * kMiB), Status::invalid_argument);
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, ItWaitsForMemory) {
  const Handle request = open(*pool, {});
  Block* block = growing(request, 64 * kMiB);
  Block* other = take(bytes(12 * kMiB));
  std::atomic<bool> waiting{false};
  std::thread giver([&] {
    while (!waiting.load(std::memory_order_acquire)) std::this_thread::yield();
    pool->drop_view(*other);
  });
  std::uint64_t usable = 0;
  EXPECT_EQ(pool->grow_until(*block, request, 8 * kMiB, usable, now_ns()), Status::exhausted);
  waiting.store(true, std::memory_order_release);
  EXPECT_EQ(pool->grow_until(*block, request, 8 * kMiB, usable, test::in_seconds(60)), Status::ok);
  EXPECT_EQ(usable, 8 * kMiB);
  giver.join();
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

// ---- giving a part back

TEST_F(PoolGrowing, ItGivesPagesAtBothEndsBack) {
  const Handle request = open(*pool, {});
  Block* block = growing(request, 64 * kMiB);
  std::byte* data = block->data;
  ASSERT_EQ(grow(block, request, 4 * kMiB), Status::ok);
  std::memset(data, 0x5A, 4 * kMiB);
  const Stats before = pool->stats();
  ASSERT_TRUE(give(block, request, kMiB + kPageSize - 1, 3 * kMiB - 1));
  EXPECT_EQ(left.from, kMiB) << "whole pages";
  EXPECT_EQ(left.to, 3 * kMiB);
  EXPECT_EQ(block->data, data + kMiB);
  EXPECT_EQ(block->bytes, 2 * kMiB);
  EXPECT_EQ(info(request).nbytes, 2 * kMiB);
  EXPECT_EQ(held(pool->stats()), 2 * kMiB);
  EXPECT_EQ(pool->stats().committed, before.committed - (held(before) - 2 * kMiB)) << "at once";
  EXPECT_EQ(pool->stats().frees, before.frees) << "it is the same tensor";
  EXPECT_TRUE(test::all_bytes(data + kMiB, 0x5A, 2 * kMiB));
  ASSERT_TRUE(give(block, request, kMiB, 3 * kMiB)) << "nothing more";
  EXPECT_EQ(block->bytes, 2 * kMiB);
  // Offsets count from the first byte that it ever had.
  std::uint64_t usable = 0;
  ASSERT_EQ(pool->grow(*block, request, 3 * kMiB + 1, usable), Status::ok);
  EXPECT_EQ(usable, kMiB + block->bytes);
  std::memset(data + 3 * kMiB, 0x5B, usable - 3 * kMiB);
  EXPECT_EQ(pool->find(data + 2 * kMiB), block);
  EXPECT_EQ(pool->verify(), nullptr);
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, AWindowMovesThroughMoreThanTheCapacity) {
  const Handle request = open(*pool, {.quota = 3 * kMiB});
  Block* block = growing(request, 64 * kMiB);
  std::byte* data = block->data;
  for (std::uint64_t at = 0; at + kMiB <= 64 * kMiB; at += kMiB / 2) {
    std::uint64_t usable = 0;
    ASSERT_EQ(pool->grow(*block, request, at + kMiB, usable), Status::ok) << at;
    std::memset(data + at, 0x5A, kMiB);
    ASSERT_TRUE(give(block, request, at + kMiB / 2, usable));
    ASSERT_LE(held(pool->stats()), 2 * kMiB);
    ASSERT_LE(pool->stats().committed, 3 * kMiB);
  }
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, WhatItGivesBackIsTheQuotasAndTheReserves) {
  const Handle request = open(*pool, {.reserve = 4 * kMiB, .quota = 6 * kMiB});
  Block* block = growing(request, 64 * kMiB);
  ASSERT_EQ(grow(block, request, 6 * kMiB), Status::ok);
  EXPECT_EQ(info(request).reserved, 0U);
  ASSERT_TRUE(give(block, request, 3 * kMiB, 6 * kMiB));
  EXPECT_EQ(info(request).reserved, 3 * kMiB);
  EXPECT_EQ(pool->stats().reserved, 3 * kMiB);
  ASSERT_TRUE(give(block, request, 5 * kMiB, 6 * kMiB));
  EXPECT_EQ(info(request).reserved, 4 * kMiB) << "not more than it was promised";
  EXPECT_NE(pool->allocate(kept(5 * kMiB, request)).block, nullptr) << "the quota has room again";
  EXPECT_EQ(pool->allocate(kept(1, request)).status, Status::quota_exceeded);
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, NothingGoesWhileItCouldBeRead) {
  const std::uint32_t device = *pool->devices().add("sd");
  const Handle request = open(*pool, {.devices = {device}});
  Block* block = growing(request, 8 * kMiB);
  ASSERT_EQ(grow(block, request, 2 * kMiB), Status::ok);
  EXPECT_FALSE(give(block, request, kMiB, 2 * kMiB)) << "a device holds the request";
  EXPECT_EQ(ack(request, device), AckResult::pending);
  pool->hold_view(*block);
  EXPECT_FALSE(give(block, request, kMiB, 2 * kMiB)) << "there is a view that the caller does not know";
  EXPECT_EQ(held(pool->stats()), block->bytes);
  pool->drop_view(*block);
  EXPECT_TRUE(give(block, request, kMiB, 2 * kMiB));
  EXPECT_EQ(block->bytes, kMiB);
  EXPECT_FALSE(give(block, open(*pool, {.id = "other"}), kMiB, kMiB)) << "another's";
  close(request);
  EXPECT_FALSE(give(block, request, kMiB, kMiB)) << "it is over, and the view has the rest";
  EXPECT_EQ(pool->stats().retained, kMiB);
  pool->drop_view(*block);
}

TEST_F(PoolGrowing, OfASessionNothingGoesWhileADeviceOfATurnHolds) {
  Handle session;
  ASSERT_EQ(pool->open_session("s", 8 * kMiB, {}, session), Status::ok);
  const std::uint32_t device = *pool->devices().add("sd");
  const Handle turn = open(*pool, {.devices = {device}});
  Block* block = growing(turn, 8 * kMiB);
  ASSERT_EQ(grow(block, turn, 2 * kMiB), Status::ok);
  Handle shelf;
  KeepSpec spec;
  spec.id = "kept";
  spec.block = block;
  spec.from = turn;
  spec.session = session;
  ASSERT_EQ(pool->keep(spec, shelf), Status::ok);
  EXPECT_FALSE(give(block, turn, kMiB, 2 * kMiB)) << "it is the session's";
  EXPECT_FALSE(give(block, shelf, kMiB, 2 * kMiB)) << "the turn's device may read it";
  EXPECT_EQ(ack(turn, device), AckResult::pending);
  Pool::Kept figures;
  ASSERT_TRUE(pool->kept(session, figures));
  EXPECT_EQ(figures.bytes, block->bytes);
  EXPECT_TRUE(give(block, shelf, kMiB, 2 * kMiB)) << "the turn is open, but the host alone holds it";
  ASSERT_TRUE(pool->kept(session, figures));
  EXPECT_EQ(figures.bytes, kMiB);
  EXPECT_EQ(pool->kept_bytes(), kMiB);
  close(turn);
  EXPECT_TRUE(give(block, shelf, 3 * kMiB / 2, 2 * kMiB));
  EXPECT_EQ(pool->kept_bytes(), kMiB / 2);
  pool->drop_view(*block);
  close(shelf);
  close(session);
  expect_all_returned(*pool);
}

TEST_F(PoolGrowing, WhatItGivesBackServesAWaiter) {
  const Handle request = open(*pool, {});
  Block* block = growing(request, 16 * kMiB);
  ASSERT_EQ(grow(block, request, 15 * kMiB), Status::ok);
  std::thread waiter([&] {
    const Allocation made = pool->allocate_until(bytes(8 * kMiB), in_seconds(60));
    ASSERT_EQ(made.status, Status::ok);
    pool->drop_view(*made.block);
  });
  EXPECT_TRUE(give(block, request, 10 * kMiB, 15 * kMiB));
  waiter.join();
  pool->drop_view(*block);
  close(request);
  expect_all_returned(*pool);
}

TEST(PoolGrowingDebug, GivenPagesAreNeitherScrubbedNorWatched) {
  PoolOptions options;
  options.capacity = 16 * kMiB;
  options.debug = 2;
  options.scrub_on_release = true;
  const auto pool = test::make_pool(options);
  const Handle request = open(*pool, {});
  Block* block = pool->open_growing(request, 8 * kMiB).block;
  std::uint64_t usable = 0;
  ASSERT_EQ(pool->grow(*block, request, 2 * kMiB, usable), Status::ok);
  std::memset(block->data, 0x5A, 2 * kMiB);
  Pool::Extent left;
  ASSERT_TRUE(pool->give_part(*block, request, kMiB, 3 * kMiB / 2, 1, left));
  pool->drop_view(*block);
  pool->close_request(request, false);
  EXPECT_TRUE(pool->corruptions().empty());
  expect_all_returned(*pool);
}

// Two threads give parts of a tensor back and grow it, one ends the request.
TEST_F(PoolGrowing, GivingBackWhileTheRequestEnds) {
  for (int round = 0; round < test::rounds(200); ++round) {
    const Handle request = open(*pool, {.reserve = 2 * kMiB, .quota = 12 * kMiB});
    Block* block = growing(request, 32 * kMiB);
    std::atomic<int> ready{0};
    const auto start = [&] {
      ready.fetch_add(1, std::memory_order_acq_rel);
      while (ready.load(std::memory_order_acquire) < 3) std::this_thread::yield();
    };
    std::thread grower([&] {
      start();
      std::uint64_t usable = 0;
      for (std::uint64_t n = 1; n <= 6 * kMiB; n += 90'000) {
        if (pool->grow(*block, request, n, usable) != Status::ok) return;
      }
    });
    std::thread giver([&] {
      start();
      Pool::Extent now;
      for (std::uint64_t n = 0; n <= 5 * kMiB; n += 50'000) {
        if (!pool->give_part(*block, request, n, n + kMiB, 1, now)) return;
      }
    });
    start();
    for (int i = 0; i < round % 20; ++i) std::this_thread::yield();
    close(request);
    grower.join();
    giver.join();
    pool->drop_view(*block);
    ASSERT_EQ(held(pool->stats()), 0U);
  }
  expect_all_returned(*pool);
}

// Two threads grow a tensor, one ends the request, one reads: sizes stay consistent, and all memory
// returns once.
TEST_F(PoolGrowing, GrowingWhileTheRequestEnds) {
  const std::uint32_t device = *pool->devices().add("sd");
  for (int round = 0; round < test::rounds(200); ++round) {
    const Handle request = open(*pool, {.devices = {device}, .quota = 12 * kMiB});
    Block* blocks[] = {growing(request, 4 * kMiB), growing(request, 4 * kMiB)};
    std::atomic<int> ready{0};
    const auto start = [&] {
      ready.fetch_add(1, std::memory_order_acq_rel);
      while (ready.load(std::memory_order_acquire) < 4) std::this_thread::yield();
    };
    const auto grower = [&](int first) {
      start();
      for (std::uint64_t n = 1; n <= 3 * kMiB; n += 70'000) {
        std::uint64_t usable = 0;
        Block* block = blocks[(first + static_cast<int>(n)) & 1];
        const Status status = pool->grow(*block, request, n, usable);
        if (status == Status::request_closed) return;
        ASSERT_EQ(status, Status::ok);
        ASSERT_GE(usable, n);
      }
    };
    std::thread one(grower, 0);
    std::thread two(grower, 1);
    std::thread looker([&] {
      start();
      for (int i = 0; i < 20; ++i) expect_adds_up(pool->stats());
    });
    start();
    for (int i = 0; i < round % 20; ++i) std::this_thread::yield();
    close(request);
    (void)pool->ack(request, device);
    one.join();
    two.join();
    looker.join();
    for (Block* block : blocks) pool->drop_view(*block);
    const Stats s = pool->stats();
    ASSERT_EQ(held(s), 0U);
  }
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
