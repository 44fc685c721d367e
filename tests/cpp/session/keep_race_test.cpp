// A block moves to a session while all holders leave: devices ack, the host closes or cancels, views are
// opened and dropped, the session drops it. The block must return once, and not while it has a reader.
#include <gtest/gtest.h>

#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/meeting.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"
#include "support/stamp.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::has_stamp;
using test::kept;
using test::open;
using test::write_stamp;

Status keep(Pool& pool, Block& block, Handle session, Handle& made) {
  KeepSpec spec;
  spec.id = "k";
  spec.block = &block;
  spec.from = pool.owner_of(block);
  spec.session = session;
  return pool.keep(spec, made);
}

// Each round: one thread keeps a turn's block, of which the host and a reader have a view. At the same
// time a device's thread reads it and acks, another thread opens and drops views, and the host closes
// the turn and sometimes drops what was kept.
class KeepRace : public testing::TestWithParam<bool> {
 protected:
  KeepRace() {
    PoolOptions options;
    options.capacity = 16 * test::kMiB;
    options.shared = GetParam();
    pool_ = test::make_pool(options);
  }
  void prepare(std::uint64_t stamp) {
    stamp_ = stamp;
    const std::vector<std::uint32_t> devices{0, 40};
    turn_ = open(*pool_, {.devices = devices});
    block_ = pool_->allocate(bytes(4096, turn_)).block;
    // Neighbours in the chain, which other threads drop.
    other_ = pool_->allocate(bytes(4096, turn_)).block;
    write_stamp(*block_, stamp_);
    serial_ = block_->serial();
    kept_status_ = Status::pool_busy;
  }
  void check() const {
    EXPECT_TRUE(has_stamp(*block_, stamp_)) << "it was handed out while it had a reader";
  }

  std::unique_ptr<Pool> pool_;
  Handle turn_;
  Handle kept_;
  Status kept_status_ = Status::ok;
  Block* block_ = nullptr;
  Block* other_ = nullptr;
  std::uint32_t serial_ = 0;
  std::uint64_t stamp_ = 0;
};

