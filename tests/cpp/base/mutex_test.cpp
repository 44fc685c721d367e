// The inlined mutex: one holder at a time, and no thread sleeps for ever.
#include "slabpool/base/mutex.hpp"

#include <gtest/gtest.h>

#include <mutex>
#include <thread>
#include <vector>

#include "support/scale.hpp"

namespace slabpool {
namespace {

TEST(MutexTest, OneHolderAtATime) {
  Mutex mutex;
  long count = 0;  // not atomic: ThreadSanitizer sees whether the mutex orders the threads
  const int rounds = test::rounds(100'000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < rounds; ++i) {
        const std::lock_guard lock(mutex);
        ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 4L * rounds);
}

TEST(MutexTest, EveryThreadThatSleepsGetsIt) {
  Mutex mutex;
  for (int round = 0; round < test::rounds(200); ++round) {
    mutex.lock();
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) threads.emplace_back([&] { const std::lock_guard lock(mutex); });
    if (round % 2 == 0) std::this_thread::yield();
    mutex.unlock();
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(mutex.try_lock());
    EXPECT_FALSE(mutex.try_lock());
    mutex.unlock();
  }
}

}  // namespace
}  // namespace slabpool
