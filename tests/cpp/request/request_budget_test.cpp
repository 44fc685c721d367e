// Budgets of requests: what a family may use, what is reserved for it, and allocations in progress when
// their request ends.
#include <gtest/gtest.h>

#include <vector>

#include "slabpool/request/table.hpp"
#include "support/table_help.hpp"

namespace slabpool {
namespace {

class RequestBudget : public test::TableFixture {
 protected:
  LevelNeed refused;
  Levels back;
};

TEST_F(RequestBudget, AQuotaCountsTheWholeFamily) {
  const Handle root = open("sa", {}, {}, 0, 1000);
  const Handle child = open("sa", {}, root);
  RequestRecord& r = *table.record(root.slot);
  RequestRecord& c = *table.record(child.slot);
  EXPECT_EQ(table.charge(r, root, {600, 0}, refused), Status::ok);
  EXPECT_EQ(table.charge(c, child, {401, 0}, refused), Status::quota_exceeded);
  EXPECT_EQ(table.charge(c, child, {400, 0}, refused), Status::ok);
  EXPECT_EQ(table.reserve_of(c, child).reserve, nullptr);
  EXPECT_EQ(table.charge(r, root, {1, 0}, refused), Status::quota_exceeded);
  close(child);
  EXPECT_EQ(used(root), 600U) << "what a child used can be used again";
  EXPECT_EQ(table.charge(r, root, {400, 0}, refused), Status::ok);
}

TEST_F(RequestBudget, TheWholeFamilySharesOneReserveWhichEndsWithIt) {
  const Handle root = open("sa", {}, {}, 3 * kPageSize - 100);
  EXPECT_EQ(depot.reserved_bytes(), 3 * kPageSize) << "whole pages";
  const Handle child = open("sa", {}, root);
  ReserveRef of_root;
  ReserveRef of_child;
  of_root = table.reserve_of(*table.record(root.slot), root);
  of_child = table.reserve_of(*table.record(child.slot), child);
  ASSERT_NE(of_root.reserve, nullptr);
  EXPECT_EQ(of_child.reserve, of_root.reserve);
  EXPECT_EQ(of_child.serial, of_root.serial);
  close(child);
  EXPECT_EQ(depot.reserved_bytes(), 3 * kPageSize);
  close(root);
  EXPECT_EQ(depot.reserved_bytes(), 0U);
  EXPECT_EQ(depot.take_reserved(of_root, 0, 64).chain, nullptr) << "a stale reserve is worth nothing";
}

TEST_F(RequestBudget, AnAllocationThatFailsIsNotCharged) {
  const Handle root = open("sa", {}, {}, 0, 1000);
  RequestRecord& r = *table.record(root.slot);
  ASSERT_EQ(table.charge(r, root, {800, 0}, refused), Status::ok);
  table.uncharge(r, root, {800, 0}, back);
  EXPECT_EQ(used(root), 0U);
  EXPECT_EQ(table.charge(r, root, {1000, 0}, refused), Status::ok);
}

// An allocation in progress when its request ends was charged before, and then fails.

TEST_F(RequestBudget, AChildThatEndsDuringAnAllocationIsUnchargedOnce) {
  for (const bool returned_before : {false, true}) {
    const Handle root = open("sa", {}, {}, 0, 1000);
    const Handle child = open("sa", {}, root);
    RequestRecord& c = *table.record(child.slot);
    ASSERT_EQ(table.charge(c, child, {100, 0}, refused), Status::ok);
    ClaimedList over;
    ASSERT_TRUE(table.close(child, false, over));
    ASSERT_EQ(over.pop(), &c);
    if (returned_before) table.return_budget(c, back);
    table.uncharge(c, child, {100, 0}, back);
    if (!returned_before) table.return_budget(c, back);
    EXPECT_EQ(used(root), 0U) << returned_before;
    table.retire(c, over);
    close(root);
  }
}

TEST_F(RequestBudget, AnEndedRequestTouchesNoOtherBudget) {
  const Handle old = open("sa", {}, {}, 400, 1000);
  RequestRecord& record = *table.record(old.slot);
  const ReserveRef reserve = table.reserve_of(record, old);
  ASSERT_EQ(table.charge(record, old, {300, 0}, refused), Status::ok);
  close(old);
  EXPECT_EQ(depot.reserved_bytes(), 0U);
  const Handle next = open("sb", {}, {}, 200, 1000);
  ASSERT_EQ(next.slot, old.slot);
  EXPECT_EQ(depot.take_reserved(reserve, 0, 64).chain, nullptr);
  EXPECT_EQ(depot.take_span(kPageSize, 1, Depot::Effort::soft, reserve).chain->span->reserve_pages, 0U)
      << "from the memory that all share";
  table.uncharge(record, old, {300, 0}, back);
  EXPECT_EQ(used(next), 0U);
  EXPECT_EQ(depot.reserved_bytes(), kPageSize);
  EXPECT_EQ(table.charge(record, next, {1000, 200}, refused), Status::ok);
  EXPECT_EQ(table.charge(record, old, {1, 0}, refused), Status::request_closed);
}

}  // namespace
}  // namespace slabpool
