// Budgets of requests: what a family may use, what is set aside for it, and allocations that are under way
// when their request ends.
#include <gtest/gtest.h>

#include <vector>

#include "slabpool/request/request_table.hpp"
#include "support/table_help.hpp"

namespace slabpool {
namespace {

class RequestBudget : public test::TableFixture {};

TEST_F(RequestBudget, AQuotaCountsTheWholeFamily) {
  const Handle root = open("sa", {}, {}, 0, 1000);
  const Handle child = open("sa", {}, root);
  RequestRecord& r = *table.record(root.slot);
  RequestRecord& c = *table.record(child.slot);
  std::uint64_t own = 0;
  EXPECT_EQ(table.charge(r, root, 600, 600, own), Status::ok);
  EXPECT_EQ(table.charge(c, child, 401, 401, own), Status::quota_exceeded);
  EXPECT_EQ(table.charge(c, child, 400, 400, own), Status::ok);
  EXPECT_EQ(own, 0U);
  EXPECT_EQ(table.charge(r, root, 1, 1, own), Status::quota_exceeded);
  close(child);
  EXPECT_EQ(used(root), 600U) << "what a child used may be used again";
  EXPECT_EQ(table.charge(r, root, 400, 400, own), Status::ok);
}

TEST_F(RequestBudget, AReserveIsUsedUpAndComesBackWithChildren) {
  const Handle root = open("sa", {}, {}, 1000);
  EXPECT_EQ(depot.aside(), 1000U);
  const Handle child = open("sa", {}, root);
  RequestRecord& c = *table.record(child.slot);
  std::uint64_t own = 0;
  ASSERT_EQ(table.charge(c, child, 700, 700, own), Status::ok);
  EXPECT_EQ(own, 700U);
  table.settle(c, child, 700, own, own, true);  // nothing of it was used by the depot
  EXPECT_EQ(depot.aside(), 300U);
  ASSERT_EQ(table.charge(c, child, 700, 700, own), Status::ok);
  EXPECT_EQ(own, 300U);
  table.settle(c, child, 700, own, 0, true);  // the depot took it
  depot.release_aside(300);
  EXPECT_EQ(depot.aside(), 0U);
  close(child);
  EXPECT_EQ(depot.aside(), 1000U) << "set aside again for the request";
  close(root);
  EXPECT_EQ(depot.aside(), 0U);
}

TEST_F(RequestBudget, AnAllocationThatFailsIsNotCharged) {
  const Handle root = open("sa", {}, {}, 500, 1000);
  RequestRecord& r = *table.record(root.slot);
  std::uint64_t own = 0;
  ASSERT_EQ(table.charge(r, root, 800, 800, own), Status::ok);
  EXPECT_EQ(own, 500U);
  table.settle(r, root, 800, own, own, false);
  EXPECT_EQ(used(root), 0U);
  EXPECT_EQ(depot.aside(), 500U);
  ASSERT_EQ(table.charge(r, root, 1000, 1000, own), Status::ok);
  EXPECT_EQ(own, 500U);
}

// An allocation under way when its request ends: charged before, settled after.

TEST_F(RequestBudget, AChildThatEndsDuringAnAllocationIsTakenOffOnce) {
  for (const bool returned_before : {false, true}) {
    const Handle root = open("sa", {}, {}, 0, 1000);
    const Handle child = open("sa", {}, root);
    RequestRecord& c = *table.record(child.slot);
    std::uint64_t own = 0;
    ASSERT_EQ(table.charge(c, child, 100, 100, own), Status::ok);
    std::vector<Handle> over;
    ASSERT_TRUE(table.close(child, false, over));
    ASSERT_TRUE(table.claim(child));
    if (returned_before) table.return_budget(c);
    table.settle(c, child, 100, own, own, false);
    if (!returned_before) table.return_budget(c);
    EXPECT_EQ(used(root), 0U) << returned_before;
    (void)table.retire(c);
    close(root);
  }
}

TEST_F(RequestBudget, SettlingLateTouchesNobodyElsesBudget) {
  const Handle old = open("sa", {}, {}, 400, 1000);
  RequestRecord& record = *table.record(old.slot);
  std::uint64_t own = 0;
  ASSERT_EQ(table.charge(record, old, 300, 300, own), Status::ok);
  ASSERT_EQ(own, 300U);
  close(old);
  EXPECT_EQ(depot.aside(), 300U) << "what the allocation may still use";
  const Handle next = open("sb", {}, {}, 200, 1000);
  ASSERT_EQ(next.slot, old.slot);
  table.settle(record, old, 300, own, own, false);
  EXPECT_EQ(used(next), 0U);
  EXPECT_EQ(depot.aside(), 200U);
  EXPECT_EQ(table.charge(record, next, 1000, 1000, own), Status::ok);
  EXPECT_EQ(own, 200U);
  EXPECT_EQ(table.charge(record, old, 1, 1, own), Status::request_closed);
}

TEST_F(RequestBudget, AChildSettlingAfterItsRootEndedGivesItsReserveBack) {
  const Handle root = open("sa", {}, {}, 400);
  const Handle child = open("sa", {}, root);
  RequestRecord& c = *table.record(child.slot);
  std::uint64_t own = 0;
  ASSERT_EQ(table.charge(c, child, 300, 300, own), Status::ok);
  close(root);
  ASSERT_TRUE(table.is_over(root));
  ASSERT_TRUE(table.is_over(child));
  table.settle(c, child, 300, own, own, false);
  EXPECT_EQ(depot.aside(), 0U);
}

}  // namespace
}  // namespace slabpool
