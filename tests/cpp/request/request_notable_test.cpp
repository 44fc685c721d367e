// The requests that a refusal names: which they are, and how many records are looked at to find them.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/table_help.hpp"

namespace slabpool {
namespace {

class RequestNotableTest : public test::TableFixture {
 protected:
  struct Found {
    std::vector<std::uint64_t> largest;  // generations
    std::vector<std::uint64_t> oldest;
    std::uint32_t holders = 0;
    std::uint32_t looked = 0;
  };
  Found find() {
    Found found;
    table.notable([&](const RequestTable::Notable& notable) {
      for (std::uint32_t i = 0; i < notable.largest_count; ++i)
        found.largest.push_back(notable.largest[i]->handle().generation);
      for (std::uint32_t i = 0; i < notable.oldest_count; ++i)
        found.oldest.push_back(notable.oldest[i]->handle().generation);
      found.holders = notable.holders;
      found.looked = notable.looked;
    });
    return found;
  }
  // Gives a request `blocks` blocks of the smallest class. They stay until the request ends.
  void grow(Handle handle, int blocks) {
    for (int i = 0; i < blocks; ++i) ASSERT_NE(attach_viewed(handle), nullptr);
  }
};

// The largest of the call before, those that grew, the oldest twice, and the next few.
constexpr std::uint32_t kMostLooked = 3 * RequestTable::kNotable + 8 + RequestTable::kNextLooked;

TEST_F(RequestNotableTest, AnEmptyTableNamesNone) {
  const Found found = find();
  EXPECT_TRUE(found.largest.empty());
  EXPECT_TRUE(found.oldest.empty());
  EXPECT_EQ(found.holders, 0U);
}

TEST_F(RequestNotableTest, FewRequestsAreAllComparedAtOnce) {
  std::vector<Handle> all;
  for (int i = 0; i < 20; ++i) {
    all.push_back(open("s" + std::to_string(i)));
    grow(all.back(), (i * 7) % 20);  // 0 to 19 blocks, every number once
  }
  const Found found = find();
  std::vector<std::uint64_t> expected;
  for (int blocks = 19; blocks > 14; --blocks)
    for (int i = 0; i < 20; ++i)
      if ((i * 7) % 20 == blocks) expected.push_back(all[static_cast<std::size_t>(i)].generation);
  EXPECT_EQ(found.largest, expected);
  EXPECT_EQ(found.oldest,
            (std::vector<std::uint64_t>{all[0].generation, all[1].generation, all[2].generation,
                                        all[3].generation, all[4].generation}));
  EXPECT_EQ(found.holders, 20U);
}

TEST_F(RequestNotableTest, TheWorkDoesNotGrowWithTheRequests) {
  std::vector<Handle> all;
  std::uint32_t looked_at_1000 = 0;
  for (int i = 0; i < 20'000; ++i) {
    all.push_back(open("s"));
    if (i == 1000) looked_at_1000 = find().looked;
  }
  EXPECT_LE(looked_at_1000, kMostLooked);
  EXPECT_LE(find().looked, kMostLooked);
  EXPECT_GE(find().looked, RequestTable::kNextLooked);
}

TEST_F(RequestNotableTest, TheLargestOfManyIsFoundByLooksInTurn) {
  std::vector<Handle> all;
  for (int i = 0; i < 2000; ++i) all.push_back(open("s"));
  grow(all[1700], 3);
  for (std::uint32_t i = 0; i < 2000 / RequestTable::kNextLooked + 1; ++i) (void)find();
  EXPECT_EQ(find().largest.front(), all[1700].generation);
}

TEST_F(RequestNotableTest, ARequestThatGrewIsFoundAtOnce) {
  std::vector<Handle> all;
  for (int i = 0; i < 2000; ++i) all.push_back(open("s"));
  (void)find();
  grow(all[1900], 3);
  table.note_grown(*table.record(all[1900].slot));
  EXPECT_EQ(find().largest.front(), all[1900].generation);
  EXPECT_EQ(find().largest.front(), all[1900].generation) << "and kept in mind";
}

TEST_F(RequestNotableTest, WhatEndsIsNamedNoMore) {
  std::vector<Handle> all;
  for (int i = 0; i < 100; ++i) all.push_back(open("s"));
  (void)find();
  for (int i = 0; i < 98; ++i) close(all[static_cast<std::size_t>(i)]);
  const std::vector<std::uint64_t> left{all[98].generation, all[99].generation};
  EXPECT_EQ(find().oldest, left);
  EXPECT_EQ(find().largest.size(), 2U);
  EXPECT_EQ(find().holders, 2U);
  close(all[98]);
  const Handle again = open("s");  // in a slot that was used before
  EXPECT_EQ(find().oldest, (std::vector<std::uint64_t>{all[99].generation, again.generation}));
}

}  // namespace
}  // namespace slabpool
