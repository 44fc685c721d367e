// Budgets inside budgets: what each level counts, exactly, whatever ends first.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "slabpool/request/table.hpp"
#include "support/scale.hpp"
#include "support/table_help.hpp"

namespace slabpool {
namespace {

class LevelsTest : public test::TableFixture {
 protected:
  Handle group(std::string_view id, std::uint64_t quota = 0, std::uint64_t reserve = 0) {
    OpenSpec spec;
    spec.id = id;
    spec.kept = spec.is_group = true;
    spec.quota = quota;
    spec.reserve = reserve;
    Handle made;
    EXPECT_EQ(table.open(spec, 0, made), Status::ok);
    return made;
  }
  Status try_under(Handle& made, Handle group, std::uint64_t reserve = 0, std::uint64_t quota = 0,
                   bool kept = false, const std::vector<std::uint32_t>& on = {}) {
    OpenSpec spec;
    spec.id = "sa";
    spec.parent = group;
    spec.devices = on;
    spec.reserve = reserve;
    spec.quota = quota;
    spec.kept = kept;
    return table.open(spec, 0, made, &refused);
  }
  Handle under(Handle group, std::uint64_t reserve = 0, std::uint64_t quota = 0,
               const std::vector<std::uint32_t>& on = {}) {
    Handle made;
    EXPECT_EQ(try_under(made, group, reserve, quota, false, on), Status::ok);
    return made;
  }
  Status charge(Handle request, std::uint64_t bytes, std::uint64_t drawn = 0) {
    return table.charge(*table.record(request.slot), request, {bytes, drawn}, refused);
  }
  void uncharge(Handle request, std::uint64_t bytes, std::uint64_t drawn = 0) {
    table.uncharge(*table.record(request.slot), request, {bytes, drawn}, back);
  }
  bool is(Handle a, Handle b) { return a.slot == b.slot && a.generation == b.generation; }
  RequestTable::Group figures(Handle of) { return table.group_figures(*table.record(of.slot)); }

