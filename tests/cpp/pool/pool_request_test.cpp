// Requests of a pool: holders, views and children, one thread at a time.
#include "slabpool/pool/pool.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kept;
using test::open;

class PoolRequest : public test::PoolFixture {};

// ---- the life of a request

TEST_F(PoolRequest, ARequestReturnsItsMemoryWithItsLastHolder) {
  const Handle request = open(*pool, {.devices = {0, 1, 2}});
  Block* block = take(kept(100'000, request));
  std::memset(block->data, 0x5a, 100'000);
  close(request);
  EXPECT_EQ(ack(request, 1), AckResult::pending);
  EXPECT_EQ(ack(request, 1), AckResult::duplicate);
  EXPECT_EQ(ack(request, 0), AckResult::pending);
  EXPECT_TRUE(test::all_bytes(block->data, 0x5a, 100'000)) << "a device still reads";
  EXPECT_FALSE(pool->released(request));
  EXPECT_EQ(pool->stats().live, block->bytes);
  EXPECT_EQ(ack(request, 2), AckResult::released);
  EXPECT_TRUE(pool->released(request));
  EXPECT_EQ(ack(request, 2), AckResult::late);
  EXPECT_EQ(ack(request, 0), AckResult::late);
  const Stats s = pool->stats();
  EXPECT_EQ(s.acks, 3U);
  EXPECT_EQ(s.duplicate_acks, 1U);
  EXPECT_EQ(s.late_acks, 2U);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, TheHostIsAHolderToo) {
  const Handle request = open(*pool, {.devices = {0}});
  (void)take(kept(1000, request));
  EXPECT_EQ(ack(request, 0), AckResult::pending);
  EXPECT_GT(pool->stats().live, 0U);
  close(request);
  EXPECT_TRUE(pool->released(request));
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, ARequestWithoutDevicesOrBlocksIsFine) {
  const Handle request = open(*pool, {});
  close(request);
  EXPECT_TRUE(pool->released(request));
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, AWrongAckChangesNothing) {
  const Handle request = open(*pool, {.devices = {0, 1}});
  for (const std::uint32_t device : {2U, 31U, 32U, 4095U, 4096U, 1'000'000U, 0xffffffffU}) {
    EXPECT_EQ(pool->ack(request, device).status, Status::unknown_device) << device;
  }
  for (const Handle handle :
       {Handle{}, Handle{request.slot, request.generation + 1}, Handle{99'999, 1}}) {
    EXPECT_EQ(ack(handle, 0), AckResult::late);
  }
  EXPECT_EQ(info(request).pending, (std::vector<std::uint32_t>{0, 1}));
  EXPECT_EQ(pool->stats().acks, 0U);
  close(request);
  (void)ack(request, 0);
  EXPECT_EQ(ack(request, 1), AckResult::released);
}

TEST_F(PoolRequest, WrongDeviceNumbersAreHarmlessWithLeasesToo) {
  const Handle request = open(*pool, {.devices = {0}, .lease_ns = 1'000'000});
  for (const std::uint32_t device : {4096U, 1'000'000U, 0xffffffffU}) {
    EXPECT_EQ(pool->ack(request, device).status, Status::unknown_device);
    pool->heartbeat(device);
    EXPECT_EQ(pool->device_lost(device), 0U);
    EXPECT_EQ(pool->add_device(request, device), Status::too_many_devices);
  }
  close(request);
  EXPECT_EQ(ack(request, 0), AckResult::released);
}

TEST_F(PoolRequest, TheSameIdAgainIsAnotherRequest) {
  const Handle first = open(*pool, {.id = "schat", .devices = {0}});
  Block* a = take(kept(1000, first));
  std::memset(a->data, 1, 1000);
  close(first);
  const Handle second = open(*pool, {.id = "schat", .devices = {0, 1}});
  Block* b = take(kept(1000, second));
  EXPECT_NE(a, b);
  std::memset(b->data, 2, 1000);
  EXPECT_GT(second.generation, first.generation);
  EXPECT_EQ(pool->ack_id("schat", 0, {}).status, Status::ambiguous);
  EXPECT_TRUE(test::all_bytes(a->data, 1, 1000));
  const Pool::Acked named = pool->ack_id("schat", 0, first.generation);
  EXPECT_EQ(named.status, Status::ok);
  EXPECT_EQ(named.result, AckResult::released);
  EXPECT_TRUE(test::all_bytes(b->data, 2, 1000));
  EXPECT_EQ(pool->ack_id("schat", 0, first.generation).result, AckResult::late);
  EXPECT_EQ(pool->ack_id("schat", 0, {}).result, AckResult::pending)
      << "only one waits for it, so the id is not ambiguous";
  EXPECT_EQ(pool->ack_id("schat", 0, {}).result, AckResult::late) << "none waits for it";
  EXPECT_EQ(pool->ack_id("schat", 0, second.generation).result, AckResult::duplicate);
  EXPECT_EQ(pool->ack_id("schat", 7, {}).status, Status::unknown_device);
  EXPECT_EQ(pool->ack_id("schat", 7, second.generation).status, Status::unknown_device);
  EXPECT_EQ(pool->ack_id("sunknown", 7, {}).result, AckResult::late);
  EXPECT_EQ(pool->ack_id("schat", 1, {}).result, AckResult::pending);
  close(second);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, NothingCanBeDoneWithARequestThatTheHostLeft) {
  const Handle request = open(*pool, {.devices = {0}});
  close(request);
  EXPECT_EQ(pool->allocate(bytes(100, request)).status, Status::request_closed);
  EXPECT_EQ(pool->add_device(request, 1), Status::request_closed);
  Handle child;
  EXPECT_EQ(pool->open(test::Opening{.parent = request}.spec(), child), Status::request_closed);
  (void)ack(request, 0);
  EXPECT_EQ(pool->allocate(bytes(100, request)).status, Status::request_closed);
  EXPECT_EQ(pool->stats().allocations, 0U);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, CancelStopsTheHostAndWaitsForTheDevices) {
  const Handle request = open(*pool, {.devices = {0}});
  (void)take(kept(1000, request));
  pool->close_request(request, true);
  EXPECT_TRUE(pool->cancelled(request));
  EXPECT_GT(pool->stats().live, 0U);
  EXPECT_EQ(pool->stats().requests_draining, 1U);
  EXPECT_EQ(ack(request, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, ADeviceThatJoinsLaterIsAHolderToo) {
  const Handle request = open(*pool, {.devices = {0}});
  (void)take(kept(1000, request));
  EXPECT_EQ(pool->add_device(request, 70), Status::ok);
  EXPECT_EQ(pool->add_device(request, 70), Status::duplicate_device);
  close(request);
  EXPECT_EQ(ack(request, 0), AckResult::pending);
  EXPECT_EQ(ack(request, 70), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, ALostDeviceReleasesEverything) {
  std::vector<Handle> requests;
  for (int i = 0; i < 5; ++i) {
    requests.push_back(open(*pool, {.devices = {0, 1}}));
    (void)take(kept(10'000, requests.back()));
    close(requests.back());
  }
  const Handle child_of = open(*pool, {.devices = {0}});
  const Handle child = open(*pool, {.devices = {0}, .parent = child_of});
  (void)take(kept(10'000, child));
  (void)ack(requests[0], 0);
  EXPECT_EQ(pool->device_lost(0), 6U) << "four requests, a parent and its child";
  EXPECT_EQ(pool->device_lost(0), 0U);
  EXPECT_TRUE(pool->is_open(child)) << "the host still holds it";
  for (const Handle request : requests) EXPECT_EQ(ack(request, 1), AckResult::released);
  close(child_of);
  EXPECT_TRUE(pool->released(child));
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, ASilentDeviceReleasesNothing) {
  const Handle request = open(*pool, {.devices = {0}, .lease_ns = 1});
  Block* block = take(kept(10'000, request));
  close(request);
  EXPECT_EQ(info(request).state, RequestState::in_doubt);
  Stats s = pool->stats();
  EXPECT_EQ(s.in_doubt, block->bytes);
  EXPECT_EQ(s.live, 0U);
  EXPECT_EQ(s.requests_in_doubt, 1U);
  test::expect_adds_up(s);
  EXPECT_EQ(pool->close(false), Status::pool_busy);
  EXPECT_EQ(ack(request, 0), AckResult::released);
  EXPECT_EQ(pool->stats().in_doubt, 0U);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, AHeartbeatKeepsARequestOutOfDoubt) {
  const Handle request =
      open(*pool, {.devices = {0, 1}, .lease_ns = std::int64_t{3600} * 1'000'000'000});
  EXPECT_EQ(info(request).state, RequestState::open);
  pool->heartbeat(0);
  EXPECT_EQ(pool->stats().requests_in_doubt, 0U);
  close(request);
  EXPECT_EQ(info(request).state, RequestState::draining);
  (void)ack(request, 0);
  (void)ack(request, 1);
  expect_all_returned(*pool);
}

// ---- views

TEST_F(PoolRequest, AViewOutlivesItsRequest) {
  const Handle request = open(*pool, {.devices = {0}});
  Block* viewed = take(bytes(100'000, request));
  Block* other = take(kept(100'000, request));
  std::memset(viewed->data, 0x5a, 100'000);
  const std::uint64_t other_bytes = other->bytes;
  EXPECT_EQ(info(request).live_views, 1U);
  EXPECT_EQ(info(request).nbytes, viewed->bytes + other_bytes);
  close(request);
  EXPECT_EQ(ack(request, 0), AckResult::released);
  Stats s = pool->stats();
  EXPECT_EQ(s.retained, viewed->bytes);
  EXPECT_EQ(s.live, 0U);
  const RequestInfo record = info(request);
  EXPECT_EQ(record.state, RequestState::released);
  EXPECT_EQ(record.nbytes, viewed->bytes);
  EXPECT_EQ(record.live_views, 1U);
  EXPECT_TRUE(record.pending.empty());
  EXPECT_EQ(pool->close(false), Status::pool_busy);
  // All other memory is handed out and written over; the view is not.
  std::vector<Block*> all;
  Allocation made;
  while ((made = pool->allocate(bytes(50'000))).block != nullptr) {
    std::memset(made.block->data, 0xff, 50'000);
    all.push_back(made.block);
  }
  EXPECT_TRUE(test::all_bytes(viewed->data, 0x5a, 100'000));
  for (Block* block : all) pool->drop_view(*block);
  pool->drop_view(*viewed);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, DroppingAViewOfAHeldRequestFreesNothing) {
  const Handle request = open(*pool, {.devices = {0}});
  Block* block = take(bytes(100'000, request));
  pool->drop_view(*block);
  EXPECT_EQ(info(request).live_views, 0U);
  EXPECT_EQ(pool->stats().live, block->bytes);
  EXPECT_EQ(pool->stats().frees, 0U);
  close(request);
  EXPECT_EQ(ack(request, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, ViewsAreOpenedBySerialWhileTheRequestIsNotOver) {
  const Handle request = open(*pool, {.devices = {0}});
  Block* block = take(kept(100'000, request));
  const std::uint32_t serial = block->serial();
  EXPECT_EQ(pool->open_view(*block, serial, request), Status::ok);
  EXPECT_EQ(pool->open_view(*block, serial + 1, request), Status::request_closed);
  close(request);
  EXPECT_EQ(pool->open_view(*block, serial, request), Status::ok) << "a device still holds";
  EXPECT_EQ(ack(request, 0), AckResult::released);
  EXPECT_EQ(pool->open_view(*block, serial, request), Status::request_closed);
  EXPECT_EQ(pool->stats().retained, block->bytes);
  EXPECT_EQ(info(request).live_views, 2U);
  pool->drop_view(*block);
  pool->drop_view(*block);
  expect_all_returned(*pool);
  Block* again = take(bytes(100'000));
  EXPECT_EQ(again, block);
  EXPECT_EQ(pool->open_view(*block, serial, request), Status::request_closed);
  pool->drop_view(*again);
}

TEST_F(PoolRequest, ARetainedRequestKeepsItsSlot) {
  const Handle request = open(*pool, {});
  Block* block = take(bytes(1000, request));
  close(request);
  const Handle next = open(*pool, {});
  EXPECT_NE(next.slot, request.slot);
  Block* of_next = take(bytes(1000, next));
  EXPECT_EQ(info(next).live_views, 1U);
  pool->drop_view(*block);
  EXPECT_EQ(info(next).live_views, 1U);
  RequestInfo record;
  EXPECT_FALSE(pool->describe(request, record));
  pool->drop_view(*of_next);
  close(next);
  expect_all_returned(*pool);
}

// ---- children

TEST_F(PoolRequest, AChildsMemoryReturnsBeforeItsParents) {
  const Handle parent = open(*pool, {.devices = {0, 1}});
  Block* of_parent = take(kept(100'000, parent));
  const std::uint64_t parents = of_parent->bytes;
  const Handle child = open(*pool, {.devices = {1}, .parent = parent});
  EXPECT_EQ(info(child).parent_generation, parent.generation);
  (void)take(kept(200'000, child));
  close(child);
  EXPECT_EQ(ack(child, 1), AckResult::released);
  EXPECT_EQ(pool->stats().live, parents);
  EXPECT_EQ(ack(child, 0), AckResult::late);
  close(parent);
  EXPECT_EQ(ack(parent, 0), AckResult::pending);
  EXPECT_EQ(ack(parent, 1), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolRequest, AnAckOfTheParentIsOneOfTheChildToo) {
  const Handle parent = open(*pool, {.devices = {0, 1}});
  const Handle child = open(*pool, {.devices = {0}, .parent = parent});
  const Handle both = open(*pool, {.devices = {0, 1}, .parent = parent});
  (void)take(kept(10'000, child));
  (void)take(kept(10'000, both));
  close(child);
  EXPECT_EQ(ack(parent, 0), AckResult::pending);
  EXPECT_TRUE(pool->released(child));
  EXPECT_EQ(ack(child, 0), AckResult::late);
  EXPECT_EQ(ack(both, 0), AckResult::duplicate);
  close(parent);
  EXPECT_EQ(ack(parent, 1), AckResult::released);
  EXPECT_TRUE(pool->released(both));
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
