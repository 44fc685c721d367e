// Watching how much of a pool is in use: exact with one thread, whatever adds to the use or takes from it; and with many
// threads the last state is noticed by the threads that made it.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/meeting.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::kept;
using test::kMiB;
using test::make_pool;
using test::open;
using test::Opening;

// A watch of a pool. told(): what the threads that allocated and returned have noticed; it does not look itself.
struct Watched {
  Watched(Pool& of, std::uint64_t up, std::uint64_t down) : pool(of) {
    watch.up = up;
    watch.down = down;
    pool.add_watch(watch);
  }
  ~Watched() { pool.remove_watch(watch); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
  std::string told(bool look = false) {
    std::string all;
    for (PressureChange change; pool.take_change(watch, change, look); high = change.high)
      all += change.high ? '+' : '-';
    return all;
  }
  Pool& pool;
  PressureWatch watch;
  bool high = false;
};

class PoolPressure : public testing::TestWithParam<std::uint64_t> {};

// Blocks of the parameter's size go up through both bounds and down again, twice; each change is noticed by the very call.
TEST_P(PoolPressure, IsExactWithOneThread) {
  const auto pool = make_pool(4 * kMiB);
  Watched low(*pool, kMiB, kMiB / 2);
  Watched high(*pool, 3 * kMiB, 2 * kMiB + 1);
  for (int round = 0; round < 2; ++round) {
    std::vector<Block*> blocks;
    while (pool->used_bytes() + GetParam() <= 4 * kMiB) {
      blocks.push_back(pool->allocate(bytes(GetParam())).block);
      ASSERT_NE(blocks.back(), nullptr);
      const std::uint64_t used = pool->used_bytes();
      const std::uint64_t before = used - blocks.back()->bytes;
      EXPECT_EQ(low.told(), used >= kMiB && before < kMiB ? "+" : "") << used;
      EXPECT_EQ(high.told(), used >= 3 * kMiB && before < 3 * kMiB ? "+" : "") << used;
    }
    while (!blocks.empty()) {
      const std::uint64_t before = pool->used_bytes();
      pool->drop_view(*blocks.back());
      blocks.pop_back();
      const std::uint64_t used = pool->used_bytes();
      EXPECT_EQ(low.told(), used < kMiB / 2 && before >= kMiB / 2 ? "-" : "") << used;
      EXPECT_EQ(high.told(), used < 2 * kMiB + 1 && before >= 2 * kMiB + 1 ? "-" : "") << used;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PoolPressure, testing::Values(64, 4096, 20480, 200 * 1024, kMiB));

TEST(PoolPressureOf, UseThatIsHighAlreadyIsTold) {
  const auto pool = make_pool(4 * kMiB);
  Block* block = pool->allocate(bytes(2 * kMiB)).block;
  Watched a(*pool, kMiB, kMiB);
  EXPECT_EQ(a.told(), "+");
  pool->drop_view(*block);
  EXPECT_EQ(a.told(), "-");
}

TEST(PoolPressureOf, PromisedBytesCount) {
  const auto pool = make_pool(4 * kMiB);
  Watched a(*pool, 2 * kMiB, kMiB);
  Opening how;
  how.reserve = 2 * kMiB;
  const Handle request = open(*pool, how);
  EXPECT_EQ(a.told(), "+");
  (void)pool->allocate(kept(kMiB, request));  // out of what was promised
  EXPECT_EQ(a.told(), "");
  EXPECT_EQ(pool->used_bytes(), 2 * kMiB);
  pool->close_request(request, false);
  EXPECT_EQ(a.told(), "-");
}

TEST(PoolPressureOf, TheLastAckTellsOfWhatTheRequestHeld) {
  const auto pool = make_pool(4 * kMiB);
  Watched a(*pool, 2 * kMiB, kMiB);
  std::uint32_t device = 0;
  device = pool->devices().hold("gpu0").value_or(0);
  Opening how;
  how.devices = {device};
  const Handle request = open(*pool, how);
  for (int i = 0; i < 40; ++i) (void)pool->allocate(kept(64 * 1024, request));
  EXPECT_EQ(a.told(), "+");
  pool->close_request(request, false);
  EXPECT_EQ(a.told(), "");
  EXPECT_EQ(pool->ack(request, device).result, AckResult::released);
  EXPECT_EQ(a.told(), "-");
}

TEST(PoolPressureOf, ATensorThatGrowsAndGivesPartBack) {
  const auto pool = make_pool(4 * kMiB);
  Watched a(*pool, 2 * kMiB, kMiB);
  const Handle request = open(*pool, {});
  Block* block = pool->open_growing(request, 3 * kMiB).block;
  ASSERT_NE(block, nullptr);
  std::uint64_t usable = 0;
  ASSERT_EQ(pool->grow(*block, request, 2 * kMiB, usable), Status::ok);
  EXPECT_EQ(a.told(), "+");
  Pool::Extent extent;
  EXPECT_TRUE(pool->give_part(*block, request, 0, kMiB / 2, 1, extent));
  EXPECT_EQ(a.told(), "-");
  pool->drop_view(*block);
  pool->close_request(request, false);
}

TEST(PoolPressureOf, BlocksReturnedByAnotherThreadCount) {
  const auto pool = make_pool(4 * kMiB);
  Watched a(*pool, 2 * kMiB, kMiB);
  std::vector<Block*> blocks;
  for (int i = 0; i < 600; ++i) blocks.push_back(pool->allocate(bytes(4096)).block);
  EXPECT_EQ(a.told(), "+");
  std::thread([&] {
    for (Block* block : blocks) pool->drop_view(*block);
  }).join();
  EXPECT_EQ(a.told(), "-");
}

TEST(PoolPressureOf, ARemovedWatchHearsNothingAndTheOthersGoOn) {
  const auto pool = make_pool(4 * kMiB);
  Watched a(*pool, kMiB, kMiB);
  Watched b(*pool, 2 * kMiB, 2 * kMiB);
  pool->remove_watch(a.watch);
  EXPECT_TRUE(a.watch.closed());
  Block* block = pool->allocate(bytes(2 * kMiB)).block;
  EXPECT_EQ(a.told(), "");
  EXPECT_EQ(b.told(), "+");
  pool->drop_view(*block);
  EXPECT_EQ(b.told(), "-");
}

TEST(PoolPressureOf, ClosingThePoolEndsWaits) {
  const auto pool = make_pool(4 * kMiB);
  Watched a(*pool, kMiB, kMiB);
  std::thread thread([&] {
    EXPECT_TRUE(pool->wait_change(a.watch, std::numeric_limits<std::int64_t>::max()));
    EXPECT_TRUE(a.watch.closed());
  });
  EXPECT_EQ(pool->close(false), Status::ok);
  thread.join();
  Watched b(*pool, kMiB, kMiB);
  EXPECT_TRUE(b.watch.closed());
}

// Threads allocate and return at random, also blocks of each other, and meet. Nobody has looked meanwhile: the state that was
// noticed is that of the use, but for a 1,024th of the capacity. Without membarrier (under ThreadSanitizer, too) a change at
// the moment of a look may be left to the next.
TEST(PoolPressureOf, TheLastStateIsNoticedByTheThreadsThatMakeIt) {
  constexpr int kThreads = 4;
  constexpr std::uint64_t kCapacity = 16 * kMiB;
  constexpr std::uint64_t kLate = kCapacity / 1024;
  constexpr std::uint64_t kUp = kCapacity / 8 * 3;
  constexpr std::uint64_t kDown = kCapacity / 4;
  const auto pool = make_pool(kCapacity);
  Watched a(*pool, kUp, kDown);
  std::mutex mutex;
  std::vector<Block*> shared;
  int changes = 0;
  test::Meeting meeting(kThreads, [&] {
    changes += static_cast<int>(a.told(!asymmetric_barrier()).size());
    const std::uint64_t used = pool->used_bytes();
    EXPECT_TRUE(a.high || used < kUp + kLate) << used;
    EXPECT_TRUE(!a.high || used + kLate >= kDown) << used;
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t) + 1);
      std::vector<Block*> own;
      for (int round = 0; round < test::rounds(2000); ++round) {
        // In half of the rounds more is returned than allocated.
        const bool up = (round / 16) % 2 == 0;
        for (auto n = random() % 40; n > 0; --n) {
          if (random() % 4 == 0 ? !up : up) {
            const std::uint64_t size = std::uint64_t{64} << (random() % 12);
            Block* block = pool->allocate(bytes(size)).block;
            if (block == nullptr) continue;
            if (random() % 3 == 0) {
              const std::lock_guard lock(mutex);
              shared.push_back(block);
            } else {
              own.push_back(block);
            }
          } else {
            Block* block = nullptr;
            if (random() % 3 == 0) {
              const std::lock_guard lock(mutex);
              if (!shared.empty()) {
                block = shared.back();
                shared.pop_back();
              }
            } else if (!own.empty()) {
              std::swap(own[random() % own.size()], own.back());
              block = own.back();
              own.pop_back();
            }
            if (block != nullptr) pool->drop_view(*block);
          }
        }
        meeting.arrive();
      }
      for (Block* block : own) pool->drop_view(*block);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (Block* block : shared) pool->drop_view(*block);
  EXPECT_EQ(pool->used_bytes(), 0U);
  (void)a.told();
  EXPECT_FALSE(a.high);
  EXPECT_GT(changes, test::rounds(20));
}

}  // namespace
}  // namespace slabpool
