// The queue alone, without a pool: order, targeted wake-ups, deadlines, cancelling, the doorbell.
#include "slabpool/wait/queue.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "support/loop.hpp"

namespace slabpool {
namespace {

using test::Loop;

constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kAll = std::numeric_limits<std::uint64_t>::max();

constexpr std::uint64_t kQuota = 16;

class FakeRoom final : public Room {
 public:
  std::uint64_t free_bytes() noexcept override { return bytes.load(); }
  std::uint64_t free_slots() noexcept override { return slots.load(); }
  std::uint64_t quota_left(Subject) noexcept override { return quota.load(); }
  bool polls() noexcept override { return polling.load(); }
  bool holds_needed(Subject, Subject request, std::uint64_t needs) noexcept override {
    return needs > kQuota - (request.slot < 100 ? held[request.slot] : 0);
  }
  Circle quota_circle(Subject, Subject request, std::uint64_t) noexcept override {
    if (request.slot >= 100 || held[request.slot] == 0) return Circle::nothing;
    return in_quota_circle ? Circle::yes : Circle::no;
  }
  bool circle() noexcept override { return in_circle.load(); }
  bool gives_way() noexcept override { return giving_way.load(); }
  void collect() noexcept override { collected.fetch_add(1); }
  void waits(bool any, bool) noexcept override { memory_waits.store(any); }

  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::uint64_t> slots{0};
  std::atomic<std::uint64_t> quota{0};
  std::uint64_t held[100] = {};  // of their quota, by requests
  std::atomic<bool> in_circle{false};
  bool in_quota_circle = false;
  std::atomic<bool> giving_way{false};
  std::atomic<bool> polling{false};
  std::atomic<int> collected{0};
  std::atomic<bool> memory_waits{false};
};

Wanted memory(std::uint64_t amount) { return {Resource::memory, amount}; }
Wanted quota(std::uint64_t amount, std::uint32_t slot) { return {Resource::quota, amount, {slot, 7}}; }

class Queue : public testing::Test {
 protected:
  // A waiter of the loop; the attempt before it slept has failed on `wanted`.
  std::unique_ptr<Waiter> waits(const Wanted& wanted, std::int32_t priority = 0) {
    auto waiter = std::make_unique<Waiter>();
    waiter->priority = priority;
    waiter->target = &loop.target;
    queue.enter(*waiter, wanted);
    EXPECT_TRUE(queue.take_again(*waiter)) << "the attempt after it entered";
    return waiter;
  }
  // The one that is woken, by its descriptor.
  Waiter* woken() {
    const bool readable = loop.readable();
    Waiter* const one = queue.take(loop.target);
    EXPECT_EQ(readable, one != nullptr);
    EXPECT_EQ(queue.take(loop.target), nullptr) << "one waiter is woken at a time";
    return one;
  }
  void TearDown() override { EXPECT_EQ(queue.verify(), nullptr); }

