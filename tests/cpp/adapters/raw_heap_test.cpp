// A pool as malloc and free: every address finds its block without a lock, contents survive resizing,
// and memory of the system is distinguished from the pool's. The races are for ThreadSanitizer.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "slabpool/adapters/raw_heap.hpp"
#include "support/meeting.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kMiB;
using test::make_pool;
using test::rounds;

class RawHeapTest : public test::PoolFixture {
 protected:
  bool ours(const void* address) const { return pool->find(address) != nullptr; }
  RawHeap heap{*pool};
};

TEST_F(RawHeapTest, AllocatesAndFreesEverySize) {
  std::vector<void*> all;
  for (const std::size_t size : {0, 1, 64, 65, 4096, 100'000, 131'072, 131'073, 1 << 20}) {
    void* address = heap.allocate(size);
    ASSERT_TRUE(ours(address)) << size;
    std::memset(address, 0x5a, size);
    all.push_back(address);
  }
  EXPECT_EQ(pool->tagged(kRawTag).blocks, all.size());
  EXPECT_EQ(pool->tagged(kRawTag).bytes, pool->stats().live);
  for (void* address : all) heap.release(address);
  heap.release(nullptr);
  EXPECT_EQ(pool->tagged(kRawTag).blocks, 0U);
  expect_all_returned(*pool);
}

TEST_F(RawHeapTest, OnlyItsOwnBlocksAreTagged) {
  Block* other = take(bytes(1000));
  void* address = heap.allocate(1000);
  EXPECT_EQ(pool->tagged(kRawTag).blocks, 1U);
  heap.release(address);
  Block* again = take(bytes(1000));  // the block that was tagged
  EXPECT_EQ(again->data, address);
  EXPECT_EQ(pool->tagged(kRawTag).blocks, 0U);
  pool->drop_view(*other);
  pool->drop_view(*again);
}

TEST_F(RawHeapTest, ZeroesReusedMemory) {
  void* address = heap.allocate(1000);
  std::memset(address, 0xff, 1000);
  heap.release(address);
  auto* zeroed = static_cast<unsigned char*>(heap.allocate_zeroed(10, 100));
  EXPECT_EQ(zeroed, address);
  EXPECT_TRUE(std::all_of(zeroed, zeroed + 1000, [](unsigned char byte) { return byte == 0; }));
  heap.release(zeroed);
  EXPECT_EQ(heap.allocate_zeroed(SIZE_MAX / 2, 3), nullptr);
}

TEST_F(RawHeapTest, ResizingKeepsContentsAndWastesHalfAtMost) {
  auto* address = static_cast<unsigned char*>(heap.resize(nullptr, 1));
  address[0] = 0;
  std::size_t size = 1;
  std::minstd_rand random(1);
  for (int i = 0; i < 500; ++i) {
    const std::size_t next = std::size_t{1} << (random() % 21);
    address = static_cast<unsigned char*>(heap.resize(address, next));
    ASSERT_NE(address, nullptr);
    for (std::size_t at = 0; at < std::min(size, next); at += 61) ASSERT_EQ(address[at], at % 251);
    for (std::size_t at = 0; at < next; ++at) address[at] = static_cast<unsigned char>(at % 251);
    size = next;
    ASSERT_LT(pool->stats().live, std::max<std::size_t>(2 * next, 64) + kPageSize);
  }
  heap.release(address);
  expect_all_returned(*pool);
}

TEST_F(RawHeapTest, RunningOutIsNullAndChangesNothing) {
  auto* address = static_cast<unsigned char*>(heap.allocate(9 * kMiB));
  address[0] = 7;
  EXPECT_EQ(heap.allocate(9 * kMiB), nullptr);
  EXPECT_EQ(heap.allocate_zeroed(9, kMiB), nullptr);
  EXPECT_EQ(heap.resize(address, 17 * kMiB), nullptr);
  EXPECT_EQ(address[0], 7);
  EXPECT_EQ(pool->stats().exhaustions, 2U);  // a size larger than the pool counts too
  heap.release(address);
}

TEST_F(RawHeapTest, WhenTurnedOffItUsesTheSystemsMemory) {
  auto* inside = static_cast<unsigned char*>(heap.allocate(1000));
  inside[999] = 7;
  heap.turn_off();
  void* outside = heap.allocate_zeroed(10, 100);
  EXPECT_FALSE(ours(outside));
  outside = heap.resize(outside, 100'000);
  EXPECT_FALSE(ours(outside));
  inside = static_cast<unsigned char*>(heap.resize(inside, 1000));  // moves out of the pool too
  EXPECT_FALSE(ours(inside));
  EXPECT_EQ(inside[999], 7);
  heap.release(inside);
  heap.release(outside);
  expect_all_returned(*pool);
}

TEST_F(RawHeapTest, MemoryOfAClosedPoolStaysUntilItIsReleased) {
  auto* address = static_cast<unsigned char*>(heap.allocate(1000));
  EXPECT_EQ(pool->close(true), Status::ok);
  EXPECT_EQ(heap.allocate(1), nullptr);
  address[999] = 7;
  heap.release(address);
  EXPECT_EQ(pool->stats().committed, 0U);
}

TEST_F(RawHeapTest, AForkedChildHasItsOwnMemory) {
  auto* address = static_cast<unsigned char*>(heap.allocate(1000));
  address[0] = 7;
  const pid_t child = fork();
  if (child == 0) {
    auto* own = static_cast<unsigned char*>(heap.allocate_zeroed(1, 1000));
    bool right = own != nullptr && !ours(own) && own[0] == 0;
    heap.release(own);
    own = static_cast<unsigned char*>(heap.resize(address, 2000));
    right = right && !ours(own) && own[0] == 7;
    heap.release(own);
    heap.release(address);
    _exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(pool->tagged(kRawTag).blocks, 1U);
  heap.release(address);
  expect_all_returned(*pool);
}

TEST(RawHeapDebugTest, ResizingWithinABlockIsNoWritePastItsEnd) {
  PoolOptions options;
  options.capacity = 4 * kMiB;
  options.debug = 1;
  auto pool = make_pool(options);
  RawHeap heap(*pool);
  auto* address = static_cast<unsigned char*>(heap.allocate(90));
  for (std::size_t size = 91; size < 100; ++size) {
    address = static_cast<unsigned char*>(heap.resize(address, size));
    std::memset(address, 1, size);
  }
  heap.release(address);
  EXPECT_TRUE(pool->corruptions().empty());
  expect_all_returned(*pool);
}

// Held blocks are found while spans around them are made, merged and cut, and slabs are made and
// dropped; other threads look for tagged blocks meanwhile.
TEST(RawHeapRaceTest, HeldBlocksAreFoundWhilePagesComeAndGo) {
  constexpr int kThreads = 3;
  auto pool = make_pool(64 * kMiB);
  RawHeap heap(*pool);
  std::array<std::atomic<void*>, 64> box{};
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  const auto check = [&](void* address) {
    const Block* block = pool->find_held(address);
    const auto* start = static_cast<std::byte*>(address);
    if (block == nullptr || block->data != start) return ++wrong, false;
    const std::byte* last = start + block->bytes - 1;
    if (pool->find_held(last) != block) ++wrong;
    return true;
  };
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] {
      std::minstd_rand random(static_cast<unsigned>(number) + 1);
      for (int i = 0; i < rounds(20000); ++i) {
        void* address = heap.allocate(std::size_t{1} << (random() % 20));
        if (address == nullptr) continue;
        check(address);
        // Handed over with acquire and release, as any caller that passes memory to another thread must
        // do.
        void* other = box[random() % box.size()].exchange(address, std::memory_order_acq_rel);
        if (other != nullptr && check(other)) heap.release(other);
      }
    });
  }
  std::thread looker([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      const Depot::Tagged tagged = pool->tagged(kRawTag);
      if (tagged.bytes > pool->stats().capacity) ++wrong;
      (void)pool->trim();
      if (pool->verify() != nullptr) ++wrong;
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop.store(true, std::memory_order_relaxed);
  looker.join();
  for (auto& slot : box) heap.release(slot.load(std::memory_order_acquire));
  EXPECT_EQ(wrong.load(), 0);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
