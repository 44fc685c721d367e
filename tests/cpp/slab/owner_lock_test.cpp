// The owner's lock: two threads are never inside together, and each sees the other's writes.
#include "slabpool/slab/owner_lock.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "support/scale.hpp"

namespace slabpool {
namespace {

// Two numbers that are equal while no thread is inside. Not atomic, so that ThreadSanitizer reports any access that the
// lock does not order.
struct Guarded {
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  bool step() {
    const bool fine = a == b;
    ++a;
    // Keeps the compiler from joining the two steps, so that with a broken lock another thread can come between them.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    ++b;
    return fine;
  }
};

// Where the barrier is missing, the locks are made to exchange.
void order() { EXPECT_EQ(barrier_all_threads(), asymmetric_barrier()); }

TEST(OwnerLock, OwnerComesAndGoes) {
  OwnerLock lock;
  std::mutex revokers;
  for (int i = 0; i < 3; ++i) {
    lock.enter(revokers);
    lock.leave();
  }
}

TEST(OwnerLock, ARevokerHasItToItself) {
  OwnerLock lock;
  std::mutex revokers;
  Guarded guarded;
  std::atomic<bool> stop{false};
  std::uint64_t owner_steps = 0;
  std::uint64_t wrong = 0;
  std::thread owner([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      lock.enter(revokers);
      wrong += guarded.step() ? 0 : 1;
      lock.leave();
      ++owner_steps;
    }
  });
  std::uint64_t revoker_steps = 0;
  std::vector<std::thread> revoking;
  for (int t = 0; t < 2; ++t) {
    revoking.emplace_back([&] {
      for (int i = 0; i < test::rounds(20'000); ++i) {
        const std::lock_guard alone(revokers);
        lock.revoke();
        order();
        lock.wait();
        wrong += guarded.step() ? 0 : 1;
        ++revoker_steps;
        lock.restore();
      }
    });
  }
  for (std::thread& thread : revoking) thread.join();
  stop.store(true);
  owner.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(guarded.a, owner_steps + revoker_steps);
  EXPECT_EQ(guarded.b, owner_steps + revoker_steps);
}

TEST(OwnerLock, ManyLocksAreRevokedByOneBarrier) {
  constexpr int kOwners = 3;
  OwnerLock locks[kOwners];
  Guarded guarded[kOwners];
  std::mutex revokers;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> owners;
  for (int t = 0; t < kOwners; ++t) {
    owners.emplace_back([&, t] {
      while (!stop.load(std::memory_order_relaxed)) {
        locks[t].enter(revokers);
        if (!guarded[t].step()) ++wrong;
        locks[t].leave();
      }
    });
  }
  for (int i = 0; i < test::rounds(5'000); ++i) {
    const std::lock_guard alone(revokers);
    for (OwnerLock& lock : locks) lock.revoke();
    order();
    for (int t = 0; t < kOwners; ++t) {
      locks[t].wait();
      if (!guarded[t].step()) ++wrong;
      locks[t].restore();
    }
  }
  stop.store(true);
  for (std::thread& thread : owners) thread.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(OwnerLock, AnOwnerThatFindsItselfRevokedWaits) {
  OwnerLock lock;
  std::mutex revokers;
  std::atomic<bool> inside{false};
  std::unique_lock alone(revokers);
  lock.revoke();
  order();
  lock.wait();
  std::thread owner([&] {
    lock.enter(revokers);
    inside.store(true);
    lock.leave();
  });
  // It cannot enter until the revoker restores the lock; a broken lock would let it in here now and then.
  for (int i = 0; i < 1000; ++i) {
    EXPECT_FALSE(inside.load());
    std::this_thread::yield();
  }
  lock.restore();
  alone.unlock();
  owner.join();
  EXPECT_TRUE(inside.load());
}

}  // namespace
}  // namespace slabpool
