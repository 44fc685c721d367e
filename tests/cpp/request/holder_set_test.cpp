// Holders: each leaves once, the last one is recognised, and a tag keeps generations apart.
#include "slabpool/request/holder_set.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "support/meeting.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using Left = HolderSet::Left;

std::vector<std::uint32_t> pending(const HolderSet& set, std::uint32_t tag) {
  std::vector<std::uint32_t> devices;
  set.each_device(tag, [&](std::uint32_t device) { devices.push_back(device); });
  return devices;
}

TEST(HolderSet, TheHostHoldsFromTheStart) {
  HolderSet set;
  set.open(7, 1);
  EXPECT_TRUE(set.holds(7, kHost));
  EXPECT_FALSE(set.empty(7));
  EXPECT_TRUE(pending(set, 7).empty());
  EXPECT_EQ(set.leave(7, kHost), Left::last);
  EXPECT_TRUE(set.empty(7));
}

TEST(HolderSet, EachLeavesOnceAndTheLastIsRecognised) {
  HolderSet set;
  set.open(1, 1);
  set.add(1, device_bit(0));
  set.add(1, device_bit(5));
  EXPECT_EQ(set.leave(1, device_bit(5)), Left::others_hold);
  EXPECT_EQ(set.leave(1, device_bit(5)), Left::before);
  EXPECT_EQ(set.leave(1, device_bit(4)), Left::never);
  EXPECT_EQ(set.leave(1, kHost), Left::others_hold);
  EXPECT_EQ(set.leave(1, kHost), Left::before);
  EXPECT_EQ(pending(set, 1), std::vector<std::uint32_t>{0});
  EXPECT_EQ(set.leave(1, device_bit(0)), Left::last);
  EXPECT_EQ(set.leave(1, device_bit(0)), Left::before);
}

TEST(HolderSet, AnotherGenerationsAckChangesNothing) {
  HolderSet set;
  set.open(1, 1);
  set.add(1, device_bit(3));
  (void)set.leave(1, device_bit(3));
  (void)set.leave(1, kHost);
  set.open(2, 1);
  set.add(2, device_bit(3));
  EXPECT_EQ(set.leave(1, device_bit(3)), Left::gone);
  EXPECT_EQ(set.leave(1, kHost), Left::gone);
  EXPECT_FALSE(set.holds(1, device_bit(3)));
  EXPECT_FALSE(set.empty(1));
  EXPECT_TRUE(set.holds(2, device_bit(3)));
  EXPECT_FALSE(set.cut(1));
  EXPECT_TRUE(set.holds(2, kHost));
  EXPECT_TRUE(pending(set, 1).empty());
}

TEST(HolderSet, AnAckForAWordOfAnOlderGenerationIsGone) {
  HolderSet set;
  set.open(1, 1);
  set.add(1, device_bit(1000));
  (void)set.leave(1, device_bit(1000));
  (void)set.leave(1, kHost);
  set.open(2, 1);  // uses one word only
  EXPECT_EQ(set.leave(1, device_bit(1000)), Left::gone);
  EXPECT_EQ(set.leave(2, device_bit(1000)), Left::never);
  EXPECT_FALSE(set.was_named(2, device_bit(1000)));
  set.add(2, device_bit(1001));
  EXPECT_EQ(set.leave(1, device_bit(1000)), Left::gone);
  EXPECT_EQ(set.leave(2, device_bit(1000)), Left::never);
  EXPECT_EQ(pending(set, 2), std::vector<std::uint32_t>{1001});
}

TEST(HolderSet, ADeviceMayBeNamedAgainAfterItLeft) {
  HolderSet set;
  set.open(1, 1);
  set.add(1, device_bit(2));
  EXPECT_EQ(set.leave(1, device_bit(2)), Left::others_hold);
  set.add(1, device_bit(2));
  EXPECT_EQ(set.leave(1, device_bit(2)), Left::others_hold);
  EXPECT_EQ(set.leave(1, device_bit(2)), Left::before);
}

