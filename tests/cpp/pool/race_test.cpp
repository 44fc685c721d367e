// Threads end requests in every way at once. Each block must return exactly once, and not before the
// last holder has left.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
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
using test::kMiB;
using test::make_pool;
using test::open;
using test::rounds;
using test::write_stamp;

// The answers of acks that threads saw, to be compared with the pool's own counts.
struct AckTally {
  std::atomic<std::uint64_t> counted{0};
  std::atomic<std::uint64_t> released{0};
  std::atomic<std::uint64_t> duplicate{0};
  std::atomic<std::uint64_t> late{0};

  void add(const Pool::Acked& acked) {
    if (acked.status != Status::ok) return;
    if (acked.result == AckResult::pending || acked.result == AckResult::released) ++counted;
    if (acked.result == AckResult::released) ++released;
    if (acked.result == AckResult::duplicate) ++duplicate;
    if (acked.result == AckResult::late) ++late;
  }
  void expect_same(Pool& pool) const {
    const Stats s = pool.stats();
    EXPECT_EQ(s.acks, counted.load());
    EXPECT_EQ(s.duplicate_acks, duplicate.load());
    EXPECT_EQ(s.late_acks, late.load());
  }
};

// One request after the other, all with the same id. In each, the host closes or cancels it while three
// devices (in different words of the holder set) read its blocks and ack, by handle or by id, sometimes
// twice; a device joins; a child is opened and ends; the third device may be lost instead.
class SameIdRace {
 public:
  static constexpr std::array<std::uint32_t, 3> kDevices{0, 40, 100};
  static constexpr std::uint32_t kJoining = 200;

  explicit SameIdRace(Pool& pool) : pool_(pool) {}

  void run(int total) {
    test::Meeting start(4);
    test::Meeting end(4);
    std::vector<std::thread> devices;
    for (std::size_t d = 0; d < kDevices.size(); ++d) {
      devices.emplace_back([&, d] {
        std::mt19937_64 random(d);
        for (int round = 0; round < total; ++round) {
          start.arrive();
          be_device(d, random);
          end.arrive();
        }
      });
    }
    std::mt19937_64 random(99);
    for (int round = 0; round < total; ++round) {
      make_request(random);
      start.arrive();
      be_host(random);
      end.arrive();
      // Every holder has left, so the request is over, whichever holder was last.
      EXPECT_TRUE(pool_.released(request_));
      for (Block* block : views_) {
        EXPECT_TRUE(has_stamp(*block, stamp_)) << "a view's memory was handed out";
        pool_.drop_view(*block);
      }
      views_.clear();
    }
    for (std::thread& device : devices) device.join();
    EXPECT_LE(tally.released.load(), 2 * static_cast<std::uint64_t>(total)) << "a request and its child";
    tally.expect_same(pool_);
  }

  AckTally tally;

