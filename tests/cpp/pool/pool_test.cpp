// A whole pool, one thread at a time: memory without a request, running out, figures, closing.
#include "slabpool/pool/pool.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kept;
using test::kMiB;
using test::make_pool;
using test::open;

class PoolTest : public test::PoolFixture {};

// ---- making pools

TEST(PoolCreate, RefusesCapacitiesItCannotServe) {
  for (const std::uint64_t capacity :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{kMostSystemPage - 1}, ~std::uint64_t{0}}) {
    PoolOptions options;
    options.capacity = capacity;
    Error error;
    EXPECT_EQ(Pool::create(options, error), nullptr) << capacity;
    EXPECT_EQ(error.status, Status::invalid_argument) << capacity;
  }
}

TEST(PoolCreate, SaysThatTheSystemRefusesANode) {
  PoolOptions options;
  options.capacity = kMiB;
  options.numa_node = 1000;
  Error error;
  EXPECT_EQ(Pool::create(options, error), nullptr);
  EXPECT_EQ(error.status, Status::system_refused);
  EXPECT_NE(error.system_errno, 0);
}

TEST(PoolCreate, TheSmallestPoolWorks) {
  const auto pool = make_pool(kMostSystemPage);
  const Allocation made = pool->allocate(bytes(kMostSystemPage));
  ASSERT_NE(made.block, nullptr);
  EXPECT_EQ(pool->allocate(bytes(1)).status, Status::exhausted);
  pool->drop_view(*made.block);
  const Allocation small = pool->allocate(bytes(1));
  ASSERT_NE(small.block, nullptr);
  pool->drop_view(*small.block);
  expect_all_returned(*pool);
}

TEST(PoolCreate, AddressSpaceIsManyTimesTheCapacity) {
  const auto pool = make_pool(64 * kMiB);
  EXPECT_GE(pool->stats().address_space, 16 * 64 * kMiB);
  EXPECT_EQ(pool->stats().committed, 0U);
}

// ---- memory without a request

TEST_F(PoolTest, MemoryLivesWithItsViews) {
  Block* block = take(bytes(100'000));
  EXPECT_EQ(pool->stats().live, block->bytes);
  pool->hold_view(*block);
  pool->drop_view(*block);
  EXPECT_EQ(pool->stats().live, block->bytes);
  pool->drop_view(*block);
  expect_all_returned(*pool);
}

TEST_F(PoolTest, EverySizeIsServedWithItsBytes) {
  std::mt19937_64 random(5);
  std::vector<std::uint64_t> sizes{0, 1, 63, 64, 65, 1024, 1025, 131'072, 131'073, kMiB, kCapacity};
  for (int i = 0; i < 300; ++i) sizes.push_back(random() % (std::uint64_t{1} << (random() % 24)));
  for (const std::uint64_t size : sizes) {
    Block* block = take(bytes(size));
    ASSERT_NE(block, nullptr) << size;
    EXPECT_GE(block->bytes, size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data) % kDefaultAlign, 0U);
    if (size > 1024) {
      EXPECT_LE((block->bytes - size) * 8, size) << size;
    }
    std::memset(block->data, 0x5a, size);
    pool->drop_view(*block);
  }
  expect_all_returned(*pool);
}

// A block may be fresh, from a cache, or from the next bin: at most an eighth of it is wasted.
TEST_F(PoolTest, ReusedBlocksWasteNoMore) {
  std::mt19937_64 random(6);
  std::vector<Block*> out;
  for (int i = 0; i < 5000; ++i) {
    const std::uint64_t size = 1025 + random() % (std::uint64_t{1} << (11 + random() % 9));
    const Allocation made = pool->allocate(bytes(size));
    if (made.block != nullptr) {
      ASSERT_LE((made.block->bytes - size) * 8, size) << size << " in " << made.block->bytes;
      out.push_back(made.block);
    }
    while (!out.empty() && (made.block == nullptr || random() % 2 == 0)) {
      const std::size_t victim = random() % out.size();
      pool->drop_view(*out[victim]);
      out[victim] = out.back();
      out.pop_back();
      if (random() % 2 == 0) break;
    }
  }
  for (Block* block : out) pool->drop_view(*block);
  expect_all_returned(*pool);
}

TEST_F(PoolTest, AlignsToAnyPowerOfTwoUpToTwoMegabytes) {
  for (const std::uint64_t size :
       {1, 64, 100, 4096, 5000, 20'000, 131'072, 131'073, 300'000, 3'000'000}) {
    for (std::uint64_t align = 1; align <= kMaxAlign; align *= 2) {
      AllocateSpec spec = bytes(size);
      spec.align = align;
      Block* one = take(spec);
      Block* two = take(spec);
      for (Block* block : {one, two}) {
        ASSERT_NE(block, nullptr);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data) % align, 0U) << size << " to " << align;
        EXPECT_GE(block->bytes, size);
        std::memset(block->data, 1, size);
      }
      pool->drop_view(*one);
      pool->drop_view(*two);
      // Blocks from a cache must be aligned too.
      Block* again = take(spec);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(again->data) % align, 0U);
      pool->drop_view(*again);
    }
  }
  expect_all_returned(*pool);
}

