// Groups of a whole pool: what counts in one, who waits for it, and that it ends once with the last under it.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::in_seconds;
using test::kept;
using test::kMiB;
using test::open;
using test::rounds;

class GroupsTest : public test::PoolFixture {
 protected:
  Handle group(std::string_view id, std::uint64_t quota, std::uint64_t reserve = 0) {
    OpenSpec spec;
    spec.id = id;
    spec.quota = quota;
    spec.reserve = reserve;
    Handle made;
    EXPECT_EQ(pool->open_group(spec, made, nullptr), Status::ok);
    return made;
  }
  GroupInfo info(Handle of) {
    GroupInfo found;
    EXPECT_TRUE(pool->describe_group(of, found));
    return found;
  }
};

TEST_F(GroupsTest, ARefusalNamesThoseWithMostLeftOfTheirReserve) {
  const auto named = [&] {
    std::vector<std::uint64_t> found;
    for (const GroupInfo& one : pool->explain_exhausted().groups) found.push_back(one.handle.generation);
    return found;
  };
  EXPECT_TRUE(named().empty());
  close(group("no reserve", kMiB));
  std::vector<Handle> groups;
  std::vector<std::uint64_t> pages;
  std::minstd_rand random{1};
  const auto expected = [&] {
    std::vector<std::size_t> order(groups.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return pages[a] > pages[b]; });
    std::vector<std::uint64_t> first;
    for (std::size_t i = 0; i < order.size() && i < 3; ++i) first.push_back(groups[order[i]].generation);
    return first;
  };
  for (int round = 0; round < 200; ++round) {
    if (groups.size() < 10 || (groups.size() < 45 && random() % 5 < 3)) {
      pages.push_back(static_cast<std::uint64_t>(groups.size() + 1 + 40 * (random() % 2)));
      while (std::count(pages.begin(), pages.end(), pages.back()) > 1) ++pages.back();
      groups.push_back(group("g" + std::to_string(round), 0, pages.back() << kPageBits));
    } else {
      const std::size_t one = random() % groups.size();
      close(groups[one]);
      groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(one));
      pages.erase(pages.begin() + static_cast<std::ptrdiff_t>(one));
    }
    // Each call looks at 32 of them.
    for (std::size_t looked = 0; looked < groups.size(); looked += 32) (void)named();
    ASSERT_EQ(named(), expected()) << round << ", " << groups.size() << " groups";
  }
  const Handle request = open(*pool, {.parent = groups[0]});
  Block* block = take(bytes(pages[0] << kPageBits, request));
  ASSERT_NE(block, nullptr);
  pages[0] = 0;
  for (std::size_t looked = 0; looked < groups.size(); looked += 32) (void)named();
  EXPECT_EQ(named(), expected()) << "none is left of its reserve";
  pool->drop_view(*block);
  close(request);
  for (const Handle one : groups) close(one);
  EXPECT_TRUE(named().empty());
  expect_all_returned(*pool);
}

TEST_F(GroupsTest, MovesToASessionOfTheGroupCountOnce) {
  const Handle tenant = group("t", kMiB);
  const Handle turn = open(*pool, {.parent = tenant});
  Handle session;
  ASSERT_EQ(pool->open_session("k", kMiB, {}, session, tenant), Status::ok);
  Block* block = take(bytes(kMiB, turn));
  ASSERT_NE(block, nullptr);
  Handle first;
  KeepSpec keeping;
  keeping.id = "k";
  keeping.block = block;
  keeping.from = turn;
  keeping.session = session;
  ASSERT_EQ(pool->keep(keeping, first), Status::ok) << "the quota is full before and after";
  EXPECT_EQ(info(tenant).nbytes, kMiB);
  EXPECT_EQ(pool->kept_bytes(), kMiB);
  EXPECT_TRUE(pool->charged_to(session, tenant));
  // From outside there is no room, unless it comes in place of what is there.
  const Handle outside = open(*pool, {});
  Block* other = take(bytes(kMiB, outside));
  keeping.block = other;
  keeping.from = outside;
  Handle second;
  EXPECT_EQ(pool->keep(keeping, second), Status::quota_exceeded);
  EXPECT_EQ(info(tenant).nbytes, kMiB);
  EXPECT_EQ(pool->kept_bytes(), kMiB);
  keeping.instead_of = first;
  ASSERT_EQ(pool->keep(keeping, second), Status::ok);
  close(first);
  EXPECT_EQ(info(tenant).nbytes, kMiB);
  pool->drop_view(*block);
  pool->drop_view(*other);
  close(session);
  close(turn);
  close(outside);
  EXPECT_EQ(info(tenant).nbytes, 0U);
  close(tenant);
  EXPECT_TRUE(pool->groups().empty());
  expect_all_returned(*pool);
}

