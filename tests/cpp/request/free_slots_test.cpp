// The free slots of a table: which slots they are, and which slots a walk visits.
#include "slabpool/request/free_slots.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

namespace slabpool {
namespace {

std::set<std::uint32_t> walked(FreeSlots& slots) {
  std::set<std::uint32_t> all;
  for (std::uint32_t slot = slots.next(0); slot != FreeSlots::kNone; slot = slots.next(slot + 1))
    EXPECT_TRUE(all.insert(slot).second);
  return all;
}

TEST(FreeSlotsTest, TheLastReturnedIsTakenFirst) {
  FreeSlots slots;
  EXPECT_EQ(slots.pop(), FreeSlots::kNone);
  for (std::uint32_t slot = 0; slot < 3; ++slot) slots.add(slot);
  slots.push(0);
  slots.push(2);
  EXPECT_EQ(slots.count(), 2U);
  EXPECT_EQ(slots.pop(), 2U);
  EXPECT_EQ(slots.pop(), 0U);
  EXPECT_EQ(slots.pop(), FreeSlots::kNone);
}

TEST(FreeSlotsTest, AWalkAfterAPeakVisitsFewFreeSlots) {
  FreeSlots slots;
  for (std::uint32_t slot = 0; slot < 10'000; ++slot) slots.add(slot);
  for (std::uint32_t slot = 0; slot < 10'000; ++slot)
    if (slot != 5000) slots.push(slot);
  const std::set<std::uint32_t> visited = walked(slots);
  EXPECT_TRUE(visited.contains(5000));
  EXPECT_LE(visited.size(), 1 + FreeSlots::kNear);
}

TEST(FreeSlotsTest, AnyOrderOfChanges) {
  std::mt19937 twister(7);
  const auto random = [&] { return static_cast<std::uint32_t>(twister()); };
  FreeSlots slots;
  std::vector<std::uint32_t> used;
  std::set<std::uint32_t> free;
  std::uint32_t made = 0;
  bool grows = true;
  for (int step = 0; step < 20'000; ++step) {
    if (step % 700 == 0) grows = !grows;
    if (used.empty() || (random() % 4 != 0) == grows) {
      const std::uint32_t slot = slots.pop();
      if (slot == FreeSlots::kNone) {
        ASSERT_TRUE(free.empty());
        slots.add(made);
        used.push_back(made++);
      } else {
        ASSERT_EQ(free.erase(slot), 1U) << "a slot in use is not taken";
        used.push_back(slot);
      }
    } else {
      std::swap(used[random() % used.size()], used.back());
      slots.push(used.back());
      free.insert(used.back());
      used.pop_back();
    }
    ASSERT_EQ(slots.count(), free.size());
    if (step % 50 != 0) continue;
    const std::set<std::uint32_t> visited = walked(slots);
    ASSERT_TRUE(std::all_of(used.begin(), used.end(),
                            [&](std::uint32_t slot) { return visited.contains(slot); }));
    ASSERT_LE(visited.size(), used.size() + FreeSlots::kNear);
  }
}

}  // namespace
}  // namespace slabpool
