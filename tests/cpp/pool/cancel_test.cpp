// Requests that the host gives up: by their handle, by their id, with their parent.
#include <gtest/gtest.h>

#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::expect_all_returned;
using test::open;

class Cancel : public test::PoolFixture {
 protected:
  bool cancel(std::string_view id, std::optional<std::uint64_t> generation = {},
              Status status = Status::ok) {
    bool cancelled = true;
    EXPECT_EQ(pool->cancel_id(id, generation, cancelled), status);
    return cancelled;
  }
};

TEST_F(Cancel, TheOneOpenRequestOfTheId) {
  const Handle one = open(*pool, {.id = "one", .devices = {0}}), other = open(*pool, {.id = "other"});
  EXPECT_FALSE(cancel("none"));
  EXPECT_TRUE(cancel("one"));
  EXPECT_TRUE(pool->cancelled(one));
  EXPECT_FALSE(pool->is_open(one));
  EXPECT_FALSE(pool->cancelled(other));
  EXPECT_FALSE(cancel("one")) << "the host has left it";
  EXPECT_EQ(ack(one, 0), AckResult::released);
  EXPECT_FALSE(cancel("one"));
  EXPECT_TRUE(pool->cancelled(one)) << "it is over, and no later request of its slot was cancelled";
  close(other);
  EXPECT_FALSE(cancel("other"));
  expect_all_returned(*pool);
}

TEST_F(Cancel, SeveralOpenOnesNeedAGeneration) {
  const Handle first = open(*pool, {.id = "one", .devices = {0}}),
               second = open(*pool, {.id = "one", .devices = {0}}),
               child = open(*pool, {.id = "one", .devices = {0}, .parent = second});
  EXPECT_FALSE(cancel("one", {}, Status::ambiguous));
  EXPECT_TRUE(pool->is_open(first) && pool->is_open(second) && pool->is_open(child));
  EXPECT_FALSE(cancel("one", 1'000'000));
  EXPECT_FALSE(cancel("other", first.generation)) << "of another id";
  EXPECT_TRUE(cancel("one", child.generation));
  EXPECT_TRUE(pool->cancelled(child));
  EXPECT_FALSE(pool->cancelled(second));
  EXPECT_TRUE(cancel("one", first.generation));
  EXPECT_TRUE(cancel("one")) << "one is left; children do not count";
  EXPECT_TRUE(pool->cancelled(second));
  for (const Handle one : {first, second}) EXPECT_EQ(ack(one, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(Cancel, ChildrenThatTheHostHasNotClosedGoToo) {
  const Handle parent = open(*pool, {.id = "one", .devices = {0}}),
               closed = open(*pool, {.id = "one", .devices = {0}, .parent = parent}),
               still_open = open(*pool, {.id = "one", .devices = {0}, .parent = parent});
  close(closed);
  EXPECT_TRUE(cancel("one"));
  EXPECT_TRUE(pool->cancelled(still_open));
  EXPECT_FALSE(pool->cancelled(closed));
  EXPECT_EQ(ack(parent, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(Cancel, TheNextRequestInTheSlotIsNotCancelled) {
  std::uint32_t slot = 0;
  for (int i = 0; i < 100; ++i) {
    const Handle handle = open(*pool, {.id = "one", .devices = {0}});
    if (i == 0) slot = handle.slot;
    ASSERT_EQ(handle.slot, slot);
    EXPECT_FALSE(pool->cancelled(handle));
    pool->close_request(handle, i % 2 == 0);
    EXPECT_EQ(pool->cancelled(handle), i % 2 == 0);
    EXPECT_EQ(ack(handle, 0), AckResult::released);
    EXPECT_EQ(pool->cancelled(handle), i % 2 == 0) << "the slot keeps its last cancelled request";
  }
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
