// Holders: each leaves once, the last one is recognised, and every word keeps generations apart.
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

// The words of one slot, as a table keeps them.
struct Words {
  FirstHolders first{};
  MoreHolders more{};
  HolderSet set{first, more};
};

std::vector<std::uint32_t> pending(const HolderView& set, std::uint64_t generation) {
  std::vector<std::uint32_t> devices;
  set.each_device(generation, [&](std::uint32_t device) { devices.push_back(device); });
  return devices;
}

TEST(HolderSet, TheHostHoldsFromTheStart) {
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  set.open(7);
  EXPECT_TRUE(set.holds(7, kHost));
  EXPECT_FALSE(set.empty(7));
  EXPECT_TRUE(pending(set, 7).empty());
  EXPECT_EQ(set.leave(7, kHost), Left::last);
  EXPECT_TRUE(set.empty(7));
}

TEST(HolderSet, EachLeavesOnceAndTheLastIsRecognised) {
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  set.open(1);
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
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  set.open(1);
  set.add(1, device_bit(3));
  (void)set.leave(1, device_bit(3));
  (void)set.leave(1, kHost);
  set.open(2);
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
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  set.open(1);
  set.add(1, device_bit(1000));
  (void)set.leave(1, device_bit(1000));
  (void)set.leave(1, kHost);
  set.open(2);  // uses one word only
  EXPECT_EQ(set.leave(1, device_bit(1000)), Left::gone);
  EXPECT_EQ(set.leave(2, device_bit(1000)), Left::never);
  EXPECT_FALSE(set.was_named(2, device_bit(1000)));
  set.add(2, device_bit(1001));
  EXPECT_EQ(set.leave(1, device_bit(1000)), Left::gone);
  EXPECT_EQ(set.leave(2, device_bit(1000)), Left::never);
  EXPECT_EQ(pending(set, 2), std::vector<std::uint32_t>{1001});
}

// Every bit of a generation is compared: the low 16, 32 and 47 bits of these are alike.
TEST(HolderSet, GenerationsThatDifferInAnyBitAreKeptApart) {
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  const std::uint64_t old = 5;
  for (const int bit : {16, 31, 32, 33, 47}) {
    const std::uint64_t now = old + (std::uint64_t{1} << bit);
    set.open(now);
    for (const std::uint32_t device : {3U, 40U}) {
      set.add(now, device_bit(device));
      EXPECT_EQ(set.leave(old, device_bit(device)), Left::gone) << bit;
      EXPECT_EQ(set.why_absent(old, device_bit(device)), Left::gone) << bit;
      EXPECT_FALSE(set.holds(old, device_bit(device))) << bit;
      EXPECT_FALSE(set.was_named(old, device_bit(device))) << bit;
      EXPECT_TRUE(set.holds(now, device_bit(device))) << bit;
    }
    EXPECT_FALSE(set.cut(old)) << bit;
    EXPECT_FALSE(set.empty(old)) << bit;
  }
  // Integers of more than 48 bits are no generation, whatever their low bits are.
  set.open(kMaxGeneration);
  set.add(kMaxGeneration, device_bit(0));
  EXPECT_EQ(set.leave(~std::uint64_t{0}, device_bit(0)), Left::gone);
  EXPECT_EQ(set.leave(kMaxGeneration | std::uint64_t{1} << 48, device_bit(0)), Left::gone);
  EXPECT_EQ(set.leave(kMaxGeneration, device_bit(0)), Left::others_hold);
  EXPECT_EQ(set.leave(kMaxGeneration, kHost), Left::last);
}

TEST(HolderSet, ADeviceMayBeNamedAgainAfterItLeft) {
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  set.open(1);
  set.add(1, device_bit(2));
  EXPECT_EQ(set.leave(1, device_bit(2)), Left::others_hold);
  set.add(1, device_bit(2));
  EXPECT_EQ(set.leave(1, device_bit(2)), Left::others_hold);
  EXPECT_EQ(set.leave(1, device_bit(2)), Left::before);
}

TEST(HolderSet, HoldsEveryDeviceThereCanBe) {
  const auto words = std::make_unique<Words>();
  HolderSet* const set = &words->set;
  set->open(9);
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
  const auto words = std::make_unique<Words>();
  HolderSet* const set = &words->set;
  set->open(7);
  std::vector<std::uint32_t> seen;
  EXPECT_TRUE(set->each_word(7, [&](std::uint32_t word, std::uint64_t bits) {
    if (word == 0) set->add(7, device_bit(20));
    seen.push_back(word);
    EXPECT_NE(bits, 0U);
  }));
  EXPECT_EQ(seen, (std::vector<std::uint32_t>{0, 1}));
}

TEST(HolderSet, CutRemovesEveryHolder) {
  const auto words = std::make_unique<Words>();
  HolderSet& set = words->set;
  set.open(4);
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
  const auto words = std::make_unique<Words>();
  HolderSet* const set = &words->set;
  const std::vector<std::uint32_t> devices{0, 1, 30, 31, 32, 62, 63, 64, 200};
  std::atomic<int> left{0};
  std::atomic<int> last{0};
  int round = 0;
  int wrong = 0;
  const auto generation = [](int r) { return static_cast<std::uint64_t>(r + 1); };
  test::Meeting start(kThreads, [&] {
    if (round > 0) {
      // With several words, more than one call may be answered that it was the last.
      if (left != static_cast<int>(devices.size()) + 1 || last < 1 || !set->empty(generation(round - 1)))
        ++wrong;
    }
    left = last = 0;
    // Small and large sets alternate, so that words of older generations remain.
    set->open(generation(round));
    for (const std::uint32_t device : devices) set->add(generation(round), device_bit(device));
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
          if (i == static_cast<std::size_t>(t)) count(set->leave(generation(r), kHost));
          count(set->leave(generation(r), device_bit(mine[i])));
          if (r > 0 && set->leave(generation(r - 1), device_bit(mine[i])) != Left::gone)
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