TEST_F(PoolTest, RefusesInvalidAlignments) {
  for (const std::uint64_t align :
       {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{96}, 2 * kMaxAlign, ~std::uint64_t{0}}) {
    AllocateSpec spec = bytes(100);
    spec.align = align;
    const Allocation made = pool->allocate(spec);
    EXPECT_EQ(made.block, nullptr) << align;
    EXPECT_EQ(made.status, Status::invalid_argument) << align;
  }
  EXPECT_EQ(pool->stats().allocations, 0U);
}

TEST_F(PoolTest, ZeroedMemoryIsZeroAfterAnyReuse) {
  for (const std::uint64_t size : {100, 5000, 200'000}) {
    for (int i = 0; i < 5; ++i) {
      AllocateSpec spec = bytes(size);
      spec.zero = true;
      Block* block = take(spec);
      EXPECT_TRUE(test::all_bytes(block->data, 0, size));
      std::memset(block->data, 0x5a, block->bytes);
      pool->drop_view(*block);
    }
  }
}

TEST_F(PoolTest, FindsTheBlockOfAPointer) {
  Block* small = take(bytes(100));
  Block* large = take(bytes(3'000'000));
  EXPECT_EQ(pool->find(small->data + 99), small);
  EXPECT_EQ(pool->find(large->data), large);
  EXPECT_EQ(pool->find(large->data + 2'999'999), large);
  int other = 0;
  EXPECT_EQ(pool->find(&other), nullptr);
  pool->drop_view(*small);
  pool->drop_view(*large);
}

// ---- running out

TEST_F(PoolTest, RunningOutIsAnAnswerAndChangesNothing) {
  std::vector<Block*> all;
  Allocation made;
  while ((made = pool->allocate(bytes(kMiB))).block != nullptr) all.push_back(made.block);
  EXPECT_EQ(made.status, Status::exhausted);
  EXPECT_EQ(all.size(), kCapacity / kMiB);
  const Stats before = pool->stats();
  EXPECT_EQ(pool->allocate(bytes(1)).status, Status::exhausted);
  const Stats after = pool->stats();
  EXPECT_EQ(after.exhaustions, before.exhaustions) << "only the caller that gives up counts";
  pool->note_exhausted({}, 1);
  EXPECT_EQ(pool->stats().exhaustions, before.exhaustions + 1);
  EXPECT_EQ(after.live, before.live);
  EXPECT_EQ(after.committed, before.committed);
  EXPECT_EQ(after.allocations, before.allocations);
  pool->drop_view(*all.back());
  all.pop_back();
  Block* block = take(bytes(kMiB));
  ASSERT_NE(block, nullptr);
  all.push_back(block);
  for (Block* one : all) pool->drop_view(*one);
  expect_all_returned(*pool);
}

TEST_F(PoolTest, MoreThanTheCapacityIsTooLargeForEver) {
  for (const std::uint64_t size :
       {kCapacity + 1, kCapacity * 2, ~std::uint64_t{0}, ~std::uint64_t{0} - 100}) {
    EXPECT_EQ(pool->allocate(bytes(size)).status, Status::too_large) << size;
    EXPECT_EQ(pool->allocate_until(bytes(size), test::in_seconds(100)).status, Status::too_large)
        << size;
  }
}

TEST(PoolCapacity, SizesThatNeverFitAreTooLargeForAnyCapacity) {
  // Capacities that are not a multiple of a page: some blocks would fit by their bytes but not by their
  // pages.
  for (std::uint64_t capacity = kMostSystemPage; capacity < 20 * kMostSystemPage; capacity += 1000) {
    const auto pool = make_pool(capacity);
    for (std::uint64_t size = 1000; size <= capacity; size += 3000) {
      const Allocation made = pool->allocate(bytes(size));
      if (made.block == nullptr) {
        EXPECT_EQ(made.status, Status::too_large) << size << " of " << capacity;
      } else {
        pool->drop_view(*made.block);
      }
    }
    expect_all_returned(*pool);
  }
}

TEST_F(PoolTest, FreeMemoryOfOneSizeServesEveryOther) {
  for (const std::uint64_t size : {100, 5000, 70'000, 400'000, 3'000'000, 9'000'000}) {
    std::vector<Block*> all;
    Allocation made;
    while ((made = pool->allocate(bytes(size))).block != nullptr) all.push_back(made.block);
    // At most a sixteenth is lost to the ends of slabs, and less than one block to the end of the pool.
    std::uint64_t total = 0;
    for (const Block* block : all) total += block->bytes;
    EXPECT_GE(total + all.front()->bytes + kCapacity / 16, kCapacity) << size;
    for (Block* block : all) pool->drop_view(*block);
  }
  expect_all_returned(*pool);
}

TEST(PoolSystem, ARefusalOfTheSystemIsItsOwnStatus) {
  auto owned = std::make_unique<test::FakeMemory>(std::size_t{64} << 20);
  test::FakeMemory& memory = *owned;
  PoolOptions options;
  options.capacity = 8 * kMiB;
  Pool pool(options, std::move(owned));
  memory.refuse_commits_after = 0;
  for (const std::uint64_t size : {std::uint64_t{100}, kMiB}) {
    EXPECT_EQ(pool.allocate(bytes(size)).status, Status::system_refused);
  }
  EXPECT_EQ(pool.stats().committed, 0U);
  memory.refuse_commits_after = -1;
  const Allocation made = pool.allocate(bytes(kMiB));
  ASSERT_NE(made.block, nullptr);
  pool.drop_view(*made.block);
  expect_all_returned(pool);
}

// ---- reports

TEST_F(PoolTest, RequestsAreListedOldestFirst) {
  const Handle first = open(*pool, {.id = "sfirst", .devices = {3, 40}});
  const Handle second = open(*pool, {.id = "ssecond"});
  const Handle child = open(*pool, {.id = "sfirst", .devices = {40}, .parent = first});
  (void)take(kept(1000, second));
  const std::vector<RequestInfo> all = pool->requests(0);
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0].id, "sfirst");
  EXPECT_EQ(all[0].pending, (std::vector<std::uint32_t>{3, 40}));
  EXPECT_STREQ(all[0].opened_at.file, "test.cpp");
  EXPECT_EQ(all[0].opened_at.line, 7U);
  EXPECT_EQ(all[1].id, "ssecond");
  EXPECT_GE(all[1].nbytes, 1000U);
  EXPECT_EQ(all[2].parent_generation, first.generation);
  EXPECT_GE(all[0].age_ns, all[1].age_ns);
  EXPECT_TRUE(pool->requests(std::int64_t{3600} * 1'000'000'000).empty());
  (void)ack(first, 3);
  (void)ack(first, 40);
  close(first);
  close(second);
  EXPECT_TRUE(pool->released(child));
  expect_all_returned(*pool);
}

TEST_F(PoolTest, PeaksAreRemembered) {
  Block* large = take(bytes(10 * kMiB));
  pool->drop_view(*large);
  (void)pool->trim();
  Block* small = take(bytes(1000));
  const Stats s = pool->stats();
  EXPECT_GE(s.peak_live, 10 * kMiB);
  EXPECT_GE(s.peak_committed, 10 * kMiB);
  EXPECT_LT(s.live, kMiB);
  pool->drop_view(*small);
}

// ---- closing

TEST_F(PoolTest, CloseRefusesWhileAnythingIsHeld) {
  const Handle request = open(*pool, {.devices = {0}});
  EXPECT_EQ(pool->close(false), Status::pool_busy);
  close(request);
  EXPECT_EQ(pool->close(false), Status::pool_busy) << "a device holds a request";
  Block* block = take(bytes(100));
  (void)ack(request, 0);
  EXPECT_EQ(pool->close(false), Status::pool_busy) << "a view lives";
  EXPECT_FALSE(pool->closed());
  pool->drop_view(*block);
  EXPECT_EQ(pool->close(false), Status::ok);
  EXPECT_TRUE(pool->closed());
  EXPECT_EQ(pool->close(false), Status::ok);
  EXPECT_EQ(pool->stats().committed, 0U);
  EXPECT_EQ(pool->allocate(bytes(100)).status, Status::pool_closed);
  Handle handle;
  EXPECT_EQ(pool->open(test::Opening{}.spec(), handle), Status::pool_closed);
}

TEST_F(PoolTest, ForceEndsRequestsButNeverAView) {
  const Handle request = open(*pool, {.devices = {0, 100}});
  const Handle child = open(*pool, {.devices = {100}, .parent = request});
  (void)take(kept(100'000, request));
  (void)take(kept(100'000, child));
  Block* viewed = take(bytes(100'000, child));
  Block* alone = take(bytes(5000));
  std::memset(viewed->data, 0x5a, 100'000);
  std::memset(alone->data, 0x5b, 5000);
  EXPECT_EQ(pool->close(true), Status::ok);
  EXPECT_TRUE(pool->released(request));
  EXPECT_TRUE(pool->released(child));
  EXPECT_EQ(ack(request, 0), AckResult::late);
  EXPECT_EQ(pool->stats().retained, viewed->bytes);
  EXPECT_EQ(pool->stats().live, alone->bytes);
  EXPECT_TRUE(test::all_bytes(viewed->data, 0x5a, 100'000));
  EXPECT_TRUE(test::all_bytes(alone->data, 0x5b, 5000));
  pool->drop_view(*viewed);
  pool->drop_view(*alone);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
