// Walks over the requests: what they report while others open and close, and how much they do under one lock.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/table_help.hpp"

namespace slabpool {
namespace {

class RequestWalkTest : public test::TableFixture {
 protected:
  // One part of a walk; adds what it reports to `seen`.
  std::uint32_t look(std::uint32_t slot) {
    return table.each_from(
        slot, [&](const RequestRecord& r, const HolderView&) { seen.push_back(r.handle().generation); });
  }
  // A device leaves every request. Returns the generations that it held, in the order in which it left.
  std::vector<std::uint64_t> lose(std::uint32_t device) {
    std::vector<std::uint64_t> left;
    ClaimedList over;
    table.leave_all(device_bit(device), over,
                    [&](std::uint64_t generation) { left.push_back(generation); });
    (void)end_all(over);
    return left;
  }
  std::vector<std::uint64_t> seen;
};

TEST_F(RequestWalkTest, AWalkAfterAPeakVisitsWhatIsOpen) {
  std::vector<Handle> all(20'000);
  for (Handle& handle : all) handle = open("sa");
  for (const Handle handle : all)
    if (handle.slot != 19'000) close(handle);
  const std::uint32_t next = look(0);
  EXPECT_EQ(next, FreeSlots::kNone) << "one part of a walk reaches the end";
  EXPECT_EQ(seen, std::vector<std::uint64_t>{all[19'000].generation});
}

TEST_F(RequestWalkTest, OnePartOfAWalkIsBounded) {
  std::vector<Handle> all(10 * RequestTable::kWalkBatch);
  for (Handle& handle : all) handle = open("sa");
  std::uint32_t parts = 0;
  for (std::uint32_t slot = 0; slot != FreeSlots::kNone; ++parts) {
    const std::size_t before = seen.size();
    slot = look(slot);
    EXPECT_LE(seen.size() - before, RequestTable::kWalkBatch);
  }
  EXPECT_EQ(seen.size(), all.size());
  EXPECT_GE(parts, 10U);
}

TEST_F(RequestWalkTest, RequestsThatStayOpenAreSeenOnceWhileOthersComeAndGo) {
  std::vector<Handle> stay;
  std::vector<Handle> go;
  for (int i = 0; i < 1000; ++i) (i % 3 == 0 ? stay : go).push_back(open("s" + std::to_string(i)));
  for (std::uint32_t slot = 0; slot != FreeSlots::kNone;) {
    slot = look(slot);
    for (int i = 0; i < 20 && !go.empty(); ++i) {
      close(go.back());
      go.pop_back();
    }
    for (int i = 0; i < 10; ++i) (void)open("snew");
  }
  for (const Handle handle : stay)
    EXPECT_EQ(std::count(seen.begin(), seen.end(), handle.generation), 1) << handle.generation;
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end()) << "none is seen twice";
}

TEST_F(RequestWalkTest, ALostDeviceLeavesEveryRequestDescendantsFirst) {
  std::vector<Handle> tops;
  std::vector<Handle> children;
  for (int i = 0; i < 300; ++i) {
    tops.push_back(open("sa", {0, 1}));
    children.push_back(open("sb", {1}, tops.back()));
  }
  const std::vector<std::uint64_t> left = lose(1);
  EXPECT_EQ(left.size(), 600U);
  for (std::size_t i = 0; i < tops.size(); ++i) {
    EXPECT_FALSE(holds(tops[i], 1));
    EXPECT_TRUE(holds(tops[i], 0));
    const auto at = [&](Handle handle) {
      return std::find(left.begin(), left.end(), handle.generation);
    };
    EXPECT_LT(at(children[i]), at(tops[i]));
  }
  EXPECT_FALSE(table.holds_any(device_bit(1)));
  EXPECT_TRUE(table.holds_any(device_bit(0)));
  EXPECT_TRUE(lose(1).empty());
}

TEST_F(RequestWalkTest, ALookForDevicesThatAllHoldDoesNotGrowWithTheRequests) {
  constexpr std::uint32_t kNames = 100;
  HolderMarks wanted;
  for (std::uint32_t device = 0; device < kNames; ++device) wanted.add(device_bit(device));
  std::vector<Handle> all;
  for (std::uint32_t i = 0; i < 20'000; ++i)  // the last names come last
    all.push_back(open("s", {std::min(i / 100, kNames - 1)}));
  const auto look_for = [&](bool left) {
    HolderMarks used;
    const std::size_t looked = table.mark_holders(left, wanted, used);
    EXPECT_TRUE(used.contain(wanted));
    return looked;
  };
  EXPECT_GT(look_for(false), 9'000U) << "the first look finds a request for each device";
  EXPECT_EQ(look_for(false), kNames);
  EXPECT_EQ(look_for(true), kNames);
  // One of them ends: a device that other requests wait for is found again.
  close(all[0]);
  EXPECT_EQ(leave(all[0], 0), HolderSet::Left::last);
  EXPECT_TRUE(finish(all[0]));
  EXPECT_LE(look_for(false), kNames + RequestTable::kWalkBatch);
  EXPECT_EQ(look_for(true), kNames);
}

TEST_F(RequestWalkTest, ALookForDevicesFindsTheOneThatLeft) {
  HolderMarks wanted;
  for (std::uint32_t device = 0; device < 3; ++device) wanted.add(device_bit(device));
  const Handle handle = open("sa", {0, 1, 2});
  const auto found = [&](bool left) {
    HolderMarks used;
    (void)table.mark_holders(left, wanted, used);
    return std::vector<bool>{used.has(device_bit(0)), used.has(device_bit(1)), used.has(device_bit(2))};
  };
  EXPECT_EQ(found(false), (std::vector{true, true, true}));
  EXPECT_EQ(leave(handle, 1), HolderSet::Left::others_hold);
  EXPECT_EQ(found(false), (std::vector{true, false, true}));
  EXPECT_EQ(found(true), (std::vector{true, true, true}));
  HolderMarks gone;
  gone.add(device_bit(1));
  table.forget_named(gone);
  EXPECT_EQ(found(true), (std::vector{true, false, true}));
}

TEST_F(RequestWalkTest, ADeviceThatHoldsTheLastRequestIsFound) {
  std::vector<Handle> all(500);
  for (Handle& handle : all) handle = open("sa", {0});
  const Handle last = open("sb", {7});
  EXPECT_TRUE(table.holds_any(device_bit(7)));
  close(last);
  EXPECT_TRUE(table.holds_any(device_bit(7)));
  EXPECT_EQ(leave(last, 7), HolderSet::Left::last);
  EXPECT_TRUE(finish(last));
  EXPECT_FALSE(table.holds_any(device_bit(7)));
}

}  // namespace
}  // namespace slabpool
