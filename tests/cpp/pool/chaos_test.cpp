// Threads call everything in any order, on pools that run short and on pools that are closed by force at
// the same time. No view may dangle, all figures must add up, and at the end all memory is back.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"
#include "support/stamp.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kept;
using test::kMiB;
using test::make_pool;
using test::rounds;

constexpr std::uint32_t kDevices = 6;
constexpr std::uint32_t number_of(std::uint32_t device) { return device * 17; }

// Handles that all threads share. An old handle stays until another one overwrites it, so many calls are
// about requests that ended long ago.
class Handles {
 public:
  void put(Handle handle, std::uint64_t random) {
    const std::lock_guard lock(mutex_);
    all_[random % all_.size()] = handle;
  }
  Handle get(std::uint64_t random) {
    const std::lock_guard lock(mutex_);
    return all_[random % all_.size()];
  }

 private:
  std::mutex mutex_;
  std::vector<Handle> all_ = std::vector<Handle>(24);
};

struct View {
  Block* block;
  std::uint64_t stamp;
};

// One thread's part. It owns its views, and checks their bytes as long as it holds them.
class Actor {
 public:
  Actor(Pool& pool, Handles& handles, std::uint64_t seed)
      : pool_(pool), handles_(handles), random_(seed) {}

  void act() {
    const auto dice = random_() % 100;
    const Handle handle = handles_.get(random_());
    const std::uint32_t device = number_of(static_cast<std::uint32_t>(random_() % kDevices));
    if (dice < 12) {
      open({});
    } else if (dice < 18) {
      open(handle);
    } else if (dice < 38) {
      allocate(handle);
    } else if (dice < 46) {
      allocate({});
    } else if (dice < 62) {
      drop_one();
    } else if (dice < 78) {
      (void)pool_.ack(handle, device);
    } else if (dice < 83) {
      (void)pool_.ack_id("s" + std::to_string(random_() % 3), device, {});
    } else if (dice < 92) {
      pool_.close_request(handle, random_() % 2 == 0);
    } else if (dice < 95) {
      (void)pool_.add_device(handle, device);
    } else if (dice < 96) {
      (void)pool_.device_lost(device);
    } else if (dice < 97) {
      pool_.heartbeat(device);
    } else if (dice < 98) {
      (void)pool_.requests(0);
    } else if (dice < 99) {
      test::expect_adds_up(pool_.stats());
    } else if (random_() % 16 == 0) {
      (void)pool_.trim();
    } else {
      RequestInfo record;
      (void)pool_.describe(handle, record);
    }
  }
  void drop_all() {
    while (!views_.empty()) drop_one();
  }