  FakeRoom room;
  Loop loop;
  WaitQueue queue{nullptr, room};
};

TEST_F(Queue, TheFirstAloneIsWokenAndOnlyOnceItHasEnough) {
  EXPECT_FALSE(queue.any());
  const auto large = waits(memory(100));
  const auto small = waits(memory(1));
  EXPECT_TRUE(queue.any());
  EXPECT_TRUE(room.memory_waits.load());
  room.bytes = 99;
  queue.wake({.memory = true});
  EXPECT_EQ(woken(), nullptr) << "what is free is set aside for the first, and is not enough yet";
  room.bytes = 100;
  queue.wake({.memory = true});
  EXPECT_EQ(woken(), large.get());
  room.bytes = 0;
  queue.leave(*large);
  EXPECT_EQ(woken(), nullptr) << "it took all";
  room.bytes = 1;
  queue.wake({.memory = true});
  EXPECT_EQ(woken(), small.get());
  queue.leave(*small);
  EXPECT_FALSE(queue.any());
  EXPECT_FALSE(room.memory_waits.load());
  EXPECT_EQ(queue.wakeups(), 2U);
}

TEST_F(Queue, TheNextIsLookedAtWhenTheFirstLeaves) {
  const auto large = waits(memory(100));
  const auto small = waits(memory(1));
  const auto last = waits(memory(1));
  room.bytes = 50;
  queue.leave(*small);
  EXPECT_EQ(woken(), nullptr) << "it was not the first";
  queue.leave(*large);
  EXPECT_EQ(woken(), last.get());
  queue.leave(*large);  // again: nothing
  EXPECT_EQ(woken(), nullptr);
  queue.leave(*last);
}

TEST_F(Queue, PriorityThenArrivalIsTheOrder) {
  const auto a = waits(memory(1));
  const auto b = waits(memory(1), 5);
  const auto c = waits(memory(1));
  const auto d = waits(memory(1), -1);
  const auto e = waits(memory(1), 5);
  for (Waiter* next : {b.get(), e.get(), a.get(), c.get(), d.get()}) {
    EXPECT_TRUE(queue.is_first(*next));
    queue.leave(*next);
  }
}

TEST_F(Queue, NoCallerOfTheSameOrALowerPriorityPasses) {
  EXPECT_TRUE(queue.passes(memory(1)));
  const auto first = waits(memory(1), 1);
  EXPECT_FALSE(queue.passes(memory(1)));
  EXPECT_TRUE(queue.passes({Resource::slots, 1})) << "another resource";
  Waiter other;
  other.priority = 1;
  EXPECT_FALSE(queue.passes(other, memory(1)));
  EXPECT_EQ(other.blocked_on().resource, Resource::memory);
  other.priority = 2;
  EXPECT_TRUE(queue.passes(other, memory(1)));
  EXPECT_TRUE(queue.passes(*first, memory(1)));
  queue.leave(*first);
  EXPECT_TRUE(queue.passes(memory(1)));
}

TEST_F(Queue, EachQuotaHasAFirstOfItsOwn) {
  const auto a = waits(quota(10, 3));
  const auto b = waits(quota(10, 3 + 64));  // the same bucket
  const auto c = waits(quota(10, 3));
  EXPECT_TRUE(queue.is_first(*a));
  EXPECT_TRUE(queue.is_first(*b));
  EXPECT_FALSE(queue.is_first(*c));
  EXPECT_FALSE(queue.passes(quota(1, 3)));
  EXPECT_TRUE(queue.passes(quota(1, 4)));
  EXPECT_FALSE(room.memory_waits.load()) << "memory is not what they wait for";
  room.quota = 9;
  queue.wake({.quota = {3, 7}});
  EXPECT_EQ(woken(), nullptr);
  room.quota = 10;
  queue.wake({.quota = {3, 7}});
  EXPECT_EQ(woken(), a.get());
  queue.leave(*a);
  EXPECT_EQ(woken(), c.get());
  queue.leave(*b);
  queue.leave(*c);
}

TEST_F(Queue, OfThoseBehindTheFirstOfAQuotaOneThatMayPassIsWoken) {
  const auto large = waits(quota(10, 1));
  std::vector<std::unique_ptr<Waiter>> others;
  for (std::uint32_t slot = 0; slot < 100; ++slot) {
    others.push_back(waits(quota(1, 1)));
    others.back()->request = {slot, 7};
  }
  room.held[70] = room.held[80] = 7;
  room.quota = 4;
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), others[70].get()) << "the first cannot be served before its request lets go";
  queue.leave(*others[70]);
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), others[80].get());
  room.held[80] = 6;
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), nullptr) << "none may pass";
  const auto larger = waits(quota(12, 1), 1);
  EXPECT_EQ(woken(), others[80].get()) << "the new first needs what it holds";
  room.quota = 12;
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), larger.get());
}

TEST_F(Queue, InACircleOfAQuotaTheFirstThatHoldsSomethingIsWoken) {
  const auto large = waits(quota(10, 1));
  const auto newcomer = waits(quota(1, 1));
  const auto one = waits(quota(1, 1));
  const auto other = waits(quota(1, 1));
  newcomer->request = {5, 7};
  one->request = {6, 7};
  other->request = {7, 7};
  room.held[6] = room.held[7] = 4;
  room.quota = 2;
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), nullptr);
  room.in_quota_circle = true;
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), one.get()) << "a request that holds nothing overtakes nobody";
  room.held[7] = 7;
  queue.wake({.quota = {1, 7}});
  EXPECT_EQ(woken(), other.get()) << "what it holds is enough alone";
}

TEST_F(Queue, WhatARequestHasDrawnMayLetItsOtherWaitersPass) {
  const auto large = waits(quota(10, 1));
  const auto one = waits(quota(1, 1));
  const auto other = waits(quota(1, 1));
  one->request = other->request = {5, 7};
  room.quota = 4;
  queue.has_charged({1, 7}, nullptr);
  EXPECT_EQ(woken(), nullptr) << "the first can be served before it lets go";
  room.held[5] = 7;
  queue.has_charged({1, 7}, nullptr);
  EXPECT_EQ(woken(), one.get());
  queue.has_charged({1, 7}, one.get());
  EXPECT_EQ(woken(), other.get()) << "what the one that passed has left";
  queue.has_charged({1, 7}, large.get());
  EXPECT_EQ(woken(), nullptr) << "the first was served, and leaves";
}