TEST_F(GroupsTest, AReserveAsksTheQuotaBeforeItAsksForMemory) {
  const Handle tenant = group("t", 2 * kMiB);
  const Handle holder = open(*pool, {.parent = tenant});
  ASSERT_NE(take(kept(kMiB, holder)), nullptr);
  Handle none;
  EXPECT_EQ(pool->open(test::Opening{.parent = tenant, .reserve = 2 * kMiB}.spec(), none),
            Status::quota_exceeded);
  EXPECT_EQ(pool->stats().reserved, 0U);
  std::atomic<bool> served{false};
  Handle late;
  std::thread waits([&] {
    EXPECT_EQ(pool->open_until(test::Opening{.parent = tenant, .reserve = 2 * kMiB}.spec(), late,
                               in_seconds(60)),
              Status::ok);
    served.store(true);
  });
  while (pool->waiting() == 0) std::this_thread::yield();
  EXPECT_EQ(pool->allocate(kept(1000, holder)).status, Status::waiters_ahead) << "of the same tenant";
  EXPECT_NE(take(kept(1000, open(*pool, {}))), nullptr) << "of no tenant";
  EXPECT_FALSE(served.load());
  close(holder);
  waits.join();
  EXPECT_EQ(info(tenant).nbytes, 2 * kMiB);
  close(late);
  close(tenant);
  (void)pool->close(true);
}

// Threads wait for two quotas, one inside the other, and for reserves; each holds nothing while it waits.
TEST_F(GroupsTest, NoWakeUpIsLost) {
  const Handle tenants[] = {group("a", kMiB, kMiB / 2), group("b", kMiB)};
  std::atomic<int> failures{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < rounds(400); ++i) {
      const std::uint64_t size = (1 + random() % 200) << 12;
      test::Opening how{.parent = tenants[seed % 2]};
      if (random() % 3 == 0) how.reserve = size;
      if (random() % 2 == 0) how.quota = kMiB;
      Handle request;
      if (pool->open_until(how.spec(), request, in_seconds(60)) != Status::ok) {
        failures.fetch_add(1);
        return;
      }
      const Handle child = open(*pool, {.parent = request, .quota = random() % 2 * kMiB});
      const Handle user = random() % 2 == 0 ? child : request;
      if (pool->allocate_until(kept(size, user), in_seconds(60)).status != Status::ok)
        failures.fetch_add(1);
      if (random() % 2 == 0) close(child);
      close(request);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures.load(), 0);
  for (const Handle tenant : tenants) {
    EXPECT_EQ(info(tenant).nbytes, 0U);
    close(tenant);
  }
  EXPECT_EQ(pool->stats().reserved, 0U);
  expect_all_returned(*pool);
}

// Groups are closed while requests are opened under them, allocate and end.
TEST_F(GroupsTest, AGroupThatIsClosedMeanwhileEndsOnce) {
  for (int i = 0; i < rounds(300); ++i) {
    const Handle tenant = group("t", kMiB, 4 * kPageSize);
    std::atomic<int> ready{0};
    const auto use = [&] {
      ready.fetch_add(1);
      while (ready.load() != 3) std::this_thread::yield();
      Handle request;
      const OpenSpec spec = test::Opening{.parent = tenant, .reserve = kPageSize}.spec();
      if (pool->open(spec, request) != Status::ok) return;
      (void)pool->allocate(kept(3 * kPageSize, request));
      const Handle child = open(*pool, {.parent = request});
      (void)pool->allocate(kept(100, child));
      close(request);
    };
    std::thread one(use);
    std::thread two(use);
    ready.fetch_add(1);
    while (ready.load() != 3) std::this_thread::yield();
    close(tenant);
    one.join();
    two.join();
    ASSERT_TRUE(pool->groups().empty());
    ASSERT_EQ(pool->stats().reserved, 0U);
  }
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