TEST_P(KeepRace, TheBlockComesBackOnce) {
  const int total = test::rounds(1'500);
  Handle chat;
  ASSERT_EQ(pool_->open_session("k", 1 << 20, {}, chat), Status::ok);
  std::uint64_t kept_times = 0;
  std::atomic<int> keeps{0};  // rounds in which keep() has answered
  test::Meeting start(4);
  test::Meeting end(4);
  const auto each_round = [&](auto&& work) {
    return std::thread([&, work] {
      std::mt19937_64 random(reinterpret_cast<std::uintptr_t>(&work));
      for (int round = 0; round < total; ++round) {
        start.arrive();
        test::dawdle(random, 10);
        work(random);
        end.arrive();
      }
    });
  };
  std::vector<std::thread> threads;
  threads.push_back(each_round([&](std::mt19937_64& random) {
    check();  // a device that has not acknowledged may read it
    (void)pool_->ack(turn_, 0);
    test::dawdle(random, 6);
    pool_->drop_view(*other_);
  }));
  threads.push_back(each_round([&](std::mt19937_64& random) {
    for (int i = 0; i < 4; ++i) {
      if (pool_->open_view(*block_, serial_, turn_) != Status::ok) continue;
      check();
      pool_->hold_view(*block_);
      test::dawdle(random, 5);
      pool_->drop_view(*block_);
      check();
      pool_->drop_view(*block_);
    }
    (void)pool_->ack(turn_, 40);
  }));
  threads.push_back(each_round([&](std::mt19937_64& random) {
    kept_status_ = keep(*pool_, *block_, chat, kept_);
    keeps.fetch_add(1, std::memory_order_release);
    check();
    if (kept_status_ == Status::ok && random() % 2 == 0) pool_->close_request(kept_, false);
    pool_->drop_view(*block_);
  }));
  std::mt19937_64 random(99);
  for (int round = 0; round < total; ++round) {
    prepare(random());
    start.arrive();
    test::dawdle(random, 10);
    // In some rounds the tensor is kept before the turn ends, however the threads are scheduled.
    while (round % 8 == 0 && keeps.load(std::memory_order_acquire) == round) std::this_thread::yield();
    pool_->close_request(turn_, random() % 2 == 0);
    end.arrive();
    EXPECT_TRUE(pool_->released(turn_));
    if (kept_status_ == Status::ok) {
      ++kept_times;
      if (!pool_->released(kept_)) {
        check();
        EXPECT_EQ(pool_->owner_of(*block_).generation, kept_.generation);
        RequestInfo record;
        ASSERT_TRUE(pool_->describe(kept_, record));
        EXPECT_EQ(record.live_views, 0U);
        EXPECT_EQ(record.nbytes, block_->bytes);
        pool_->close_request(kept_, false);
      }
      EXPECT_TRUE(pool_->released(kept_)) << "it has no pin left";
    } else {
      EXPECT_EQ(kept_status_, Status::request_closed) << "the turn was over first";
    }
    ASSERT_EQ(test::held(pool_->stats()), 0U);
    ASSERT_EQ(pool_->kept_bytes(), 0U);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(kept_times, static_cast<std::uint64_t>(total / 8));
  pool_->close_request(chat, false);
  expect_all_returned(*pool_);
}

// Turns open and end over one session. Each pins what is kept, reads it until its device acks, and
// replaces it.
TEST_P(KeepRace, NoReaderSeesReturnedMemory) {
  struct Chat {
    std::mutex mutex;  // like a session's: held to decide, not while turns end
    Handle session;
    Handle kept;
    Block* block = nullptr;
    std::uint32_t serial = 0;
    std::uint64_t stamp = 0;
  } chat;
  ASSERT_EQ(pool_->open_session("k", 1 << 20, {}, chat.session), Status::ok);
  constexpr std::uint32_t kThreads = 3;
  const int total = test::rounds(20'000);
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int round = 0; round < total; ++round) {
        const std::vector<std::uint32_t> devices{t};
        const Handle turn = open(*pool_, {.devices = devices});
        Block* seen = nullptr;
        std::uint64_t stamp = 0;
        {
          const std::lock_guard lock(chat.mutex);
          const Handle both[] = {chat.session, chat.kept};
          EXPECT_EQ(pool_->pin(turn, {both, chat.block != nullptr ? 2U : 1U}), Status::ok);
          seen = chat.block;
          stamp = chat.stamp;
        }
        Block* made = pool_->allocate(bytes(4096 << (random() % 4), turn)).block;
        ASSERT_NE(made, nullptr);
        const std::uint64_t own = random();
        write_stamp(*made, own);
        {
          const std::lock_guard lock(chat.mutex);
          Handle kept_now;
          EXPECT_EQ(keep(*pool_, *made, chat.session, kept_now), Status::ok);
          if (chat.block != nullptr) pool_->close_request(chat.kept, false);
          chat.kept = kept_now;
          chat.block = made;
          chat.stamp = own;
        }
        pool_->drop_view(*made);
        pool_->close_request(turn, false);
        test::dawdle(random, 8);
        if (seen != nullptr) {
          EXPECT_TRUE(has_stamp(*seen, stamp)) << "it was returned while a turn could read it";
        }
        (void)pool_->ack(turn, t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(test::held(pool_->stats()), chat.block->bytes);
  Pool::Kept totals;
  ASSERT_TRUE(pool_->kept(chat.session, totals));
  EXPECT_EQ(totals.pins, 0U);
  pool_->close_request(chat.session, false);
  expect_all_returned(*pool_);
}

// A tensor grows, for its turn as long as the turn is open, while it is kept and its turn ends.
TEST_P(KeepRace, ATensorGrowsWhileItIsKept) {
  const int total = test::rounds(1'500);
  Handle chat;
  ASSERT_EQ(pool_->open_session("k", 4 << 20, {}, chat), Status::ok);
  test::Meeting start(2);
  test::Meeting end(2);
  std::thread grower([&] {
    for (int round = 0; round < total; ++round) {
      start.arrive();
      std::uint64_t usable = 0;
      Status status = Status::ok;
      for (std::uint64_t n = 1; n <= 12 && status == Status::ok; ++n)
        status = pool_->grow(*block_, turn_, n * 40'000, usable);
      EXPECT_TRUE(status == Status::ok || status == Status::request_closed);
      end.arrive();
    }
  });
  std::mt19937_64 random(7);
  for (int round = 0; round < total; ++round) {
    turn_ = open(*pool_, {.quota = 1 << 20});
    block_ = pool_->open_growing(turn_, test::kMiB).block;
    start.arrive();
    test::dawdle(random, 12);
    Handle made;
    ASSERT_EQ(keep(*pool_, *block_, chat, made), Status::ok);
    pool_->close_request(turn_, false);
    end.arrive();
    EXPECT_TRUE(pool_->released(turn_));
    std::uint64_t usable = 0;
    EXPECT_EQ(pool_->grow(*block_, made, 600'000, usable), Status::ok);
    std::memset(block_->data, round, 600'000);
    Pool::Kept totals;
    ASSERT_TRUE(pool_->kept(chat, totals));
    EXPECT_EQ(totals.bytes, block_->bytes);
    EXPECT_EQ(test::held(pool_->stats()), block_->bytes);
    pool_->drop_view(*block_);
    pool_->close_request(made, false);
    ASSERT_EQ(test::held(pool_->stats()), 0U);
  }
  grower.join();
  pool_->close_request(chat, false);
  expect_all_returned(*pool_);
}

INSTANTIATE_TEST_SUITE_P(Pools, KeepRace, testing::Bool());

}  // namespace
}  // namespace slabpool