TEST_F(Queue, InACircleOneThatNeedsLessIsWokenWhenAnAttemptFails) {
  room.in_circle = true;
  const auto large = waits(memory(100));
  const auto medium = waits(memory(20));
  const auto as_much = waits(memory(20));
  const auto small = waits(memory(5));
  for (Waiter* waiter : {medium.get(), as_much.get(), small.get()}) waiter->holds = true;
  room.bytes = 30;
  queue.wake({.memory = true});
  EXPECT_EQ(woken(), medium.get());
  queue.block(*medium, memory(20));  // what is free is not in one piece
  EXPECT_EQ(woken(), small.get());
  queue.block(*small, memory(5));
  EXPECT_EQ(woken(), nullptr);
}

TEST_F(Queue, ANewFirstIsWokenWhereOthersMayGiveWay) {
  const auto first = waits({Resource::slots, 1});
  const auto second = waits({Resource::slots, 1});
  const auto third = waits({Resource::slots, 1});
  queue.leave(*first);
  EXPECT_EQ(woken(), nullptr) << "there is no slot, and nothing gives way";
  room.giving_way = true;
  queue.leave(*second);
  EXPECT_EQ(woken(), third.get()) << "only the first makes others give way";
}

TEST_F(Queue, AWaiterKeepsItsPlaceWhereverItIsBlocked) {
  const auto first = waits(quota(1, 3));
  const auto second = waits(memory(5));
  // It has the quota now, and is before the other.
  EXPECT_TRUE(queue.passes(*first, memory(5)));
  queue.block(*first, memory(5));
  EXPECT_TRUE(queue.take_again(*first)) << "what came back before it stood in that list did not wake it";
  EXPECT_TRUE(queue.is_first(*first));
  EXPECT_FALSE(queue.passes(*second, memory(5)));
  queue.block(*first, memory(4));
  EXPECT_FALSE(queue.take_again(*first)) << "the same list";
  room.bytes = 4;
  queue.wake({.memory = true});
  EXPECT_EQ(woken(), first.get());
  queue.leave(*first);
  queue.leave(*second);
}

TEST_F(Queue, AnEndWakesThoseThatWaitForItAlone) {
  Waiter a, b, c;
  for (Waiter* one : {&a, &b, &c}) one->target = &loop.target;
  queue.enter(a, {Resource::end, 0, {1, 10}});
  queue.enter(b, {Resource::end, 0, {1, 11}});
  queue.enter(c, {Resource::end, 0, {65, 10}});
  EXPECT_EQ(queue.waiting(), 0U) << "they stand in no other's way";
  queue.wake({.memory = true, .any_memory = true, .slots = true, .ended = {1, 10}});
  EXPECT_EQ(woken(), &a);
  queue.wake({.ended = {1, 11}});  // and so everything before it
  EXPECT_TRUE(loop.readable());
  EXPECT_EQ(queue.take(loop.target), &a);
  EXPECT_EQ(queue.take(loop.target), &b);
  EXPECT_EQ(queue.take(loop.target), nullptr);
}  // they leave by their destructors

TEST_F(Queue, CancelledByWhatTheyDependOn) {
  Waiter a, b;
  for (Waiter* one : {&a, &b}) one->target = &loop.target;
  a.request = {1, 10};
  b.session = {2, 20};
  queue.enter(a, memory(1));
  queue.enter(b, memory(1));
  queue.cancel_if([](const Subject& of) { return of.generation == 20; });
  EXPECT_EQ(woken(), &b);
  EXPECT_TRUE(b.cancelled());
  EXPECT_FALSE(a.cancelled());
}

TEST_F(Queue, ALoopsDescriptorIsWrittenOnce) {
  const auto a = waits(memory(1));
  const auto b = waits({Resource::slots, 1});
  queue.wake_all();
  queue.wake_all();
  EXPECT_TRUE(loop.readable());
  EXPECT_FALSE(loop.readable());
  EXPECT_EQ(queue.take(loop.target), a.get());
  queue.leave(*b);  // while it is woken
  EXPECT_EQ(queue.take(loop.target), nullptr);
  queue.leave(*a);
}

