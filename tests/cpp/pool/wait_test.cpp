// Waiting for memory and for the end of requests. A lost wake-up shows as a thread that waits until its
// deadline, which is far away, so each wait must succeed.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/meeting.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::dawdle;
using test::expect_all_returned;
using test::in_seconds;
using test::kept;
using test::kMiB;
using test::make_pool;
using test::open;
using test::rounds;

constexpr std::int64_t kFar = 120;  // seconds, far more than a wait takes on a busy machine
constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

TEST(Wait, AtOnceIfThereIsRoom) {
  const auto pool = make_pool(kMiB);
  const Allocation made = pool->allocate_until(bytes(1000), now_ns() - 1);
  ASSERT_NE(made.block, nullptr);
  pool->drop_view(*made.block);
}

TEST(Wait, EndsAtTheDeadline) {
  const auto pool = make_pool(kMiB);
  Block* all = pool->allocate(bytes(kMiB)).block;
  const std::int64_t before = now_ns();
  const Allocation made = pool->allocate_until(bytes(1), before + 20'000'000);
  EXPECT_EQ(made.status, Status::exhausted);
  EXPECT_GE(now_ns() - before, 20'000'000);
  EXPECT_EQ(pool->stats().exhaustions, 0U) << "the caller counts, once it gives up";
  pool->note_exhausted({}, 1);
  EXPECT_EQ(pool->stats().exhaustions, 1U);
  const Handle request = open(*pool, {.devices = {0}});
  EXPECT_FALSE(pool->wait_released(request, now_ns() + 1'000'000));
  pool->close_request(request, false);
  (void)pool->ack(request, 0);
  EXPECT_TRUE(pool->wait_released(request, now_ns() - 1));
  pool->drop_view(*all);
  expect_all_returned(*pool);
}

TEST(Wait, ImpossibleSizesAreNotWaitedFor) {
  const auto pool = make_pool(kMiB);
  EXPECT_EQ(pool->allocate_until(bytes(2 * kMiB), kForever).status, Status::too_large);
  const Handle request = open(*pool, {.quota = 1000});
  EXPECT_EQ(pool->allocate_until(kept(2000, request), kForever).status, Status::quota_exceeded);
  pool->close_request(request, false);
  EXPECT_EQ(pool->allocate_until(kept(100, request), kForever).status, Status::request_closed);
}

// After a failure another thread may wait for this one for ever, so the process ends.
void stop_if_failed() {
  if (testing::Test::HasFailure()) std::abort();
}

// The whole pool goes back and forth between two threads: one frees it just as the other begins to wait.
void ping_pong(Pool& pool, std::uint64_t size, int total) {
  Block* current = pool.allocate(bytes(size)).block;
  ASSERT_NE(current, nullptr);
  test::Meeting start(2);
  test::Meeting end(2);
  std::thread other([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      start.arrive();
      dawdle(random, 17);
      pool.drop_view(*current);
      end.arrive();
    }
  });
  std::mt19937_64 random(2);
  for (int round = 0; round < total; ++round) {
    start.arrive();
    dawdle(random);
    const Allocation made = pool.allocate_until(bytes(size), in_seconds(kFar));
    end.arrive();
    EXPECT_NE(made.block, nullptr) << "round " << round;
    stop_if_failed();
    current = made.block;
  }
  other.join();
  pool.drop_view(*current);
  expect_all_returned(pool);
}

