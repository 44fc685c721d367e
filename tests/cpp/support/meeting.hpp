// A barrier after which the threads of a test continue at the same moment. A thread that the kernel has to wake is many
// microseconds late, and the races under test last nanoseconds. So the threads meet twice: first until all are awake,
// then to continue.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <random>
#include <utility>

namespace slabpool::test {

class Meeting {
 public:
  // The last thread to arrive calls `between`, while all others wait.
  explicit Meeting(int threads, std::function<void()> between = {})
      : threads_(threads), between_(std::move(between)) {}

  void arrive() {
    pass(true);
    pass(false);
  }

 private:
  void pass(bool first) {
    const unsigned round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      if (first && between_) between_();
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    for (int spins = 0; spins < 50'000; ++spins) {
      if (round_.load(std::memory_order_acquire) != round) return;
    }
    round_.wait(round, std::memory_order_acquire);  // there may be more threads than processors
  }

  const int threads_;
  const std::function<void()> between_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

// Work of random length, so that two threads meet at different points of their code: from nothing to about ten
// microseconds, each order of magnitude equally likely.
inline void dawdle(std::mt19937_64& random, unsigned doublings = 14) {
  for (auto n = random() % (std::uint64_t{1} << (random() % doublings)); n > 0; --n) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
}

}  // namespace slabpool::test