 private:
  void make_request(std::mt19937_64& random) {
    stamp_ = random();
    request_ = open(pool_, {.devices = {kDevices.begin(), kDevices.end()}});
    child_ = open(pool_, {.devices = {kDevices[1]}, .parent = request_});
    blocks_.clear();
    for (const std::uint64_t size : {100, 5000, 200'000}) add_block(blocks_, kept(size, request_));
    add_block(blocks_, bytes(3000, request_));
    views_.push_back(blocks_.back());
    child_blocks_.clear();
    add_block(child_blocks_, kept(50'000, child_));
    loses_ = random() % 4 == 0;
  }
  void add_block(std::vector<Block*>& to, const AllocateSpec& spec) {
    const Allocation made = pool_.allocate(spec);
    ASSERT_NE(made.block, nullptr);
    write_stamp(*made.block, stamp_);
    to.push_back(made.block);
  }
  void expect_stamps(const std::vector<Block*>& blocks) const {
    for (const Block* block : blocks) {
      if (!has_stamp(*block, stamp_)) ADD_FAILURE() << "memory was handed out while a device read it";
    }
  }

  void be_device(std::size_t d, std::mt19937_64& random) {
    const std::uint32_t device = kDevices[d];
    if (d == 2 && loses_) {
      (void)pool_.device_lost(device);
      tally.add(pool_.ack(request_, device));  // a late ack: the device was only slow
      return;
    }
    if (d == 1 && random() % 2 == 0) {
      expect_stamps(child_blocks_);
      tally.add(pool_.ack(child_, device));
    }
    expect_stamps(blocks_);
    const bool by_id = random() % 3 == 0;
    tally.add(by_id ? pool_.ack_id("sa", device, request_.generation) : pool_.ack(request_, device));
    if (random() % 2 == 0) tally.add(pool_.ack(request_, device));
  }

  void be_host(std::mt19937_64& random) {
    if (random() % 2 == 0) {
      const Status joined = pool_.add_device(request_, kJoining);
      EXPECT_EQ(joined, Status::ok);
      std::thread([&] {
        expect_stamps(blocks_);
        tally.add(pool_.ack(request_, kJoining));
      }).join();
    }
    if (random() % 2 == 0) {
      const Allocation made = pool_.allocate(kept(20'000, request_));
      EXPECT_EQ(made.status, Status::ok) << "the host still holds it";
    }
    if (random() % 2 == 0) pool_.close_request(child_, false);
    if (random() % 2 == 0) {
      // The devices may have left the parent by now.
      Handle late_child;
      const std::vector<std::uint32_t> one{kDevices[0]};
      const Status status =
          pool_.open(test::Opening{.devices = one, .parent = request_}.spec(), late_child);
      EXPECT_TRUE(status == Status::ok || status == Status::unknown_device);
      if (status == Status::ok) (void)pool_.allocate(kept(1000, late_child));
    }
    (void)pool_.stats();
    expect_stamps(blocks_);
    pool_.close_request(request_, random() % 2 == 0);
  }

  Pool& pool_;
  std::uint64_t stamp_ = 0;
  Handle request_;
  Handle child_;
  std::vector<Block*> blocks_;
  std::vector<Block*> child_blocks_;
  std::vector<Block*> views_;
  bool loses_ = false;
};

TEST(Race, OneIdAfterTheOther) {
  const auto pool = make_pool(64 * kMiB);
  SameIdRace race(*pool);
  race.run(rounds(10'000));
  expect_all_returned(*pool);
}

TEST(Race, OneIdAfterTheOtherWithScrubbing) {
  PoolOptions options;
  options.capacity = 64 * kMiB;
  options.scrub_on_release = true;
  options.events = 256;
  const auto pool = make_pool(options);
  SameIdRace(*pool).run(rounds(3'000));
  expect_all_returned(*pool);
}

// Records of requests and of blocks go back to the system and come again, while threads have handles of them.
TEST(Race, OneIdAfterTheOtherWhileAThreadTrims) {
  const auto pool = make_pool(64 * kMiB);
  std::vector<Handle> many;  // so that whole chunks of slots are made
  for (int i = 0; i < 3000; ++i) many.push_back(open(*pool, {}));
  for (const Handle handle : many) pool->close_request(handle, false);
  const std::uint64_t before = pool->metadata_bytes();
  std::atomic<bool> stop{false};
  std::uint64_t least = before;
  std::thread trims([&] {
    while (!stop) {
      (void)pool->trim();
      least = std::min(least, pool->metadata_bytes());
    }
  });
  SameIdRace(*pool).run(rounds(500));
  stop = true;
  trims.join();
  EXPECT_LT(least + 2000 * sizeof(RequestRecord), before);
  expect_all_returned(*pool);
}

TEST(Race, OneIdAfterTheOtherWithDebug) {
  PoolOptions options;
  options.capacity = 64 * kMiB;
  options.debug = 1;
  const auto pool = make_pool(options);
  // A guard lies behind the requested bytes, where this test would put its second stamp.
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int i = 0; i < rounds(5'000); ++i) {
        const Handle request = open(*pool, {.devices = {0}});
        for (int n = 0; n < 3; ++n) {
          const std::uint64_t size = random() % 50'000;
          const Allocation made = pool->allocate(kept(size, request));
          if (made.block != nullptr) std::memset(made.block->data, t, size);
        }
        pool->close_request(request, false);
        (void)pool->ack(request, 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(pool->corruptions().empty());
  expect_all_returned(*pool);
}

// Threads allocate in one request at the same time, while it is closed in some rounds. Every block is
// either the request's and returns with it, or was never handed out.
TEST(Race, AllocatingInOneRequestAtOnce) {
  constexpr int kThreads = 3;
  const auto pool = make_pool(64 * kMiB);
  Handle request;
  std::atomic<std::uint64_t> served{0};
  int wrong = 0;
  int round_number = 0;
  test::Meeting start(kThreads, [&] {
    if (request.generation != 0) {
      RequestInfo record;
      if (pool->describe(request, record) && record.nbytes != served * class_size(bin_of(1000))) ++wrong;
      pool->close_request(request, false);
      if (!pool->released(request) || test::held(pool->stats()) != 0) ++wrong;
    }
    served = 0;
    request = open(*pool, {});
    ++round_number;
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < rounds(10'000); ++round) {
        start.arrive();
        const bool closes = t == 0 && round_number % 4 == 0;
        for (int i = 0; i < 12; ++i) {
          if (pool->allocate(kept(1000, request)).block != nullptr) ++served;
          if (closes && i == 5) pool->close_request(request, false);
        }
      }
      start.arrive();
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool->close_request(request, false);
  EXPECT_EQ(wrong, 0);
  expect_all_returned(*pool);
}

// More devices than a word holds, divided among threads, after the host has left: exactly one ack is
// answered that it released the memory.
TEST(Race, ReleasedIsAnsweredOnce) {
  constexpr int kThreads = 3;
  constexpr std::uint32_t kOn = 70;
  const auto pool = make_pool(16 * kMiB);
  AckTally tally;
  Handle request;
  std::uint64_t last_released = 0;
  int wrong = 0;
  std::vector<std::uint32_t> devices;
  for (std::uint32_t d = 0; d < kOn; ++d) devices.push_back(d);
  bool first = true;
  const int total = rounds(20'000);
  test::Meeting start(kThreads, [&] {
    if (!first) {
      if (tally.released - last_released != 1 || !pool->released(request)) ++wrong;
      last_released = tally.released;
    }
    first = false;
    request = open(*pool, {.devices = devices});
    (void)pool->allocate(kept(5000, request));
    pool->close_request(request, false);
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < total; ++round) {
        start.arrive();
        for (std::uint32_t d = static_cast<std::uint32_t>(t); d < kOn; d += kThreads)
          tally.add(pool->ack(request, d));
      }
      start.arrive();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::uint32_t d : devices) tally.add(pool->ack(request, d));
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(tally.counted.load(), static_cast<std::uint64_t>(total + 1) * kOn);
  EXPECT_EQ(tally.duplicate.load() + tally.late.load(), 0U);
  tally.expect_same(*pool);
  expect_all_returned(*pool);
}

// Views are opened by serial at the moment at which the request ends.
TEST(Race, ViewsOpenedWhileTheirRequestEnds) {
  const auto pool = make_pool(16 * kMiB);
  Handle request;
  Block* block = nullptr;
  std::uint32_t serial = 0;
  std::atomic<int> viewing{-1};  // the round in which the viewer has had a view
  const std::uint64_t stamp = 0x5aa5'1234;
  const int total = rounds(10'000);
  test::Meeting start(2, [&] {
    if (test::held(pool->stats()) != 0) ADD_FAILURE() << "held without a request or a view";
    request = open(*pool, {.devices = {0}});
    block = pool->allocate(kept(1000, request)).block;
    write_stamp(*block, stamp);
    serial = block->serial();
    pool->close_request(request, false);
  });
  std::thread viewer([&] {
    for (int round = 0; round < total; ++round) {
      start.arrive();
      while (pool->open_view(*block, serial, request) == Status::ok) {
        viewing.store(round);
        if (!has_stamp(*block, stamp)) ADD_FAILURE() << "a view of memory that was given back";
        pool->drop_view(*block);
      }
    }
  });
  std::mt19937_64 random(1);
  for (int round = 0; round < total; ++round) {
    start.arrive();
    while (viewing.load() != round) std::this_thread::yield();
    test::dawdle(random);
    if (pool->ack(request, 0).result != AckResult::released) ADD_FAILURE();
  }
  viewer.join();
  expect_all_returned(*pool);
}

// Allocations race with the end of their request, in families with a quota and a reserve. In every case
// the budget stays right: the quota limits what is held, and all reserved bytes return.
TEST(Race, BudgetsOfRequestsThatEnd) {
  constexpr std::uint64_t kQuota = 400'000;
  constexpr std::uint64_t kReserve = 150'000;
  const auto pool = make_pool(4 * kMiB);
  Handle root;
  Handle child;
  std::atomic<int> wrong{0};
  const int total = rounds(20'000);
  test::Meeting start(3, [&] {
    if (root.generation != 0) {
      pool->close_request(root, false);
      const Stats s = pool->stats();
      if (s.reserved != 0 || s.live != 0) ++wrong;
    }
    root = open(*pool, {.reserve = kReserve, .quota = kQuota});
    child = open(*pool, {.parent = root});
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(static_cast<std::uint64_t>(t));
      for (int round = 0; round < total; ++round) {
        start.arrive();
        if (t == 2) {
          if (random() % 2 == 0) pool->close_request(child, false);
          pool->close_request(root, false);
          continue;
        }
        for (int i = 0; i < 4; ++i) {
          const Handle in = random() % 2 == 0 ? root : child;
          const Allocation made = pool->allocate(kept(random() % 120'000, in));
          if (made.block == nullptr && made.status != Status::quota_exceeded &&
              made.status != Status::request_closed)
            ++wrong;
        }
        RequestInfo record;
        if (pool->describe(root, record) && record.nbytes > kQuota) ++wrong;
      }
      start.arrive();
    });
  }
  for (std::thread& thread : threads) thread.join();
  pool->close_request(root, false);
  EXPECT_EQ(wrong.load(), 0);
  expect_all_returned(*pool);
}

// A device is lost while the host leaves the same requests, which ends them and their children. Each
// request that the device held is counted.
TEST(Race, LossesOfAParentAndItsChildAreAllCounted) {
  const auto pool = make_pool(kMiB);
  constexpr int kFamilies = 50;
  const int total = rounds(2'000);
  test::Meeting start(2);
  test::Meeting end(2);
  std::vector<Handle> parents(kFamilies);
  std::thread host([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      start.arrive();
      test::dawdle(random);
      for (const Handle parent : parents) pool->close_request(parent, false);
      end.arrive();
    }
  });
  std::uint64_t lost = 0;
  for (int round = 0; round < total; ++round) {
    for (Handle& parent : parents) {
      parent = open(*pool, {.devices = {0}});
      (void)open(*pool, {.devices = {0}, .parent = parent});
    }
    start.arrive();
    lost += pool->device_lost(0);
    end.arrive();
  }
  host.join();
  EXPECT_EQ(lost, std::uint64_t{2} * kFamilies * static_cast<std::uint64_t>(total));
  expect_all_returned(*pool);
}

// A waiter that got its memory may close the pool at once, even if the request it came from is still
// ending on another thread. A tensor that a session kept ends in two steps, first itself and then its
// session.
TEST(Race, ClosedAsSoonAsTheMemoryIsBack) {
  const int total = rounds(3'000);
  int refused = 0;
  for (int round = 0; round < total; ++round) {
    const auto pool = make_pool(kMiB);
    const bool in_session = round % 2 == 0;
    Handle session;
    if (in_session) {
      ASSERT_EQ(pool->open_session("chat", kMiB, {"test.cpp", 7}, session), Status::ok);
    }
    const Handle request = open(*pool, {.devices = {0}});
    Block* block = pool->allocate(bytes(800'000, request)).block;
    ASSERT_NE(block, nullptr);
    Handle kept;
    if (in_session) {
      const KeepSpec spec{"kv", block, request, session, {}, {"test.cpp", 7}};
      ASSERT_EQ(pool->pin(request, {&session, 1}), Status::ok);
      ASSERT_EQ(pool->keep(spec, kept), Status::ok);
      pool->close_request(kept, false);
      pool->close_request(session, false);
    }
    pool->drop_view(*block);
    pool->close_request(request, false);
    std::thread device([&] { (void)pool->ack(request, 0); });
    const Allocation made = pool->allocate_until(bytes(800'000), test::in_seconds(120));
    if (made.block != nullptr) pool->drop_view(*made.block);
    if (made.block == nullptr || pool->close(false) != Status::ok) ++refused;
    device.join();
  }
  EXPECT_EQ(refused, 0);
}

}  // namespace
}  // namespace slabpool