TEST(Wait, NoWakeUpIsLostForLargeBlocks) {
  const auto pool = make_pool(512 * kMiB);
  ping_pong(*pool, 300 * kMiB, rounds(20'000));  // too large for any cache
}

TEST(Wait, NoWakeUpIsLostForBlocksThatGoToAnotherThreadsInbox) {
  const auto pool = make_pool(kMiB);
  ping_pong(*pool, 600'000, rounds(40'000));
}

// The freeing thread allocated the block itself, so the block goes into that thread's own list without a
// locked instruction.
TEST(Wait, NoWakeUpIsLostForBlocksInAThreadsOwnList) {
  const auto pool = make_pool(16 * kMiB);
  std::atomic<Block*> mine{nullptr};
  test::Meeting start(2);
  test::Meeting end(2);
  const int total = rounds(40'000);
  std::thread other([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      // 600 KB is within the thread's own share, and leaves less than 600 KB of the pool.
      Block* fill = pool->allocate(bytes(15 * kMiB)).block;
      Block* block = pool->allocate(bytes(600'000)).block;
      if (fill == nullptr || block == nullptr) ADD_FAILURE();
      start.arrive();
      dawdle(random, 17);
      pool->drop_view(*block);
      end.arrive();
      pool->drop_view(*fill);
    }
  });
  std::mt19937_64 random(2);
  for (int round = 0; round < total; ++round) {
    start.arrive();
    dawdle(random);
    const Allocation made = pool->allocate_until(bytes(600'000), in_seconds(kFar));
    EXPECT_NE(made.block, nullptr) << "round " << round;
    stop_if_failed();
    pool->drop_view(*made.block);
    end.arrive();
  }
  other.join();
  expect_all_returned(*pool);
}

// Many threads, few blocks of different sizes: all are served in the end.
TEST(Wait, ACrowdIsServed) {
  const auto pool = make_pool(2 * kMiB);
  std::atomic<int> unserved{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int i = 0; i < rounds(10'000); ++i) {
        const std::uint64_t size = random() % 4 == 0 ? 1'900'000 : 1 + random() % 900'000;
        const Allocation made = pool->allocate_until(bytes(size), in_seconds(kFar));
        if (made.block == nullptr) {
          ++unserved;
          continue;
        }
        dawdle(random);
        pool->drop_view(*made.block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(unserved.load(), 0);
  expect_all_returned(*pool);
}

TEST(Wait, AReserveIsServedWhenARequestEnds) {
  const auto pool = make_pool(4 * kMiB);
  const int total = rounds(20'000);
  test::Meeting start(2);
  std::atomic<std::uint64_t> shared_slot{0};
  std::atomic<std::uint64_t> shared_generation{0};
  std::thread acker([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      start.arrive();
      dawdle(random, 17);
      const Handle handle{static_cast<std::uint32_t>(shared_slot.load()), shared_generation.load()};
      if (pool->ack(handle, 0).result != AckResult::released) ADD_FAILURE();
    }
  });
  std::mt19937_64 random(2);
  Handle current = open(*pool, {.devices = {0}, .reserve = 3 * kMiB});
  for (int round = 0; round < total; ++round) {
    // Half of the reserve is used by blocks, the other half is only promised.
    (void)pool->allocate(kept(kMiB + kMiB / 2, current));
    pool->close_request(current, false);
    shared_slot.store(current.slot);
    shared_generation.store(current.generation);
    start.arrive();
    dawdle(random);
    Handle next;
    const Status status = pool->open_until(test::Opening{.devices = {0}, .reserve = 3 * kMiB}.spec(),
                                           next, in_seconds(kFar));
    if (status != Status::ok) ADD_FAILURE() << "round " << round;
    current = next;
  }
  acker.join();
  pool->close_request(current, false);
  (void)pool->ack(current, 0);
  expect_all_returned(*pool);
}

// A thread that waits for memory once per round, while the main thread makes room for it.
class OneWaits {
 public:
  explicit OneWaits(int total)
      : thread_([this, total] {
          std::mt19937_64 random(7);
          for (int round = 0; round < total; ++round) {
            start_.arrive();
            dawdle(random);
            made_ = pool_->allocate_until(spec_, in_seconds(kFar));
            end_.arrive();
          }
        }) {}
  ~OneWaits() { thread_.join(); }

  void start(Pool& pool, const AllocateSpec& spec) {
    pool_ = &pool;
    spec_ = spec;
    start_.arrive();
  }
  Allocation end() {
    end_.arrive();
    return made_;
  }

 private:
  test::Meeting start_{2};
  test::Meeting end_{2};
  Pool* pool_ = nullptr;
  AllocateSpec spec_;
  Allocation made_;
  std::thread thread_;
};

TEST(Wait, TheEndOfARequestMeansItsMemoryIsBack) {
  const auto pool = make_pool(4 * kMiB);
  const int total = rounds(20'000);
  Handle request;
  test::Meeting start(2);
  test::Meeting end(2);
  std::thread acker([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      start.arrive();
      dawdle(random, 17);
      (void)pool->ack(request, 0);
      end.arrive();
    }
  });
  std::mt19937_64 random(2);
  for (int round = 0; round < total; ++round) {
    request = open(*pool, {.devices = {0}});
    // Many blocks, so that returning them takes a while.
    for (int i = 0; i < 300; ++i) (void)pool->allocate(kept(1000, request));
    Block* viewed = round % 2 == 0 ? pool->allocate(bytes(1000, request)).block : nullptr;
    pool->close_request(request, false);
    start.arrive();
    dawdle(random);
    if (!pool->wait_released(request, in_seconds(kFar))) ADD_FAILURE() << "round " << round;
    const Stats s = pool->stats();
    if (s.live != 0 || s.requests_draining != 0)
      ADD_FAILURE() << "round " << round << ": " << s.live << " bytes live";
    if (viewed != nullptr && s.retained != viewed->bytes) ADD_FAILURE() << "round " << round;
    if (viewed != nullptr) pool->drop_view(*viewed);
    end.arrive();
  }
  acker.join();
  expect_all_returned(*pool);
}

TEST(Wait, EndsWhenTheRequestOrThePoolIsClosed) {
  const int total = rounds(3'000);
  OneWaits waiter(total);
  std::mt19937_64 random(1);
  for (int round = 0; round < total; ++round) {
    const auto pool = make_pool(kMiB);
    const Handle request = open(*pool, {.devices = {0}});
    Block* all = pool->allocate(bytes(kMiB)).block;
    waiter.start(*pool, kept(1000, request));
    dawdle(random, 17);
    if (round % 2 == 0) {
      EXPECT_EQ(pool->close(true), Status::ok);
      const Status waited = waiter.end().status;
      EXPECT_TRUE(waited == Status::pool_closed || waited == Status::request_closed);
    } else {
      pool->close_request(request, false);
      EXPECT_EQ(waiter.end().status, Status::request_closed) << "round " << round;
      (void)pool->ack(request, 0);
    }
    stop_if_failed();
    pool->drop_view(*all);
    expect_all_returned(*pool);
  }
}

TEST(Wait, AWaiterGetsTheSlotThatTheLastViewFrees) {
  const auto pool = make_pool(16 * kMiB);
  std::vector<Block*> views(kMaxRequests);
  const auto make_retained = [&] {
    const Handle request = open(*pool, {});
    Block* view = pool->allocate(bytes(64, request)).block;
    pool->close_request(request, false);
    return view;
  };
  for (Block*& view : views) view = make_retained();
  Handle none;
  ASSERT_EQ(pool->open(test::Opening{}.spec(), none), Status::too_many_requests);
  const int total = rounds(2'000);
  test::Meeting start(2);
  std::thread other([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      start.arrive();
      dawdle(random, 17);
      pool->drop_view(*views[static_cast<std::size_t>(round)]);
      start.arrive();
    }
  });
  std::mt19937_64 random(2);
  for (int round = 0; round < total; ++round) {
    start.arrive();
    dawdle(random);
    Handle served;
    if (pool->open_until(test::Opening{}.spec(), served, in_seconds(kFar)) != Status::ok)
      ADD_FAILURE() << round;
    start.arrive();
    Block* view = pool->allocate(bytes(64, served)).block;
    pool->close_request(served, false);
    views[static_cast<std::size_t>(round)] = view;
  }
  other.join();
  for (Block* view : views) pool->drop_view(*view);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