 private:
  void open(Handle parent) {
    test::Opening how;
    const std::string id = "s" + std::to_string(random_() % 3);
    how.id = id;
    for (std::uint32_t device = 0; device < kDevices; ++device) {
      if (random_() % 3 == 0) how.devices.push_back(number_of(device));
    }
    if (parent.generation != 0) {
      how.parent = parent;
    } else {
      if (random_() % 4 == 0) how.lease_ns = 1 + static_cast<std::int64_t>(random_() % 1'000'000);
      if (random_() % 4 == 0) how.reserve = random_() % 300'000;
      if (random_() % 4 == 0) how.quota = how.reserve + random_() % 300'000;
    }
    Handle handle;
    if (pool_.open(how.spec(), handle) == Status::ok) handles_.put(handle, random_());
  }
  void allocate(Handle handle) {
    const std::uint64_t size = 16 + random_() % (random_() % 4 == 0 ? 300'000 : 3000);
    const bool view = handle.generation == 0 || random_() % 2 == 0;
    AllocateSpec spec = view ? bytes(size, handle) : kept(size, handle);
    spec.zero = random_() % 4 == 0;
    const Allocation made = pool_.allocate(spec);
    if (made.block == nullptr || !view) return;
    if (spec.zero && !test_zero(*made.block)) ADD_FAILURE() << "not zero";
    const std::uint64_t stamp = random_();
    test::write_stamp(*made.block, stamp);
    views_.push_back({made.block, stamp});
    if (random_() % 8 == 0) {
      pool_.hold_view(*made.block);
      views_.push_back(views_.back());
    }
  }
  static bool test_zero(const Block& block) {
    std::uint64_t first = 1;
    std::memcpy(&first, block.data, sizeof first);
    return first == 0;
  }
  void drop_one() {
    if (views_.empty()) return;
    const std::size_t i = random_() % views_.size();
    if (!test::has_stamp(*views_[i].block, views_[i].stamp))
      ADD_FAILURE() << "a view's memory was handed out";
    pool_.drop_view(*views_[i].block);
    views_[i] = views_.back();
    views_.pop_back();
  }

  Pool& pool_;
  Handles& handles_;
  std::mt19937_64 random_;
  std::vector<View> views_;
};

// Ends every request. What remains is what views retain.
void end_all(Pool& pool) {
  for (const RequestInfo& record : pool.requests(0)) pool.close_request(record.handle, false);
  for (std::uint32_t device = 0; device < kDevices; ++device) (void)pool.device_lost(number_of(device));
}

void run_chaos(const PoolOptions& options, int threads, int steps) {
  const auto pool = make_pool(options);
  Handles handles;
  std::vector<std::unique_ptr<Actor>> actors;
  for (int t = 0; t < threads; ++t) {
    actors.push_back(std::make_unique<Actor>(*pool, handles, static_cast<std::uint64_t>(t) * 77 + 1));
  }
  std::vector<std::thread> running;
  for (const auto& actor : actors) {
    running.emplace_back([&actor, steps] {
      for (int i = 0; i < steps; ++i) actor->act();
    });
  }
  for (std::thread& thread : running) thread.join();
  const char* wrong = pool->verify();
  EXPECT_EQ(wrong, nullptr) << wrong;
  end_all(*pool);
  // Views are also dropped by threads that did not make them.
  for (const auto& actor : actors) actor->drop_all();
  expect_all_returned(*pool);
}

TEST(Chaos, WithRoomForAll) {
  PoolOptions options;
  options.capacity = 256 * kMiB;
  run_chaos(options, 4, rounds(40'000));
}

TEST(Chaos, WhenMemoryRunsShort) {
  PoolOptions options;
  options.capacity = 2 * kMiB;
  run_chaos(options, 4, rounds(40'000));
}

TEST(Chaos, WithEventsAndScrubbing) {
  PoolOptions options;
  options.capacity = 8 * kMiB;
  options.events = 128;
  options.scrub_on_release = true;
  run_chaos(options, 3, rounds(30'000));
}

TEST(Chaos, ThePoolIsClosedByForceMeanwhile) {
  for (int round = 0; round < rounds(50); ++round) {
    const auto pool = make_pool(8 * kMiB);
    Handles handles;
    std::atomic<bool> closed{false};
    std::vector<std::unique_ptr<Actor>> actors;
    for (int t = 0; t < 3; ++t) {
      actors.push_back(
          std::make_unique<Actor>(*pool, handles, static_cast<std::uint64_t>(round * 3 + t)));
    }
    std::vector<std::thread> running;
    for (const auto& actor : actors) {
      running.emplace_back([&] {
        while (!closed.load()) actor->act();
        for (int i = 0; i < 50; ++i) actor->act();
      });
    }
    for (int i = 0; i < 200; ++i) std::this_thread::yield();
    EXPECT_EQ(pool->close(true), Status::ok);
    closed.store(true);
    for (std::thread& thread : running) thread.join();
    EXPECT_EQ(pool->allocate(bytes(1)).status, Status::pool_closed);
    // A request that was being opened at that moment may have been opened.
    end_all(*pool);
    for (const auto& actor : actors) actor->drop_all();
    expect_all_returned(*pool);
  }
}

}  // namespace
}  // namespace slabpool
