// The set of slots in use, against std::set.
#include "slabpool/request/slot_set.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace slabpool {
namespace {

std::vector<std::uint32_t> members(SlotSet& slots) {
  std::vector<std::uint32_t> all;
  for (std::uint32_t slot = slots.next(0); slot != SlotSet::kNone; slot = slots.next(slot + 1))
    all.push_back(slot);
  return all;
}

TEST(SlotSetTest, TheEdgesOfWords) {
  SlotSet slots;
  EXPECT_EQ(slots.next(0), SlotSet::kNone);
  const std::vector<std::uint32_t> edges{0,    63,   64,    65,    4095,  4096,
                                         4097, 8191, 65471, 65472, 65534, 65535};
  for (const std::uint32_t slot : edges) slots.insert(slot);
  EXPECT_EQ(members(slots), edges);
  EXPECT_EQ(slots.next(66), 4095U);
  EXPECT_EQ(slots.next(8192), 65471U);
  EXPECT_EQ(slots.next(kMaxRequests), SlotSet::kNone);
  for (const std::uint32_t slot : edges) slots.erase(slot);
  EXPECT_EQ(slots.next(0), SlotSet::kNone);
}

TEST(SlotSetTest, AnyOrderOfChanges) {
  std::mt19937 twister(12);
  const auto random = [&] { return static_cast<std::uint32_t>(twister()); };
  SlotSet slots;
  std::set<std::uint32_t> model;
  for (int step = 0; step < 20'000; ++step) {
    const std::uint32_t slot = random() % (step % 2 == 0 ? kMaxRequests : 300);
    if (random() % 3 == 0 && !model.empty()) {
      const auto other = model.lower_bound(slot);
      const std::uint32_t gone = other != model.end() ? *other : *model.begin();
      slots.erase(gone);
      model.erase(gone);
    } else {
      slots.insert(slot);
      model.insert(slot);
    }
    const std::uint32_t from = random() % kMaxRequests;
    const auto next = model.lower_bound(from);
    ASSERT_EQ(slots.next(from), next != model.end() ? *next : SlotSet::kNone);
  }
  EXPECT_EQ(members(slots), std::vector<std::uint32_t>(model.begin(), model.end()));
}

}  // namespace
}  // namespace slabpool
