// Thread caches: blocks return to the thread that allocated them, no block is lost when a thread ends, and any thread
// may collect.
#include "slabpool/slab/thread_cache.hpp"

#include <gtest/gtest.h>

#include <array>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

constexpr std::uint64_t kCapacity = std::uint64_t{64} << 20;

// A thread that runs jobs one after the other.
class Worker {
 public:
  Worker() : thread_([this] { loop(); }) {}
  ~Worker() { end(); }

  void run(std::function<void()> job) {
    std::unique_lock lock(mutex_);
    job_ = std::move(job);
    changed_.notify_all();
    changed_.wait(lock, [this] { return job_ == nullptr; });
  }
  // Ends the thread, which releases its caches.
  void end() {
    if (!thread_.joinable()) return;
    run([this] { over_ = true; });
    thread_.join();
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    while (!over_) {
      changed_.wait(lock, [this] { return job_ != nullptr; });
      job_();
      job_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;
  bool over_ = false;
  std::thread thread_;
};

class ThreadCacheTest : public testing::Test {
 protected:
  // As the pool's slow path, without a request.
  Block* take(std::uint64_t bytes) {
    ThreadCache& cache = caches.mine();
    const unsigned bin = bin_of(bytes);
    const std::uint64_t need = block_size_for(bytes);
    Block* block = cache.pop(bin, need, false);
    if (block == nullptr) {
      block = (bin < kSlabClasses ? depot.take_blocks(bin, 8, Depot::Effort::hard)
                                  : depot.take_span(need, 1, Depot::Effort::hard))
                  .chain;
      if (block == nullptr) return nullptr;
      cache.keep(block);
    }
    block->home = &cache;
    block->next = nullptr;
    return block;
  }
  void give(Block* chain) { caches.mine().push(chain); }
  std::uint64_t count(Count what) { return caches.sums().counts[static_cast<unsigned>(what)]; }
  std::uint64_t committed_after_trim() {
    caches.collect();
    (void)depot.trim();
    EXPECT_EQ(depot.verify(), nullptr);
    return depot.figures().committed;
  }

  test::FakeMemory memory{std::size_t{512} << 20};
  Depot depot{memory, kCapacity, false};
  CacheSet caches{depot, kCapacity};
};

TEST_F(ThreadCacheTest, ABlockGivenBackIsTheNextOneTaken) {
  for (const std::uint64_t bytes : {100, 5000, 100'000, 3'000'000}) {
    Block* block = take(bytes);
    give(block);
    EXPECT_EQ(take(bytes), block) << bytes;
    give(block);
  }
}

TEST_F(ThreadCacheTest, OneCacheForEachThreadAndPool) {
  ThreadCache& mine = caches.mine();
  EXPECT_EQ(&caches.mine(), &mine);
  CacheSet other(depot, kCapacity);
  EXPECT_NE(&other.mine(), &mine);
  EXPECT_EQ(&caches.mine(), &mine) << "found again after another pool's was used";
  Worker worker;
  worker.run([&] { EXPECT_NE(&caches.mine(), &mine); });
}

TEST_F(ThreadCacheTest, BlocksGoHomeToTheThreadThatAllocatedThem) {
  std::array<Block*, 3> blocks{};
  for (Block*& block : blocks) block = take(3'000'000);
  blocks[0]->next = blocks[1];
  blocks[1]->next = blocks[2];
  Worker other;
  other.run([&] { give(blocks[0]); });
  const std::uint64_t committed = depot.figures().committed;
  std::vector<Block*> again;
  for (int i = 0; i < 3; ++i) again.push_back(take(3'000'000));
  for (Block* block : blocks) EXPECT_NE(std::find(again.begin(), again.end(), block), again.end());
  EXPECT_EQ(depot.figures().committed, committed);
  for (Block* block : again) give(block);
}

TEST_F(ThreadCacheTest, AChainOfSeveralHomesIsSharedOut) {
  Worker a;
  Worker b;
  Block* of_a = nullptr;
  Block* of_b = nullptr;
  a.run([&] { of_a = take(2'000'000); });
  b.run([&] { of_b = take(2'000'000); });
  Block* mine = take(2'000'000);
  of_a->next = mine;
  mine->next = of_b;
  give(of_a);
  a.run([&] { EXPECT_EQ(take(2'000'000), of_a); });
  b.run([&] { EXPECT_EQ(take(2'000'000), of_b); });
  EXPECT_EQ(take(2'000'000), mine);
  a.run([&] { give(of_a); });
  b.run([&] { give(of_b); });
  give(mine);
  EXPECT_EQ(count(Count::allocations), count(Count::frees));
  EXPECT_EQ(caches.sums().live, 0);
}

TEST_F(ThreadCacheTest, AThreadThatEndsLeavesNothingBehind) {
  {
    Worker worker;
    worker.run([&] {
      Block* block = take(1000);
      give(block);
      give(take(3'000'000));
    });
  }
  // Without collect(): the ending thread moved its blocks to the depot itself.
  (void)depot.trim();
  EXPECT_EQ(depot.figures().committed, 0U);
  EXPECT_EQ(count(Count::allocations), 2U);
  EXPECT_EQ(count(Count::frees), 2U);
}

TEST_F(ThreadCacheTest, ANewThreadTakesOverTheCacheOfOneThatEnded) {
  ThreadCache* first = nullptr;
  {
    Worker worker;
    worker.run([&] {
      first = &caches.mine();
      give(take(1000));
    });
  }
  Worker next;
  next.run([&] {
    EXPECT_EQ(&caches.mine(), first);
    give(take(1000));
  });
  EXPECT_EQ(count(Count::allocations), 2U) << "its counts go on";
}

TEST_F(ThreadCacheTest, BlocksOfAThreadThatEndedStayWithWhoeverFreesThem) {
  Block* block = nullptr;
  {
    Worker worker;
    worker.run([&] { block = take(3'000'000); });
  }
  give(block);
  EXPECT_EQ(take(3'000'000), block);
  give(block);
  EXPECT_EQ(caches.sums().live, 0);
  EXPECT_EQ(committed_after_trim(), 0U);
}

TEST_F(ThreadCacheTest, CollectEmptiesTheCachesOfAllThreads) {
  Worker worker;
  Block* theirs = nullptr;
  worker.run([&] {
    theirs = take(3'000'000);
    give(theirs);
    give(take(500));
  });
  give(take(700));
  caches.collect();
  worker.run([&] {
    EXPECT_EQ(caches.mine().pop(bin_of(3'000'000), block_size_for(3'000'000), false), nullptr);
    EXPECT_EQ(caches.mine().pop(bin_of(500), block_size_for(500), false), nullptr);
  });
  EXPECT_EQ(caches.mine().pop(bin_of(700), block_size_for(700), false), nullptr);
  EXPECT_EQ(committed_after_trim(), 0U);
}

TEST_F(ThreadCacheTest, CollectTakesTheInboxesToo) {
  Worker worker;
  Block* theirs = nullptr;
  worker.run([&] { theirs = take(3'000'000); });
  give(theirs);  // lies in the worker's inbox now
  EXPECT_EQ(committed_after_trim(), 0U);
}

TEST_F(ThreadCacheTest, ACacheKeepsNoMoreThanItsShare) {
  std::vector<Block*> blocks;
  for (int i = 0; i < 12; ++i) blocks.push_back(take(std::uint64_t{4} << 20));
  for (Block* block : blocks) {
    block->next = nullptr;
    give(block);
  }
  // The cache holds one of them (1/16 of 64 MiB); the others went to the depot without collect().
  EXPECT_GE(depot.trim(), std::uint64_t{11} << 22);
}

TEST_F(ThreadCacheTest, ExactAllocationsGetNoMoreThanTheyAskFor) {
  // Two sizes of one bin.
  const std::uint64_t large = std::uint64_t{66} << 14;
  const std::uint64_t small = std::uint64_t{65} << 14;
  ASSERT_EQ(bin_of(large), bin_of(small));
  Block* block = take(large);
  give(block);
  EXPECT_EQ(caches.mine().pop(bin_of(small), small, true), nullptr);
  Block* same = caches.mine().pop(bin_of(small), small, false);
  EXPECT_EQ(same, block);
  same->home = &caches.mine();
  same->next = nullptr;
  give(same);
}

TEST_F(ThreadCacheTest, SumsFollowWhatThreadsDo) {
  Block* a = take(1000);
  Worker worker;
  Block* b = nullptr;
  worker.run([&] { b = take(3'000'000); });
  CacheSet::Sums sums = caches.sums();
  EXPECT_EQ(sums.live, static_cast<std::int64_t>(a->bytes + b->bytes));
  EXPECT_EQ(sums.counts[static_cast<unsigned>(Count::allocations)], 2U);
  give(b);
  sums = caches.sums();
  EXPECT_EQ(sums.live, static_cast<std::int64_t>(a->bytes));
  EXPECT_GE(sums.peak_live, static_cast<std::int64_t>(a->bytes + b->bytes));
  give(a);
  EXPECT_EQ(caches.sums().live, 0);
}

TEST_F(ThreadCacheTest, APoolMayEndBeforeItsThreads) {
  Worker worker;
  {
    test::FakeMemory own(std::size_t{64} << 20);
    Depot depot_of_one(own, kCapacity, false);
    CacheSet short_lived(depot_of_one, kCapacity);
    worker.run([&] { (void)short_lived.mine(); });
  }
  worker.end();  // must not access the destroyed caches
}

// Threads allocate, free their own and each other's blocks, start and end, while another thread collects and reads the
// sums. A stamp in each block detects a block with two owners.
TEST_F(ThreadCacheTest, UnderLoadEveryBlockHasOneOwner) {
  constexpr int kThreads = 3;
  constexpr int kSlots = 64;
  std::array<std::atomic<Block*>, kSlots> shared{};
  std::atomic<bool> stop{false};
  std::thread collector([&] {
    std::uint64_t last = 0;
    while (!stop.load()) {
      caches.collect();
      const CacheSet::Sums sums = caches.sums();
      EXPECT_GE(sums.counts[0], last);
      last = sums.counts[0];
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int life = 0; life < 4; ++life) {
        std::thread([&, t, life] {
          std::mt19937_64 random(static_cast<std::uint64_t>(t * 100 + life));
          for (int i = 0; i < test::rounds(40'000); ++i) {
            Block* mine = nullptr;
            if (random() % 4 != 0) {
              mine = take(random() % 8 == 0 ? 200'000 + random() % 400'000 : 1 + random() % 20'000);
              if (mine != nullptr) {
                // Each allocated block has its own address written at both ends.
                std::memcpy(mine->data, &mine, sizeof mine);
                std::memcpy(mine->data + mine->bytes - sizeof mine, &mine, sizeof mine);
              }
            }
            Block* other = shared[random() % kSlots].exchange(mine, std::memory_order_acq_rel);
            if (other == nullptr) continue;
            Block* stamps[2];
            std::memcpy(&stamps[0], other->data, sizeof other);
            std::memcpy(&stamps[1], other->data + other->bytes - sizeof other, sizeof other);
            if (stamps[0] != other || stamps[1] != other) ADD_FAILURE() << "two owners of one block";
            std::memset(other->data, 0, sizeof other);
            std::memset(other->data + other->bytes - sizeof other, 0, sizeof other);
            other->next = nullptr;
            give(other);
          }
        }).join();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  stop.store(true);
  collector.join();
  for (std::atomic<Block*>& slot : shared) {
    if (Block* block = slot.load()) {
      block->next = nullptr;
      give(block);
    }
  }
  EXPECT_EQ(count(Count::allocations), count(Count::frees));
  EXPECT_EQ(caches.sums().live, 0);
  EXPECT_EQ(committed_after_trim(), 0U);
}

}  // namespace
}  // namespace slabpool
