// Threads and event loops that wait for memory, or for the end of a request.
//
// A waiter registers, tries, and sleeps until wake() or its deadline; then it tries again. Waiters sleep on a condition
// variable, or, in a pool with a doorbell, each on its own eventfd and on the bell. Event loops register a descriptor
// with add_wakeup(). While no waiter is registered, notify() costs one load.
// Invariants:
//   count_ >= number of registered threads + descriptors of event loops;
//   a waiter registers before its first try. So either the try finds memory that came back before, or the thread that
//   returned it sees the count and calls wake(). (Sequentially consistent, both.)
// The lock is a leaf in the order of locks.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "slabpool/base/clock.hpp"
#include "slabpool/wait/doorbell.hpp"

namespace slabpool {

class Waiters {
 public:
  // `doorbell` (null: no other process has news) outlives this.
  explicit Waiters(Doorbell* doorbell) noexcept : doorbell_(doorbell) {}
  Waiters(const Waiters&) = delete;
  Waiters& operator=(const Waiters&) = delete;
  ~Waiters();

  // After memory came back or a request ended. A plain load on x86-64; where the memory went to this thread's own cache,
  // the barrier in CacheSet::collect() orders the return before this load.
  void notify() noexcept {
    if (count_.load(std::memory_order_seq_cst) != 0) [[unlikely]]
      wake();
  }

  // Calls attempt() until it is true or `deadline_ns` (monotonic) has passed; attempt() is called once more after the
  // deadline. Between two calls a wake() came. Streams never wake waiters: while polls() is true, waiters switch to timed
  // polling, after 20 us at first (most work that is waited for is short) and 1 ms at most.
  template <typename Attempt, typename Polls>
  bool wait(std::int64_t deadline_ns, Attempt&& attempt, Polls&& polls) noexcept {
    const Registration waiter(*this);
    std::int64_t pause = kFirstPause;
    for (;;) {
      const std::uint64_t epoch = this->epoch();
      if (attempt()) return true;
      // After the registration: an ack that is queued on a stream later wakes this waiter, see Pool::ack_after().
      std::int64_t until_ns = deadline_ns;
      if (polls()) {
        until_ns = std::min(deadline_ns, now_ns() + pause);
        pause = std::min(pause * 2, kLongestPause);
      }
      sleep(waiter.wakeup, epoch, until_ns);
      // The clock decides, not the reason for waking: in a busy pool there is always news.
      if (now_ns() >= deadline_ns) return attempt();
    }
  }

  // The descriptor (an eventfd or a pipe) is written to at each wake(), until it is removed. Throws std::bad_alloc.
  void add_wakeup(int fd);
  void remove_wakeup(int fd) noexcept;

 private:
  static constexpr std::int64_t kFirstPause = 20'000;
  static constexpr std::int64_t kLongestPause = 1'000'000;

  struct Registration {
    explicit Registration(Waiters& waiters) noexcept : of(waiters), wakeup(waiters.enter()) {}
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;
    ~Registration() { of.leave(wakeup); }
    Waiters& of;
    const int wakeup;  // -1: none
  };

  [[gnu::noinline]] void wake() noexcept;
  int enter() noexcept;
  void leave(int wakeup) noexcept;
  void count_in() noexcept;
  void count_out() noexcept;
  int take_wakeup() noexcept;
  std::uint64_t epoch() noexcept;
  void sleep(int wakeup, std::uint64_t epoch, std::int64_t until_ns) noexcept;

  Doorbell* const doorbell_;
  std::atomic<std::uint32_t> count_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
  std::uint64_t epoch_ = 0;         // number of wake() calls
  std::vector<int> wakeups_;        // written to at each wake()
  std::vector<int> spare_wakeups_;  // eventfds of threads that waited, to use again
};

}  // namespace slabpool
