// The table of requests without a pool around it: lives, generations, ids and children.
#include "slabpool/request/table.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/table_help.hpp"

namespace slabpool {
namespace {

using Left = HolderSet::Left;

class RequestTableTest : public test::TableFixture {};

TEST_F(RequestTableTest, OneLife) {
  const Handle handle = open("sa", {0, 1});
  EXPECT_NE(handle.generation, 0U);
  EXPECT_TRUE(table.is_open(handle));
  EXPECT_FALSE(table.is_over(handle));
  EXPECT_EQ(table.counts().open, 1U);
  ClaimedList over;
  EXPECT_TRUE(table.close(handle, false, over));
  EXPECT_TRUE(over.empty());
  EXPECT_FALSE(table.close(handle, false, over)) << "the host leaves once";
  EXPECT_FALSE(table.is_open(handle));
  EXPECT_EQ(table.counts().open, 0U);
  EXPECT_EQ(table.counts().draining, 1U);
  EXPECT_FALSE(table.claim(handle)) << "devices still hold it";
  EXPECT_EQ(leave(handle, 0), Left::others_hold);
  EXPECT_EQ(leave(handle, 1), Left::last);
  EXPECT_TRUE(table.claim(handle));
  EXPECT_FALSE(table.claim(handle)) << "only one caller may claim it";
  EXPECT_TRUE(table.is_over(handle));
  table.retire(*table.record(handle.slot), over);
  EXPECT_TRUE(over.empty());
  EXPECT_EQ(table.counts().draining, 0U);
}

TEST_F(RequestTableTest, ASlotIsReusedAndOldHandlesAreKnown) {
  const Handle first = open("sa");
  close(first);
  const Handle second = open("sa");
  EXPECT_EQ(second.slot, first.slot);
  EXPECT_GT(second.generation, first.generation);
  EXPECT_TRUE(table.is_over(first));
  EXPECT_TRUE(table.is_open(second));
  EXPECT_EQ(leave(first, 0), Left::gone);
  EXPECT_FALSE(table.claim(first));
  ClaimedList over;
  EXPECT_FALSE(table.close(first, false, over));
  EXPECT_TRUE(table.is_open(second));
}

TEST_F(RequestTableTest, InventedHandlesAreOver) {
  for (const Handle handle : {Handle{0, 0}, Handle{0, 99}, Handle{70'000, 1}, Handle{0xffffffff, 1}}) {
    EXPECT_TRUE(table.is_over(handle));
    EXPECT_FALSE(table.is_open(handle));
    EXPECT_FALSE(table.claim(handle));
    EXPECT_EQ(table.add_device(handle, 0), Status::request_closed);
    Handle child;
    EXPECT_EQ(try_open(child, "sa", {}, handle), Status::request_closed);
  }
}

TEST_F(RequestTableTest, WrongDevicesOpenNoRequest) {
  Handle handle;
  EXPECT_EQ(try_open(handle, "sa", {1, 2, 1}), Status::duplicate_device);
  EXPECT_EQ(try_open(handle, "sa", {1, kMaxDevices}), Status::too_many_devices);
  EXPECT_EQ(try_open(handle, "sa", {4000, 1, 4000}, {}, 5000), Status::duplicate_device);
  EXPECT_EQ(table.counts().open, 0U);
  EXPECT_EQ(depot.reserved_bytes(), 0U);
  const Handle fine = open("sa", {1, 2});
  EXPECT_EQ(find_waiting("sa", 1, {}).count, 1U);
  EXPECT_FALSE(find_waiting("sa", 4000, {}).named);
  close(fine);
}

TEST_F(RequestTableTest, AsManyRequestsAsThereAreSlots) {
  std::vector<Handle> all(kMaxRequests);
  for (Handle& handle : all) handle = open("sa");
  Handle more;
  EXPECT_EQ(try_open(more, "sb", {}, {}, 1000), Status::too_many_requests);
  EXPECT_EQ(depot.reserved_bytes(), 0U) << "nothing is reserved for a request that was not opened";
  close(all[12'345]);
  const Handle next = open("sb");
  EXPECT_EQ(next.slot, all[12'345].slot);
  EXPECT_EQ(table.counts().open, kMaxRequests);
}

// ---- ids

TEST_F(RequestTableTest, GenerationsOfOneIdAreIndependent) {
  const Handle first = open("sa", {0, 1});
  const Handle second = open("sa", {0});
  EXPECT_EQ(find_waiting("sa", 0, {}).count, 2U);
  RequestTable::Waiting one = find_waiting("sa", 1, {});
  EXPECT_EQ(one.count, 1U);
  EXPECT_EQ(one.handle.generation, first.generation);
  one = find_waiting("sa", 0, second.generation);
  EXPECT_EQ(one.count, 1U);
  EXPECT_EQ(one.handle.generation, second.generation);
  close(second);
  EXPECT_EQ(leave(second, 0), Left::last);
  EXPECT_TRUE(finish(second));
  EXPECT_EQ(find_waiting("sa", 0, {}).handle.generation, first.generation);
  EXPECT_EQ(find_waiting("sa", 0, second.generation).found, false);
}

TEST_F(RequestTableTest, AnIdWithoutAWaitingRequestSaysWhy) {
  EXPECT_FALSE(find_waiting("sunknown", 0, {}).found);
  const Handle handle = open("sa", {0, 1});
  (void)leave(handle, 0);
  const RequestTable::Waiting acked = find_waiting("sa", 0, {});
  EXPECT_EQ(acked.count, 0U);
  EXPECT_TRUE(acked.found);
  EXPECT_TRUE(acked.named);
  const RequestTable::Waiting never = find_waiting("sa", 2, {});
  EXPECT_TRUE(never.found);
  EXPECT_FALSE(never.named);
}

TEST_F(RequestTableTest, IdsAreBytes) {
  const Handle a = open(std::string_view("b\0x", 3), {0});
  const Handle b = open(std::string_view("b\0y", 3), {0});
  const Handle c = open("", {0});
  EXPECT_EQ(find_waiting(std::string_view("b\0x", 3), 0, {}).handle.generation, a.generation);
  EXPECT_EQ(find_waiting(std::string_view("b\0y", 3), 0, {}).handle.generation, b.generation);
  EXPECT_EQ(find_waiting("", 0, {}).handle.generation, c.generation);
}

TEST_F(RequestTableTest, ManyIdsInOneBucketAreKeptApart) {
  // More ids than buckets.
  std::vector<Handle> all;
  for (int i = 0; i < 5000; ++i) all.push_back(open("s" + std::to_string(i), {0}));
  for (std::size_t i = 0; i < all.size(); i += 3) {
    close(all[i]);
    (void)leave(all[i], 0);
    EXPECT_TRUE(finish(all[i]));
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    const RequestTable::Waiting waiting = find_waiting("s" + std::to_string(i), 0, {});
    ASSERT_EQ(waiting.found, i % 3 != 0) << i;
    if (waiting.found) {
      ASSERT_EQ(waiting.handle.generation, all[i].generation);
    }
  }
}

// ---- devices that come later

TEST_F(RequestTableTest, DevicesMayBeAddedWhileTheHostHolds) {
  const Handle handle = open("sa", {0});
  EXPECT_EQ(table.add_device(handle, 0), Status::duplicate_device);
  EXPECT_EQ(table.add_device(handle, 4095), Status::ok);
  EXPECT_EQ(table.add_device(handle, kMaxDevices), Status::too_many_devices);
  EXPECT_EQ(leave(handle, 0), Left::others_hold);
  EXPECT_EQ(table.add_device(handle, 0), Status::ok) << "it acked, and may become a holder again";
  close(handle);
  EXPECT_EQ(table.add_device(handle, 9), Status::request_closed);
  EXPECT_EQ(leave(handle, 0), Left::others_hold);
  EXPECT_EQ(leave(handle, 4095), Left::last);
}

TEST_F(RequestTableTest, ADeviceLeavesEveryRequestDescendantsFirst) {
  const Handle a = open("sa", {0, 1});
  const Handle b = open("sb", {1});
  const Handle c = open("sc", {1});
  const Handle child = open("sa", {1}, a);
  const Handle grandchild = open("sa", {1}, child);
  (void)leave(b, 1);
  ClaimedList over;
  close(c);
  const auto left = [&](std::uint32_t device) {
    std::vector<std::uint64_t> generations;
    table.leave_all(device_bit(device), over,
                    [&](std::uint64_t generation) { generations.push_back(generation); });
    return generations;
  };
  EXPECT_TRUE(left(77).empty());
  EXPECT_EQ(left(1), (std::vector<std::uint64_t>{grandchild.generation, child.generation, a.generation,
                                                 c.generation}));
  EXPECT_EQ(end_all(over).size(), 1U) << "the host had left one of them";
  EXPECT_TRUE(table.is_over(c));
  EXPECT_TRUE(left(1).empty());
  EXPECT_EQ(left(0), std::vector<std::uint64_t>{a.generation});
  EXPECT_TRUE(over.empty());
  EXPECT_TRUE(table.is_open(a));
  EXPECT_TRUE(table.is_open(grandchild));
}

// ---- children

TEST_F(RequestTableTest, AChildHasASubsetOfItsParentsDevices) {
  const Handle parent = open("sa", {0, 1});
  const Handle child = open("sa", {1}, parent);
  Handle other;
  EXPECT_EQ(try_open(other, "sa", {2}, parent), Status::unknown_device);
  (void)leave(parent, 0);
  EXPECT_EQ(try_open(other, "sa", {0}, parent), Status::unknown_device) << "it has left the parent";
  EXPECT_EQ(try_open(other, "sa", {1, 1}, parent), Status::duplicate_device);
  EXPECT_EQ(find_waiting("sa", 1, {}).count, 1U) << "an ack by id counts for the parent";
  EXPECT_EQ(find_waiting("sa", 1, child.generation).count, 1U);
}

TEST_F(RequestTableTest, AChildMayNameNoDeviceThatItsParentLacks) {
  const Handle parent = open("sa", {0, 1});
  const Handle child = open("sa", {1}, parent);
  // The parent could be over while that device still reads the child's memory.
  EXPECT_EQ(table.add_device(child, 2), Status::unknown_device);
  EXPECT_FALSE(holds(child, 2));
  EXPECT_EQ(table.add_device(child, 0), Status::ok);
  EXPECT_EQ(table.add_device(parent, 2), Status::ok);
  EXPECT_EQ(table.add_device(child, 2), Status::ok);
}

TEST_F(RequestTableTest, AnAckOfTheParentCountsForItsChildren) {
  const Handle parent = open("sa", {0, 1});
  const Handle child = open("sa", {0, 1}, parent);
  const Handle grandchild = open("sa", {0}, child);
  ClaimedList over;
  close(grandchild);
  EXPECT_EQ(leave(parent, 0), Left::others_hold);
  table.leave_children(parent, device_bit(0), over);
  EXPECT_TRUE(table.is_over(grandchild));
  EXPECT_FALSE(holds(child, 0));
  EXPECT_TRUE(holds(child, 1));
  const std::vector<Handle> ended = end_all(over);
  ASSERT_EQ(ended.size(), 1U);
  EXPECT_EQ(ended[0].generation, grandchild.generation);
}

TEST_F(RequestTableTest, ClosingAParentClosesItsChildren) {
  const Handle parent = open("sa", {0});
  const Handle child = open("sa", {0}, parent);
  const Handle grandchild = open("sa", {}, child);
  ClaimedList over;
  EXPECT_TRUE(table.close(parent, false, over));
  EXPECT_FALSE(table.is_open(child));
  EXPECT_EQ(table.counts().open, 0U);
  EXPECT_EQ(table.counts().draining, 3U);
  const std::vector<Handle> ended = end_all(over);
  ASSERT_EQ(ended.size(), 1U);
  EXPECT_EQ(ended[0].generation, grandchild.generation);
}

TEST_F(RequestTableTest, ChildrenEndWithTheirParent) {
  const Handle parent = open("sa", {0});
  std::vector<Handle> children;
  for (int i = 0; i < 3; ++i) children.push_back(open("sa", {0}, parent));
  const Handle grandchild = open("sa", {0}, children[1]);
  close(parent);
  EXPECT_EQ(leave(parent, 0), Left::last);
  EXPECT_TRUE(finish(parent));
  for (const Handle child : children) EXPECT_TRUE(table.is_over(child));
  EXPECT_TRUE(table.is_over(grandchild));
  EXPECT_EQ(table.counts().draining, 0U);
}

TEST_F(RequestTableTest, ChildrenEndInAnyOrder) {
  const Handle parent = open("sa", {0});
  std::vector<Handle> children;
  for (int i = 0; i < 4; ++i) children.push_back(open("sa", {}, parent));
  for (const std::size_t i : {std::size_t{1}, std::size_t{3}, std::size_t{0}}) close(children[i]);
  EXPECT_TRUE(table.is_open(children[2]));
  children.push_back(open("sa", {}, parent));
  close(children[2]);
  close(children[4]);
  EXPECT_EQ(table.first_child(parent.slot).load(), 0U);
  EXPECT_EQ(table.counts().open, 1U);
  EXPECT_EQ(table.counts().draining, 0U);
}

TEST_F(RequestTableTest, DeepFamiliesOfChildrenWork) {
  Handle last = open("sa", {0});
  const Handle first = last;
  for (int i = 0; i < 20'000; ++i) last = open("sa", {0}, last);
  close(first);
  EXPECT_EQ(leave(first, 0), Left::last);
  ClaimedList over;
  table.leave_children(first, device_bit(0), over);
  EXPECT_EQ(end_all(over).size(), 20'000U);
  EXPECT_TRUE(finish(first));
  EXPECT_TRUE(table.is_over(last));
  EXPECT_EQ(table.counts().draining, 0U);
}

TEST_F(RequestTableTest, CutRemovesAllHoldersOfAllDescendants) {
  const Handle parent = open("sa", {0, 100});
  const Handle child = open("sa", {100}, parent);
  ClaimedList over;
  table.cut(parent, over);
  EXPECT_TRUE(table.is_over(parent));
  EXPECT_TRUE(table.is_over(child));
  const std::vector<Handle> ended = end_all(over);
  ASSERT_EQ(ended.size(), 2U);
  EXPECT_EQ(ended[0].generation, child.generation) << "descendants end first";
  EXPECT_EQ(ended[1].generation, parent.generation);
  EXPECT_EQ(table.counts().open, 0U);
  EXPECT_EQ(table.counts().draining, 0U);
}

TEST_F(RequestTableTest, CloseAllEndsEveryRequestOnce) {
  const Handle parent = open("sa", {0, 100});
  const Handle child = open("sa", {100}, parent);
  const Handle other = open("sb", {3});
  close(other);
  const Handle last = open("sc", {3});
  close(last);
  EXPECT_EQ(leave(last, 3), Left::last);
  ASSERT_TRUE(table.claim(last)) << "another thread ends this one";
  ClaimedList over;
  table.close_all([](std::uint32_t) { return false; }, over);
  const std::vector<Handle> ended = end_all(over);
  ASSERT_EQ(ended.size(), 3U);
  EXPECT_EQ(ended[0].generation, child.generation);
  EXPECT_EQ(ended[1].generation, parent.generation);
  EXPECT_EQ(ended[2].generation, other.generation);
  table.close_all([](std::uint32_t) { return false; }, over);
  EXPECT_TRUE(over.empty());
  table.retire(*table.record(last.slot), over);
  EXPECT_EQ(table.counts().open + table.counts().draining, 0U);
}

TEST_F(RequestTableTest, CloseAllLeavesWhatADeviceThatStaysHolds) {
  const Handle parent = open("sa", {0, 100});
  const Handle child = open("sa", {100}, parent);
  const Handle other = open("sa", {0}, parent);
  ClaimedList over;
  table.close_all([](std::uint32_t device) { return device == 100; }, over);
  const std::vector<Handle> ended = end_all(over);
  ASSERT_EQ(ended.size(), 1U) << "the child that device 100 does not hold";
  EXPECT_EQ(ended[0].generation, other.generation);
  EXPECT_TRUE(holds(parent, 100) && holds(child, 100));
  EXPECT_FALSE(holds(parent, 0));
  EXPECT_FALSE(table.is_open(parent));
  table.leave_all(device_bit(100), over, [](std::uint64_t) {});
  EXPECT_EQ(end_all(over).size(), 2U);
  EXPECT_EQ(table.counts().open + table.counts().draining, 0U);
}

// ---- what remains when a request is over

TEST_F(RequestTableTest, ARetainedRequestKeepsItsSlot) {
  const Handle handle = open("sa");
  RequestRecord& record = *table.record(handle.slot);
  Block* block = attach_viewed(handle);
  ASSERT_NE(block, nullptr);
  close(handle);
  EXPECT_TRUE(table.is_over(handle));
  EXPECT_EQ(retained.load(), block->bytes);
  int seen = 0;
  table.at(handle, [&](const RequestRecord& r, const HolderView&) {
    ++seen;
    EXPECT_EQ(r.id, "sa");
  });
  EXPECT_EQ(seen, 1);
  const Handle other = open("sb");
  EXPECT_NE(other.slot, handle.slot);
  const std::uint64_t dropped = record.blocks.drop_retained(*block);
  ASSERT_NE(dropped, 0U);
  depot.give(block);
  ASSERT_TRUE(record.blocks.returned_retained(dropped));
  table.recycle(record);
  table.at(handle, [&](const RequestRecord&, const HolderView&) { ++seen; });
  EXPECT_EQ(seen, 1);
  EXPECT_EQ(open("sc").slot, handle.slot);
}

TEST_F(RequestTableTest, ARequestHasEndedWhenItsBlocksHaveReturned) {
  for (const bool viewed : {false, true}) {
    const Handle handle = open("sa");
    RequestRecord& record = *table.record(handle.slot);
    if (viewed) {
      ASSERT_NE(attach_viewed(handle), nullptr);
    }
    EXPECT_FALSE(table.has_ended(handle));
    ClaimedList over;
    ASSERT_TRUE(table.close(handle, false, over));
    EXPECT_FALSE(table.claim(handle)) << "close() has claimed it";
    ASSERT_EQ(over.pop(), &record);
    EXPECT_TRUE(table.is_over(handle));
    EXPECT_FALSE(table.has_ended(handle)) << "its blocks are still being returned";
    (void)record.blocks.release(retained);
    table.retire(record, over);
    EXPECT_TRUE(table.has_ended(handle));
    EXPECT_EQ(record.generation.load() != 0, viewed);
  }
  EXPECT_TRUE(table.has_ended({0, 0}));
  EXPECT_TRUE(table.has_ended({70'000, 5}));
}

TEST_F(RequestTableTest, SilentDevicesPutARequestInDoubt) {
  OpenSpec spec;
  spec.id = "sa";
  const std::vector<std::uint32_t> on{0, 1};
  spec.devices = on;
  spec.lease_ns = 100;
  Handle handle;
  ASSERT_EQ(table.open(spec, 1000, handle), Status::ok);
  EXPECT_TRUE(table.any_lease());
  const auto in_doubt = [&](std::int64_t now) {
    return table.in_doubt(*table.record(handle.slot), table.holders(handle.slot), now);
  };
  EXPECT_FALSE(in_doubt(1100));
  EXPECT_TRUE(in_doubt(1101));
  devices.heard(0, 1090);
  EXPECT_TRUE(in_doubt(1101)) << "the other device is still silent";
  devices.heard(1, 1090);
  EXPECT_FALSE(in_doubt(1101));
  EXPECT_TRUE(in_doubt(1191));
  (void)leave(handle, 0);
  (void)leave(handle, 1);
  EXPECT_FALSE(in_doubt(5000)) << "only a silent holder puts a request in doubt";
  close(handle);
  EXPECT_FALSE(table.any_lease());
}

TEST_F(RequestTableTest, AGenerationIsFoundAmongAnyNumberOfThem) {
  constexpr std::uint32_t kOpen = 20'000;
  std::vector<Handle> all;
  // Every tenth stays, so that generations are not consecutive.
  for (std::uint32_t i = 0; i < 10 * kOpen; ++i) {
    const Handle one = open("sa", {0});
    if (i % 10 == 0) {
      all.push_back(one);
    } else {
      (void)leave(one, 0);
      close(one);
    }
  }
  std::uint64_t looked = 0;
  std::uint32_t most = 0;
  for (const Handle& one : all) {
    const RequestTable::Waiting found = find_waiting("sa", 0, one.generation);
    ASSERT_EQ(found.count, 1U);
    ASSERT_EQ(found.handle.slot, one.slot);
    EXPECT_FALSE(find_waiting("sb", 0, one.generation).found) << "it is not of that id";
    looked += found.looked;
    most = std::max(most, found.looked);
  }
  EXPECT_LE(looked, 5 * all.size()) << "the others are passed over";
  EXPECT_LE(most, 20U);
  Handle cancelled;
  ClaimedList over;
  EXPECT_EQ(table.cancel_id("sa", {}, over, cancelled), kOpen) << "which one is not said";
  EXPECT_EQ(table.cancel_id("sa", all[7].generation, over, cancelled), 1U);
  EXPECT_EQ(cancelled.slot, all[7].slot);
  for (std::uint32_t i = 0; i < kOpen; i += 2) {
    (void)leave(all[i], 0);
    close(all[i]);
  }
  for (std::uint32_t i = 0; i < kOpen; ++i)
    ASSERT_EQ(find_waiting("sa", 0, all[i].generation).found, i % 2 != 0) << i;
}

// The last generations there are: an ack of a request 2^32 opens ago is late, and no generation is used twice.
TEST_F(RequestTableTest, AGenerationIsNeverUsedTwice) {
  Handle handle;
  OpenSpec spec;
  spec.id = "a";
  const std::vector<std::uint32_t> on{0};
  spec.devices = on;
  RequestTable last{depot, devices, nullptr, 0, kMaxGeneration};
  ASSERT_EQ(last.open(spec, 0, handle), Status::ok);
  EXPECT_EQ(handle.generation, kMaxGeneration);
  HolderSet holders = last.holders(handle.slot);
  for (const int bit : {16, 32, 47}) {
    const std::uint64_t before = kMaxGeneration - (std::uint64_t{1} << bit);
    EXPECT_EQ(holders.leave(before, device_bit(0)), Left::gone) << bit;
    EXPECT_TRUE(last.is_over({handle.slot, before})) << bit;
  }
  EXPECT_EQ(holders.leave(handle.generation, device_bit(0)), Left::others_hold);
  Handle refused;
  EXPECT_EQ(last.open(spec, 0, refused), Status::too_many_requests);
  EXPECT_EQ(last.counts().open, 1U);
}

}  // namespace
}  // namespace slabpool
