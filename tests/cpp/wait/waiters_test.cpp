// Waiters alone, without a pool: deadlines, wake-ups, timed polling, descriptors of event loops.
#include "slabpool/wait/waiters.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <limits>
#include <thread>

namespace slabpool {
namespace {

constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();
const auto kNeverPolls = [] { return false; };

TEST(Waiters, TryOnceMoreAfterTheDeadline) {
  Waiters waiters(nullptr);
  int tries = 0;
  const auto attempt = [&] {
    ++tries;
    return false;
  };
  const std::int64_t until = now_ns() + 5'000'000;
  EXPECT_FALSE(waiters.wait(until, attempt, kNeverPolls));
  EXPECT_GE(now_ns(), until);
  EXPECT_EQ(tries, 2);
  EXPECT_FALSE(waiters.wait(now_ns() - 1, attempt, kNeverPolls)) << "a deadline in the past is no wait";
}

TEST(Waiters, AWakeUpBetweenTheTryAndTheSleepIsNotLost) {
  Waiters waiters(nullptr);
  std::atomic<bool> ready{false};
  bool first = true;
  const bool done = waiters.wait(
      kForever,
      [&] {
        const bool was = ready.load();
        if (first) {  // as another thread would, after this try has failed
          ready.store(true);
          waiters.notify();
          first = false;
        }
        return was;
      },
      kNeverPolls);
  EXPECT_TRUE(done);
}

TEST(Waiters, EveryWaiterIsWoken) {
  Waiters waiters(nullptr);
  std::atomic<bool> ready{false};
  std::atomic<int> trying{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      bool counted = false;
      EXPECT_TRUE(waiters.wait(
          kForever,
          [&] {
            if (!counted) trying.fetch_add(1);
            counted = true;
            return ready.load();
          },
          kNeverPolls));
    });
  }
  while (trying.load() != 4) std::this_thread::yield();
  ready.store(true);
  waiters.notify();
  for (std::thread& thread : threads) thread.join();
}

TEST(Waiters, PollWhileThereIsSomethingToPoll) {
  Waiters waiters(nullptr);
  int tries = 0;
  EXPECT_TRUE(waiters.wait(
      kForever, [&] { return ++tries == 5; }, [] { return true; }))
      << "no thread wakes it";
}

TEST(Waiters, ADescriptorIsReadableAfterEachWake) {
  Waiters waiters(nullptr);
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  ASSERT_GE(fd, 0);
  const auto readable = [&] {
    pollfd source{fd, POLLIN, 0};
    std::uint64_t count = 0;
    return poll(&source, 1, 0) == 1 && read(fd, &count, sizeof count) == sizeof count;
  };
  waiters.notify();
  EXPECT_FALSE(readable()) << "no waiter was registered";
  waiters.add_wakeup(fd);
  waiters.notify();
  EXPECT_TRUE(readable());
  waiters.remove_wakeup(fd);
  waiters.remove_wakeup(fd);  // of a descriptor that is not registered: nothing
  waiters.notify();
  EXPECT_FALSE(readable());
  close(fd);
}

// A doorbell that counts, and whose listen() reads the wake-up as SharedOwner's does.
class CountingBell final : public Doorbell {
 public:
  void wait_begins() noexcept override { ++waiting; }
  void wait_ends() noexcept override { --waiting; }
  void listen(int wakeup, std::int64_t) noexcept override {
    EXPECT_EQ(waiting, 1);
    std::uint64_t count = 0;
    if (wakeup >= 0 && read(wakeup, &count, sizeof count) == sizeof count) ++heard;
  }
  int waiting = 0;
  int heard = 0;
};

TEST(Waiters, WithADoorbellEachWaiterHasADescriptor) {
  CountingBell bell;
  Waiters waiters(&bell);
  for (int round = 0; round < 3; ++round) {
    int tries = 0;
    EXPECT_TRUE(waiters.wait(
        kForever,
        [&] {
          waiters.notify();
          return ++tries == 2;
        },
        kNeverPolls));
    EXPECT_EQ(bell.waiting, 0);
  }
  EXPECT_EQ(bell.heard, 3);
}

}  // namespace
}  // namespace slabpool
