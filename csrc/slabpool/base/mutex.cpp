// What a thread does that finds the mutex taken.
#include "slabpool/base/mutex.hpp"

#include <chrono>
#include <thread>

#include "slabpool/base/barrier.hpp"

namespace slabpool {
namespace {

// Looks before a thread sleeps: about a microsecond, a few times what the sections of this library take.
constexpr int kLooks = 100;
constexpr std::chrono::microseconds kPoll{50};

void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace

void Mutex::lock_after() noexcept {
  for (int left = kLooks; left > 0; --left) {
    if (state_.load(std::memory_order_relaxed) == kFree && try_lock()) return;
    pause();
  }
  // Sequentially consistent: before the barrier.
  waiting_.fetch_add(1, std::memory_order_seq_cst);
  const bool is_seen = barrier_all_threads();
  while (!try_lock()) {
    if (is_seen) {
      state_.wait(kTaken, std::memory_order_relaxed);
    } else {
      std::this_thread::sleep_for(kPoll);
    }
  }
  // Relaxed: a holder that reads the old number wakes a thread for nothing.
  waiting_.fetch_sub(1, std::memory_order_relaxed);
}

void Mutex::wake() noexcept {
  // The waiter reads the state in wait() after it has registered there, and notify_one() looks for it after the state was
  // stored: one of the two sees the other.
  waiting_.fetch_add(0, std::memory_order_seq_cst);  // a full barrier; ThreadSanitizer knows no fences
  state_.notify_one();
}

}  // namespace slabpool
