// The queue against a model: random callers, returns and departures. After each step the model knows which caller may have
// what, and which waiter must have been woken. So no caller overtakes another of its own or a higher priority, no waiter
// sleeps while it could be served, and all are served once what is held has come back: starvation is impossible.
#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <memory>
#include <random>
#include <vector>

#include "slabpool/wait/queue.hpp"
#include "support/loop.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::Loop;
using test::rounds;

constexpr std::uint64_t kBytes = 20;
constexpr std::uint64_t kQuota = 12;
constexpr std::uint32_t kTenants = 3;

// A pool in small: bytes, and tenants with quotas.
class SmallRoom final : public Room {
 public:
  std::uint64_t free_bytes() noexcept override { return kBytes - used; }
  std::uint64_t free_slots() noexcept override { return 0; }
  std::uint64_t quota_left(Subject of) noexcept override { return kQuota - charged[of.slot]; }
  bool polls() noexcept override { return false; }
  bool holds_needed(Subject, Subject, std::uint64_t) noexcept override { return false; }
  Circle quota_circle(Subject, Subject, std::uint64_t) noexcept override { return Circle::nothing; }
  bool circle() noexcept override { return false; }
  bool gives_way() noexcept override { return false; }
  void collect() noexcept override {}
  void waits(bool, bool) noexcept override {}

  std::uint64_t used = 0;
  std::uint64_t charged[kTenants] = {};
};

struct Caller {
  Waiter waiter;
  std::uint64_t bytes = 0;
  std::uint32_t tenant = 0;
  std::uint64_t arrival = 0;
};

class Schedule {
 public:
  explicit Schedule(std::uint64_t seed) : random_(seed) {}

  void run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      switch (random_() % 6) {
        case 0:
        case 1:
        case 2:
          call();
          break;
        case 3:
        case 4:
          give_back();
          break;
        default:
          give_up();
      }
      settle();
    }
    // What is held comes back, and nothing new is asked for.
    while (!held_.empty() && !testing::Test::HasFailure()) {
      give_back();
      settle();
    }
    EXPECT_TRUE(waiting_.empty()) << waiting_.size() << " waiters starve";
    EXPECT_EQ(queue_.verify(), nullptr);
  }

 private:
  static bool before(const Caller& a, const Caller& b) {
    return a.waiter.priority != b.waiter.priority ? a.waiter.priority > b.waiter.priority
                                                  : a.arrival < b.arrival;
  }
  bool stands_before(const Caller& other, const Caller& caller, const Wanted& wanted) const {
    const Wanted& on = other.waiter.blocked_on();
    return &other != &caller && before(other, caller) && on.resource == wanted.resource &&
           on.of == wanted.of;
  }
  bool overtakes(const Caller& caller, const Wanted& wanted) const {
    return std::any_of(waiting_.begin(), waiting_.end(),
                       [&](const auto& other) { return stands_before(*other, caller, wanted); });
  }
  std::uint64_t left_of(const Wanted& wanted) {
    return wanted.resource == Resource::quota ? room_.quota_left(wanted.of) : room_.free_bytes();
  }

  // As an attempt of the pool: the quota, then the memory.
  bool attempt(Caller& caller) {
    for (const Wanted& wanted : {Wanted{Resource::quota, caller.bytes, {caller.tenant, 7}},
                                 Wanted{Resource::memory, caller.bytes}}) {
      const bool would_overtake = overtakes(caller, wanted);
      EXPECT_EQ(queue_.passes(caller.waiter, wanted), !would_overtake);
      if (would_overtake) return false;
      if (left_of(wanted) < caller.bytes) {
        queue_.block(caller.waiter, wanted);
        return false;
      }
    }
    room_.used += caller.bytes;
    room_.charged[caller.tenant] += caller.bytes;
    return true;
  }

  void call() {
    auto caller = std::make_unique<Caller>();
    caller->bytes = 1 + random_() % kQuota;
    caller->tenant = static_cast<std::uint32_t>(random_() % kTenants);
    caller->waiter.priority = static_cast<std::int32_t>(random_() % 3);
    caller->waiter.target = &loop_.target;
    caller->arrival = next_arrival_++;
    if (attempt(*caller)) return held_.push_back(std::move(caller));
    if (random_() % 4 == 0) return;  // it does not wait
    queue_.enter(caller->waiter);
    waiting_.push_back(std::move(caller));
    try_again(std::prev(waiting_.end()));
  }

  void try_again(std::list<std::unique_ptr<Caller>>::iterator place) {
    Caller& caller = **place;
    bool served = false;
    do {
      (void)queue_.take_again(caller.waiter);
      served = attempt(caller);
    } while (!served && queue_.take_again(caller.waiter));
    if (!served) return;
    held_.push_back(std::move(*place));
    waiting_.erase(place);
    queue_.leave(held_.back()->waiter);
  }

  void give_back() {
    if (held_.empty()) return;
    const auto at = held_.begin() + static_cast<std::ptrdiff_t>(random_() % held_.size());
    const std::unique_ptr<Caller> caller = std::move(*at);
    held_.erase(at);
    room_.used -= caller->bytes;
    room_.charged[caller->tenant] -= caller->bytes;
    if (queue_.any()) queue_.wake({.memory = true, .quota = {caller->tenant, 7}});
  }

  void give_up() {
    if (waiting_.empty()) return;
    const auto at =
        std::next(waiting_.begin(), static_cast<std::ptrdiff_t>(random_() % waiting_.size()));
    const std::unique_ptr<Caller> caller = std::move(*at);
    waiting_.erase(at);
    queue_.leave(caller->waiter);
  }

  // Lets woken waiters run. Then no waiter sleeps that could be served.
  void settle() {
    while (Waiter* woken = queue_.take(loop_.target)) {
      const auto at = std::find_if(waiting_.begin(), waiting_.end(),
                                   [&](const auto& one) { return &one->waiter == woken; });
      ASSERT_NE(at, waiting_.end());
      try_again(at);
    }
    for (const auto& one : waiting_) {
      const Wanted& on = one->waiter.blocked_on();
      const bool first = !overtakes(*one, on);
      EXPECT_EQ(queue_.is_first(one->waiter), first);
      EXPECT_TRUE(!first || left_of(on) < one->bytes) << "the first sleeps, and there is enough for it";
    }
    ASSERT_EQ(queue_.verify(), nullptr);
  }

  std::mt19937_64 random_;
  SmallRoom room_;
  Loop loop_;
  WaitQueue queue_{nullptr, room_};
  std::uint64_t next_arrival_ = 0;
  std::list<std::unique_ptr<Caller>> waiting_;
  std::vector<std::unique_ptr<Caller>> held_;
};

TEST(QueueModel, OrderIsKeptAndNoWaiterStarves) {
  for (int seed = 0; seed < rounds(300); ++seed) {
    Schedule schedule(static_cast<std::uint64_t>(seed));
    schedule.run(400);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace slabpool