TEST(HolderSet, HoldsEveryDeviceThereCanBe) {
  const auto set = std::make_unique<HolderSet>();
  set->open(9, 1);
  std::vector<std::uint32_t> order(kMaxDevices);
  for (std::uint32_t d = 0; d < kMaxDevices; ++d) {
    set->add(9, device_bit(d));
    order[d] = d;
  }
  EXPECT_EQ(pending(*set, 9), order);
  EXPECT_EQ(set->leave(9, kHost), Left::others_hold);
  std::mt19937 random(3);
  std::shuffle(order.begin(), order.end(), random);
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) {
    EXPECT_FALSE(set->empty(9));
    EXPECT_EQ(set->leave(9, device_bit(order[i])), i + 1 < kMaxDevices ? Left::others_hold : Left::last);
  }
  EXPECT_TRUE(set->empty(9));
}

// The owner may name a device in a new word, and then leave, while a peer reads the words.
TEST(HolderSet, AWordThatIsAddedWhileTheWordsAreReadIsRead) {
  const auto set = std::make_unique<HolderSet>();
  set->open(7, 1);
  std::vector<std::uint32_t> seen;
  EXPECT_TRUE(set->each_word(7, [&](std::uint32_t word, std::uint32_t bits) {
    if (word == 0) set->add(7, device_bit(40));
    seen.push_back(word);
    EXPECT_NE(bits, 0U);
  }));
  EXPECT_EQ(seen, (std::vector<std::uint32_t>{0, 1}));
}

TEST(HolderSet, CutRemovesEveryHolder) {
  HolderSet set;
  set.open(4, 1);
  for (const std::uint32_t device : {0U, 31U, 64U, 4095U}) set.add(4, device_bit(device));
  EXPECT_TRUE(set.cut(4));
  EXPECT_TRUE(set.empty(4));
  EXPECT_FALSE(set.cut(4));
  EXPECT_EQ(set.leave(4, device_bit(31)), Left::before);
  EXPECT_EQ(set.leave(4, device_bit(30)), Left::never);
}

// Threads remove all devices of several words at once, each device twice, while acks of the previous
// generation arrive: each device leaves once, and at least one call is answered that it was the last.
TEST(HolderSet, EveryRaceHasALastHolder) {
  constexpr int kThreads = 3;
  const int total = test::rounds(30'000);
  const auto set = std::make_unique<HolderSet>();
  const std::vector<std::uint32_t> devices{0, 1, 30, 31, 32, 62, 63, 64, 200};
  std::atomic<int> left{0};
  std::atomic<int> last{0};
  int round = 0;
  int wrong = 0;
  const auto tag = [](int r) { return static_cast<std::uint32_t>(r + 1); };
  test::Meeting start(kThreads, [&] {
    if (round > 0) {
      // With several words, more than one call may be answered that it was the last.
      if (left != static_cast<int>(devices.size()) + 1 || last < 1 || !set->empty(tag(round - 1)))
        ++wrong;
    }
    left = last = 0;
    // Small and large sets alternate, so that words of older generations remain.
    set->open(tag(round), 1);
    for (const std::uint32_t device : devices) set->add(tag(round), device_bit(device));
    ++round;
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      std::vector<std::uint32_t> mine = devices;
      for (int r = 0; r < total; ++r) {
        std::shuffle(mine.begin(), mine.end(), random);
        start.arrive();
        const auto count = [&](Left how) {
          if (how == Left::others_hold || how == Left::last) ++left;
          if (how == Left::last) ++last;
          if (how == Left::gone || how == Left::never) ADD_FAILURE() << "not this generation";
        };
        for (std::size_t i = 0; i < mine.size(); ++i) {
          if (i == static_cast<std::size_t>(t)) count(set->leave(tag(r), kHost));
          count(set->leave(tag(r), device_bit(mine[i])));
          if (r > 0 && set->leave(tag(r - 1), device_bit(mine[i])) != Left::gone)
            ADD_FAILURE() << "a late ack counted";
        }
      }
      start.arrive();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace slabpool