TEST_F(Queue, AheadNamesTheFirstFew) {
  const auto a = waits(memory(1));
  const auto b = waits(memory(1), 3);
  const auto c = waits(memory(1));
  const auto other = waits(quota(1, 3));
  std::vector<const Waiter*> named;
  const auto note = [&](const Waiter& one) { named.push_back(&one); };
  EXPECT_EQ(queue.ahead(*c, 1, note), 2U);
  EXPECT_EQ(named, std::vector<const Waiter*>{b.get()});
  Waiter newcomer;
  EXPECT_FALSE(queue.passes(newcomer, memory(1)));
  EXPECT_EQ(queue.ahead(newcomer, 0, note), 3U);
  EXPECT_EQ(queue.waiting(), 4U);
  for (Waiter* one : {a.get(), b.get(), c.get(), other.get()}) queue.leave(*one);
}

// ---- threads

TEST_F(Queue, AThreadTriesOnceAfterItEnteredAndThenSleepsUntilItsDeadline) {
  Waiter waiter;
  queue.enter(waiter, memory(1));
  EXPECT_TRUE(queue.wait(waiter, kForever));
  const std::int64_t until = now_ns() + 5'000'000;
  EXPECT_FALSE(queue.wait(waiter, until));
  EXPECT_GE(now_ns(), until);
  EXPECT_FALSE(queue.wait(waiter, now_ns() - 1)) << "a deadline in the past is no wait";
}

TEST_F(Queue, AWakeUpBetweenTheTryAndTheSleepIsNotLost) {
  Waiter waiter;
  queue.enter(waiter, memory(1));
  EXPECT_TRUE(queue.wait(waiter, kForever));
  room.bytes = 1;
  queue.wake({.memory = true});  // during the attempt
  EXPECT_TRUE(queue.wait(waiter, kForever));
}

TEST_F(Queue, AThreadThatSleepsIsWoken) {
  std::atomic<bool> tried{false};
  std::thread thread([&] {
    Waiter waiter;
    queue.enter(waiter, memory(1));
    EXPECT_TRUE(queue.wait(waiter, kForever));
    tried = true;
    EXPECT_TRUE(queue.wait(waiter, kForever));
  });
  while (!tried) std::this_thread::yield();
  room.bytes = 1;
  queue.wake({.memory = true});
  thread.join();
}

TEST_F(Queue, TheFirstPollsWhileThereIsSomethingToPoll) {
  room.polling = true;
  Waiter first, second;
  queue.enter(first, memory(kAll));
  queue.enter(second, memory(kAll));
  EXPECT_TRUE(queue.wait(first, kForever));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(queue.wait(first, kForever)) << "no thread wakes it";
  EXPECT_TRUE(queue.wait(second, kForever));
  EXPECT_FALSE(queue.wait(second, now_ns() + 5'000'000)) << "it is not the first";
  queue.leave(first);
  EXPECT_TRUE(queue.wait(second, kForever)) << "now it is";
}

// A doorbell whose listen() reads the wake-up as SharedOwner's does, and that counts who listens.
class CountingBell final : public Doorbell {
 public:
  void wait_begins() noexcept override { waiting.fetch_add(1); }
  void wait_ends() noexcept override { waiting.fetch_sub(1); }
  void listen(int wakeup, std::int64_t ns) noexcept override {
    EXPECT_EQ(listening.fetch_add(1), 0) << "one thread listens";
    heard.fetch_add(1);
    pollfd source{wakeup, POLLIN, 0};
    (void)poll(&source, 1, static_cast<int>(std::min<std::int64_t>(ns / 1'000'000, 10'000)));
    std::uint64_t count = 0;
    (void)!read(wakeup, &count, sizeof count);
    listening.fetch_sub(1);
  }
  std::atomic<int> waiting{0};
  std::atomic<int> listening{0};
  std::atomic<int> heard{0};
};

TEST(QueueWithADoorbell, OneThreadListensAndPassesTheBellOn) {
  FakeRoom room;
  CountingBell bell;
  WaitQueue queue(&bell, room);
  constexpr int kThreads = 6;
  std::atomic<int> tried{0};
  std::atomic<int> served{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      Waiter waiter;
      queue.enter(waiter, memory(1));
      EXPECT_TRUE(queue.wait(waiter, kForever));
      tried.fetch_add(1);
      EXPECT_TRUE(queue.wait(waiter, kForever));
      served.fetch_add(1);
    });
  }
  while (tried.load() != kThreads) std::this_thread::yield();
  EXPECT_EQ(bell.waiting.load(), kThreads);
  room.bytes = 1;
  queue.wake({.memory = true});  // each that leaves wakes the next
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(served.load(), kThreads);
  EXPECT_EQ(bell.waiting.load(), 0);
  EXPECT_EQ(queue.wakeups(), static_cast<std::uint64_t>(kThreads));
}

}  // namespace
}  // namespace slabpool
