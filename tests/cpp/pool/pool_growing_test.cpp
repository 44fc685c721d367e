// Tensors that grow: one address for life, bytes committed on demand, and all of them returned once.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_adds_up;
using test::expect_all_returned;
using test::held;
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
  EXPECT_EQ(pool->grow_until(*block, request, 8 * kMiB, usable, test::in_seconds(120)), Status::ok);
  EXPECT_EQ(usable, 8 * kMiB);
  giver.join();
  pool->drop_view(*block);
  close(request);
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
