// A process in which membarrier(2) stops working after slabpool was loaded: no two threads are inside a lock together, and
// the blocks of other threads are still found.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "slabpool/base/barrier.hpp"
#include "slabpool/base/mutex.hpp"
#include "slabpool/slab/owner_lock.hpp"
#include "slabpool/slab/thread_cache.hpp"
#include "support/fake_memory.hpp"
#include "support/scale.hpp"
#include "support/seccomp.hpp"

namespace slabpool {
namespace {

constexpr int kSkipped = 77;
constexpr std::uint64_t kCapacity = std::uint64_t{16} << 20;

// Runs f() in a child of which the calling thread cannot call membarrier. f returns 0 for a pass, else what was wrong.
template <typename F>
void without_barrier(int error, F&& f) {
  const pid_t child = fork();
  if (child == 0) _exit(f([error] { return test::refuse_call(SYS_membarrier, error); }));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "no seccomp filter can be set here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// Revokes as CacheSet::collect() does. True if the caller has the lock and must restore it.
bool revoked(OwnerLock& lock, int owner) {
  lock.revoke();
  if (!barrier_all_threads()) {
    lock.need_exchange();
    if (!lock.exchanges() && !was_off_processor(owner)) {
      lock.restore();
      return false;
    }
  }
  lock.wait();
  return true;
}

class BarrierLost : public testing::TestWithParam<int> {};

TEST_P(BarrierLost, TheFailureIsSeenAndRemembered) {
  without_barrier(GetParam(), [](auto&& filter) {
    const bool before = asymmetric_barrier();
    if (before != barrier_all_threads()) return 1;
    if (!filter()) return kSkipped;
    if (barrier_all_threads()) return 2;
    return asymmetric_barrier() ? 3 : 0;
  });
}

TEST_P(BarrierLost, NoThreadSleepsForEverBeforeAMutex) {
  without_barrier(GetParam(), [](auto&& filter) {
    Mutex mutex;
    std::uint64_t count = 0;
    const int rounds = test::rounds(20'000);
    std::atomic<bool> filtered{true};
    std::vector<std::thread> threads;
    // The filter of a thread is that of those it starts later, so each of two sets its own half-way.
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < rounds; ++i) {
          if (t < 2 && i == rounds / 2 && !filter()) filtered.store(false);
          const std::lock_guard lock(mutex);
          ++count;
          if (i % 64 == 0) std::this_thread::yield();  // so that others find it taken for long
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (!filtered.load()) return kSkipped;
    return count == 4 * static_cast<std::uint64_t>(rounds) ? 0 : 1;
  });
}

TEST_P(BarrierLost, ALockIsHeldByOneThreadAtATime) {
  without_barrier(GetParam(), [](auto&& filter) {
    OwnerLock lock;
    std::mutex revokers;
    // Equal while no thread is inside.
    std::uint64_t a = 0;
    std::uint64_t b = 0;
    std::atomic<int> owner{0};
    std::atomic<bool> stop{false};
    std::uint64_t steps = 0;
    std::uint64_t wrong = 0;
    const auto step = [&] {
      wrong += a == b ? 0 : 1;
      ++a;
      std::atomic_signal_fence(std::memory_order_seq_cst);
      ++b;
    };
    std::thread thread([&] {
      owner.store(static_cast<int>(syscall(SYS_gettid)));
      while (!stop.load(std::memory_order_relaxed)) {
        lock.enter(revokers);
        step();
        lock.leave();
        ++steps;
      }
    });
    while (owner.load() == 0) std::this_thread::yield();
    std::uint64_t mine = 0;
    bool filtered = true;
    const int rounds = test::rounds(400'000);
    for (int i = 0; i < rounds && filtered; ++i) {
      if (i == rounds / 4) filtered = filter();
      // The owner exchanges, or is off its processor, as soon as it has had the processor once.
      for (bool done = false; !done;) {
        const std::lock_guard alone(revokers);
        done = revoked(lock, owner.load());
        if (!done) continue;
        step();
        ++mine;
        lock.restore();
      }
    }
    stop.store(true);
    thread.join();
    if (!filtered) return kSkipped;
    return wrong != 0 || a != steps + mine || b != a ? 1 : 0;
  });
}

TEST_P(BarrierLost, BlocksOfASleepingThreadAreFound) {
  without_barrier(GetParam(), [](auto&& filter) {
    test::FakeMemory memory(16 * kCapacity);
    Depot depot(memory, kCapacity, false);
    CacheSet caches(depot, kCapacity);
    std::mutex mutex;
    std::condition_variable changed;
    int phase = 0;
    std::thread sleeper([&] {
      ThreadCache& cache = caches.mine();
      Block* block = depot.take_blocks(0, 1, Depot::Effort::soft).chain;
      cache.keep(block);
      block->home = &cache;
      block->next = nullptr;
      cache.push(block);  // now in this thread's cache
      std::unique_lock lock(mutex);
      phase = 1;
      changed.notify_all();
      changed.wait(lock, [&] { return phase == 2; });
      phase = cache.pop(0, 1, false) == nullptr ? 3 : 4;  // 3: another thread has taken it
    });
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return phase == 1; });
    lock.unlock();
    if (!filter()) {
      phase = 2;
      changed.notify_all();
      sleeper.join();
      return kSkipped;
    }
    // The sleeper goes to sleep a moment after it unlocks the mutex.
    do caches.collect();
    while (caches.left_some());
    lock.lock();
    phase = 2;
    changed.notify_all();
    lock.unlock();
    sleeper.join();
    return phase == 3 ? 0 : 1;
  });
}

TEST_P(BarrierLost, AThreadThatRunsKeepsItsBlocksUntilItEntersAgain) {
  without_barrier(GetParam(), [](auto&& filter) {
    test::FakeMemory memory(16 * kCapacity);
    Depot depot(memory, kCapacity, false);
    CacheSet caches(depot, kCapacity);
    std::atomic<int> phase{0};
    std::thread runner([&] {
      ThreadCache& cache = caches.mine();
      Block* block = depot.take_blocks(0, 1, Depot::Effort::soft).chain;
      cache.keep(block);
      block->home = &cache;
      block->next = nullptr;
      cache.push(block);
      phase.store(1);
      while (phase.load() == 1) {
      }
      Block* again = cache.pop(0, 1, false);  // enters by an exchange
      if (again != nullptr) {
        again->home = &cache;
        again->next = nullptr;
        cache.push(again);
      }
      phase.store(3);
      while (phase.load() == 3) {
      }
    });
    while (phase.load() != 1) std::this_thread::yield();
    if (!filter()) {
      phase.store(2);
      while (phase.load() != 3) std::this_thread::yield();
      phase.store(4);
      runner.join();
      return kSkipped;
    }
    caches.collect();  // takes the block or leaves it: the kernel may take the runner off its processor
    phase.store(2);
    while (phase.load() != 3) std::this_thread::yield();
    caches.collect();
    const bool left = caches.left_some();
    phase.store(4);
    runner.join();
    return left ? 1 : 0;
  });
}

INSTANTIATE_TEST_SUITE_P(Errors, BarrierLost, testing::Values(EPERM, ENOSYS));

TEST(WasOffProcessor, OfAThreadThatSleepsThatRunsAndThatHasEnded) {
  std::mutex mutex;
  std::unique_lock held(mutex);
  std::atomic<int> number{0};
  std::atomic<bool> stop{false};
  std::thread sleeps([&] {
    number.store(static_cast<int>(syscall(SYS_gettid)));
    const std::lock_guard lock(mutex);
  });
  while (number.load() == 0) std::this_thread::yield();
  const int sleeper = number.exchange(0);
  if (access("/proc/self/syscall", R_OK) != 0) {
    held.unlock();
    sleeps.join();
    GTEST_SKIP() << "/proc has no file for what a thread waits in";
  }
  while (!was_off_processor(sleeper)) std::this_thread::yield();
  held.unlock();
  sleeps.join();
  // A joined thread may still be on its way out of the kernel.
  while (!was_off_processor(sleeper)) std::this_thread::yield();
  std::thread runs([&] {
    number.store(static_cast<int>(syscall(SYS_gettid)));
    while (!stop.load(std::memory_order_relaxed)) {
    }
  });
  while (number.load() == 0) std::this_thread::yield();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(was_off_processor(number.load()));
  stop.store(true);
  runs.join();
}

}  // namespace
}  // namespace slabpool
