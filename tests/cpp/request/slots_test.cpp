// Records of a table of requests whose pages go back: what old handles find there, and requests that are opened in them again.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "support/table_help.hpp"

namespace slabpool {
namespace {

using Left = HolderSet::Left;

class SlotsTest : public test::TableFixture {
 protected:
  std::vector<Handle> open_many(std::size_t count, const std::vector<std::uint32_t>& on = {}) {
    std::vector<Handle> all;
    // Ids that are longer than a string keeps inside itself.
    for (std::size_t i = 0; i < count; ++i)
      all.push_back(open("a conversation of a user, with number " + std::to_string(i), on));
    return all;
  }
};

TEST_F(SlotsTest, RecordsGoBackAndComeAgain) {
  const std::uint64_t fresh = table.metadata_bytes();
  const std::vector<Handle> first = open_many(10'000);
  const std::uint64_t full = table.metadata_bytes();
  EXPECT_GE(full - fresh, 10'000 * sizeof(RequestRecord));
  for (const Handle handle : first) close(handle);
  EXPECT_EQ(table.metadata_bytes(), full);
  EXPECT_EQ(table.free_slots(), kMaxRequests);
  table.trim();
  EXPECT_EQ(table.free_slots(), kMaxRequests);
  // Left: the last chunk, which is not made whole, and what peers would read of each slot.
  EXPECT_LE(table.metadata_bytes() - fresh,
            64 * sizeof(RequestRecord) + 10'112 * sizeof(RequestSlot) + 65536);
  const std::vector<Handle> second = open_many(10'000);
  EXPECT_EQ(table.metadata_bytes(), full) << "the same records";
  EXPECT_EQ(table.free_slots(), kMaxRequests - 10'000);
  EXPECT_EQ(table.counts().open, 10'000U);
  for (const Handle handle : second) close(handle);
}

TEST_F(SlotsTest, AnOldHandleIsOfARequestThatIsOver) {
  const std::vector<Handle> old = open_many(1000, {0, 3});
  for (const Handle handle : old) {
    close(handle);
    (void)leave(handle, 0);
    (void)leave(handle, 3);
    EXPECT_TRUE(finish(handle));
  }
  const auto expect_over = [&] {
    for (const Handle handle : old) {
      EXPECT_TRUE(table.is_over(handle));
      EXPECT_TRUE(table.has_ended(handle));
      EXPECT_FALSE(table.is_open(handle));
      EXPECT_FALSE(table.is_cancelled(handle));
      EXPECT_FALSE(table.claim(handle));
      const Left left = leave(handle, 0);
      EXPECT_TRUE(left == Left::before || left == Left::gone);
      EXPECT_EQ(table.add_device(handle, 1), Status::request_closed);
      RequestRecord& record = *table.record(handle.slot);
      Block block;
      EXPECT_EQ(record.blocks.attach(block, [&] { return record.accepts(handle); }),
                Status::request_closed);
      LevelNeed refused;
      EXPECT_EQ(table.charge(record, handle, {1, 0}, refused), Status::request_closed);
    }
  };
  expect_over();
  table.trim();
  expect_over();
  (void)open_many(500);
  expect_over();
  table.trim();
  expect_over();
}

TEST_F(SlotsTest, AChunkWithARequestStays) {
  const std::vector<Handle> all = open_many(640);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (i != 100 && i != 639) close(all[i]);
  const std::uint64_t full = table.metadata_bytes();
  table.trim();
  EXPECT_EQ(full - table.metadata_bytes(), 8 * 64 * sizeof(RequestRecord));
  EXPECT_TRUE(table.is_open(all[100]));
  EXPECT_EQ(table.record(all[100].slot)->id, "a conversation of a user, with number 100");
  std::vector<std::uint32_t> seen;
  table.each([&](const RequestRecord& r, const HolderView&) { seen.push_back(r.slot); });
  EXPECT_EQ(seen, (std::vector{all[100].slot, all[639].slot}));
  close(all[100]);
  close(all[639]);
  table.trim();
  EXPECT_EQ(full - table.metadata_bytes(), 10 * 64 * sizeof(RequestRecord));
}

TEST_F(SlotsTest, HoldersBeyondTheFirstWordGoBackToo) {
  const std::vector<Handle> all = open_many(64, {0, 20, 4000});
  const std::uint64_t full = table.metadata_bytes();
  for (const Handle handle : all) {
    close(handle);
    for (const std::uint32_t device : {0, 20, 4000}) (void)leave(handle, device);
    EXPECT_TRUE(finish(handle));
  }
  table.trim();
  EXPECT_EQ(full - table.metadata_bytes(), 64 * (sizeof(RequestRecord) + sizeof(MoreHolders)));
  for (const Handle handle : all) EXPECT_NE(leave(handle, 4000), Left::last);
  const Handle again = open("again", {4000});
  close(again);
  EXPECT_TRUE(holds(again, 4000));
  EXPECT_FALSE(holds(again, 20));
  EXPECT_EQ(leave(again, 4000), Left::last);
  EXPECT_TRUE(finish(again));
}

TEST_F(SlotsTest, AnyOrderOfOpeningsEndsAndTrims) {
  std::mt19937 twister(11);
  const auto random = [&] { return static_cast<std::uint32_t>(twister()); };
  std::vector<Handle> live;
  std::map<std::uint64_t, std::string> ids;  // by generation
  bool grows = true;
  for (int step = 0; step < 30'000; ++step) {
    if (step % 900 == 0) grows = !grows;
    if (random() % 200 == 0) table.trim();
    if (live.empty() || (random() % 4 != 0) == grows) {
      std::string id = std::to_string(step) + std::string(random() % 40, 'x');
      live.push_back(open(id));
      ids[live.back().generation] = std::move(id);
    } else {
      std::swap(live[random() % live.size()], live.back());
      ids.erase(live.back().generation);
      close(live.back());
      live.pop_back();
    }
    ASSERT_EQ(table.free_slots(), kMaxRequests - live.size());
    if (step % 500 != 0) continue;
    std::map<std::uint64_t, std::string> seen;
    table.each([&](const RequestRecord& r, const HolderView&) { seen[r.handle().generation] = r.id; });
    ASSERT_EQ(seen, ids);
    table.notable([&](const RequestTable::Notable& found) { ASSERT_EQ(found.holders, live.size()); });
  }
}

}  // namespace
}  // namespace slabpool