  LevelNeed refused;
  Levels back;
};

TEST_F(LevelsTest, EveryQuotaOfTheChainIsAsked) {
  const Handle top = group("g", 1000);
  const Handle parent = under(top, 0, 600);
  const Handle child = open("sa", {}, parent, 0, 400);
  const Handle plain = open("sa", {}, child);
  EXPECT_EQ(charge(plain, 300), Status::ok);
  EXPECT_EQ(charge(plain, 101), Status::quota_exceeded);
  EXPECT_TRUE(is(refused.at, child));
  EXPECT_EQ(charge(parent, 300), Status::ok);
  EXPECT_EQ(charge(plain, 1), Status::quota_exceeded);
  EXPECT_TRUE(is(refused.at, parent));
  const Handle other = under(top);
  EXPECT_EQ(charge(other, 400), Status::ok);
  EXPECT_EQ(charge(other, 1), Status::quota_exceeded);
  EXPECT_TRUE(is(refused.at, top));
  EXPECT_EQ(charge(plain, 2000), Status::quota_exceeded);
  EXPECT_TRUE(is(refused.at, child)) << "one that can never allow it";
  EXPECT_EQ(used(top), 1000U);
  EXPECT_EQ(used(parent), 600U);
  EXPECT_EQ(used(child), 300U);
  uncharge(plain, 100);
  EXPECT_EQ(back.count, 3U);
  EXPECT_EQ(used(top), 900U);
  close(parent);
  EXPECT_EQ(used(top), 400U);
  close(other);
  EXPECT_EQ(used(top), 0U);
  close(top);
  EXPECT_TRUE(table.is_over(top));
}

TEST_F(LevelsTest, APromiseCountsAboveFromItsOpeningToTheEndOfTheHostsHold) {
  constexpr std::uint64_t kMany = 10 * kPageSize;
  const Handle top = group("g", kMany);
  const Handle request = under(top, 6 * kPageSize, 0, {0});
  EXPECT_EQ(used(top), 6 * kPageSize);
  EXPECT_EQ(charge(request, 4 * kPageSize, 4 * kPageSize), Status::ok);
  EXPECT_EQ(used(top), 6 * kPageSize) << "within what is counted";
  Handle none;
  EXPECT_EQ(try_under(none, top, 5 * kPageSize), Status::quota_exceeded);
  EXPECT_TRUE(is(refused.at, top));
  EXPECT_EQ(refused.bytes, 5 * kPageSize);
  EXPECT_EQ(depot.reserved_bytes(), 6 * kPageSize) << "nothing is reserved for it";
  EXPECT_EQ(charge(request, 4 * kPageSize, 2 * kPageSize), Status::ok);
  EXPECT_EQ(used(top), 8 * kPageSize);
  uncharge(request, 5 * kPageSize, 5 * kPageSize);
  EXPECT_EQ(used(top), 8 * kPageSize) << "two are held beside the promise";
  uncharge(request, 2 * kPageSize);
  EXPECT_EQ(used(top), 6 * kPageSize);
  close(request);
  EXPECT_EQ(used(top), kPageSize) << "its device still holds what it has";
  EXPECT_EQ(depot.reserved_bytes(), 0U);
  table.take_back(back);
  EXPECT_TRUE(back.count == 1 && is(back.at[0], top)) << "waiters of the group hear of it";
  EXPECT_EQ(leave(request, 0), HolderSet::Left::last);
  EXPECT_TRUE(finish(request));
  EXPECT_EQ(used(top), 0U);
  close(top);
}

TEST_F(LevelsTest, AParentThatEndsFirstTakesAllOffTheGroupOnce) {
  const Handle top = group("g", 1000);
  for (const bool child_first : {false, true}) {
    const Handle parent = under(top, 0, 500);
    const Handle child = open("sa", {}, parent, 0, 400);
    ASSERT_EQ(charge(parent, 100), Status::ok);
    ASSERT_EQ(charge(child, 300), Status::ok);
    ClaimedList over;
    ASSERT_TRUE(table.close(parent, false, over));
    RequestRecord* first = over.pop();
    RequestRecord* second = over.pop();
    if (!child_first) std::swap(first, second);
    table.return_budget(*first, back);
    EXPECT_EQ(used(top), child_first ? 100U : 0U);
    uncharge(child, 300);  // an allocation that was in progress
    table.return_budget(*second, back);
    EXPECT_EQ(used(top), 0U);
    table.retire(*table.record(child.slot), over);
    table.retire(*table.record(parent.slot), over);
    EXPECT_TRUE(over.empty());
  }
  close(top);
}

TEST_F(LevelsTest, NestingIsBounded) {
  std::vector<Handle> chain{group("g", 1000)};
  chain.push_back(under(chain.back(), 0, 1000));
  while (chain.size() < kMaxLevels) chain.push_back(open("sa", {}, chain.back(), 0, 1000));
  Handle deeper;
  EXPECT_EQ(try_open(deeper, "sa", {}, chain.back(), 0, 1000), Status::too_deep);
  EXPECT_EQ(try_open(deeper, "sa", {}, chain.back(), kPageSize), Status::too_deep);
  EXPECT_EQ(depot.reserved_bytes(), 0U);
  const Handle plain = open("sa", {}, chain.back());
  EXPECT_EQ(charge(plain, 10), Status::ok);
  for (const Handle level : chain) EXPECT_EQ(used(level), 10U);
  close(chain[1]);
  close(chain[0]);
}

TEST_F(LevelsTest, AGroupEndsWithTheLastUnderIt) {
  const Handle top = group("g", 1000, 4 * kPageSize);
  const Handle request = under(top, 0, 0, {0});
  const Handle child = open("sa", {0}, request);
  Handle session;
  ASSERT_EQ(try_under(session, top, 0, 100, true), Status::ok);
  EXPECT_EQ(figures(top).requests, 1U);
  EXPECT_EQ(figures(top).sessions, 1U);
  close(top);
  EXPECT_FALSE(table.is_open(top));
  EXPECT_FALSE(table.is_over(top));
  Handle none;
  EXPECT_EQ(try_under(none, top), Status::request_closed);
  EXPECT_EQ(charge(child, 1000, 1000), Status::ok) << "its budget lasts";
  close(session);
  close(request);
  EXPECT_FALSE(table.is_over(top));
  EXPECT_EQ(depot.reserved_bytes(), 4 * kPageSize);
  for (const Handle one : {child, request}) (void)leave(one, 0);
  EXPECT_TRUE(finish(child));
  EXPECT_FALSE(table.is_over(top));
  EXPECT_TRUE(finish(request));
  EXPECT_TRUE(table.is_over(top));
  EXPECT_EQ(depot.reserved_bytes(), 0U);
  EXPECT_EQ(table.counts().open + table.counts().draining, 0U);
}

TEST_F(LevelsTest, AnOpenGroupHasItsIdAlone) {
  const Handle first = group("g");
  OpenSpec spec;
  spec.id = "g";
  spec.kept = spec.is_group = true;
  Handle second;
  EXPECT_EQ(table.open(spec, 0, second), Status::name_in_use);
  const Handle request = under(first);
  EXPECT_FALSE(find_waiting("g", 0, {}).found) << "no request's id finds it";
  close(first);
  EXPECT_EQ(table.open(spec, 0, second), Status::ok) << "a closed one gives it up";
  close(request);
  EXPECT_TRUE(table.is_over(first));
  EXPECT_FALSE(table.is_over(second));
  close(second);
}

// Threads charge and end requests of one group while others end their parents.
TEST_F(LevelsTest, ChargesAreExactWhileRequestsEnd) {
  const Handle top = group("g", 100'000);
  std::atomic<int> refusals{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < test::rounds(2'000); ++i) {
      OpenSpec spec;
      spec.id = "sa";
      spec.parent = top;
      spec.quota = 50'000;
      Handle parent;
      ASSERT_EQ(table.open(spec, 0, parent), Status::ok);
      spec.parent = parent;
      spec.quota = random() % 2 * 30'000;
      Handle child;
      ASSERT_EQ(table.open(spec, 0, child), Status::ok);
      const bool swapped = random() % 2 == 0;
      std::thread ends([&] {
        ClaimedList over;
        (void)table.close(parent, false, over);
        std::vector<RequestRecord*> ended;
        while (RequestRecord* record = over.pop()) ended.push_back(record);
        if (swapped) std::swap(ended.front(), ended.back());
        Levels levels;
        for (RequestRecord* record : ended) table.return_budget(*record, levels);
        for (RequestRecord* record : ended)
          if (record->slot == child.slot) table.retire(*record, over);
        table.retire(*table.record(parent.slot), over);
      });
      LevelNeed by;
      Levels levels;
      for (const Handle request : {child, parent, child}) {
        const std::uint64_t bytes = 1 + random() % 20'000;
        RequestRecord& record = *table.record(request.slot);
        const Status status = table.charge(record, request, {bytes, 0}, by);
        if (status == Status::ok && random() % 2 == 0)
          table.uncharge(record, request, {bytes, 0}, levels);
        if (status == Status::quota_exceeded) refusals.fetch_add(1);
      }
      ends.join();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 3; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(used(top), 0U);
  EXPECT_EQ(figures(top).requests, 0U);
  close(top);
  EXPECT_TRUE(table.is_over(top));
}

}  // namespace
}  // namespace slabpool
