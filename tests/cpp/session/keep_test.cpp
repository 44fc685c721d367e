// What sessions keep: a block moves to a request that stays, is charged only there, and returns once it
// has no pin left.
#include <gtest/gtest.h>

#include <cstring>

#include "slabpool/pool/pool.hpp"
#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::held;
using test::kept;
using test::kMiB;
using test::make_pool;
using test::open;

constexpr std::uint64_t kMuch = 64 * kMiB;

class Keep : public test::PoolFixture {
 protected:
  Handle session(std::uint64_t quota = kMuch) {
    Handle made;
    EXPECT_EQ(pool->open_session("k-session", quota, {"test.cpp", 1}, made), Status::ok);
    return made;
  }
  Status keep(Block* block, Handle session, Handle& made, std::optional<Handle> instead = {}) {
    KeepSpec spec;
    spec.id = "k-name";
    spec.block = block;
    spec.from = pool->owner_of(*block);
    spec.session = session;
    spec.instead_of = instead;
    return pool->keep(spec, made);
  }
  Handle keep(Block* block, Handle session) {
    Handle made;
    EXPECT_EQ(keep(block, session, made), Status::ok);
    test::expect_adds_up(pool->stats());
    return made;
  }
  Pool::Kept kept_by(Handle session) {
    Pool::Kept kept;
    EXPECT_TRUE(pool->kept(session, kept));
    return kept;
  }
};

TEST_F(Keep, ABlockOutlivesItsRequestAndReturnsOnce) {
  const Handle chat = session();
  const Handle turn = open(*pool, {.devices = {0}});
  Block* block = take(kept(5000, turn));
  Block* other = take(kept(5000, turn));
  std::memset(block->data, 7, 5000);
  const std::uint64_t size = block->bytes;
  const Handle mine = keep(block, chat);
  EXPECT_EQ(pool->owner_of(*block).generation, mine.generation);
  EXPECT_EQ(info(turn).nbytes, other->bytes);
  EXPECT_EQ(info(mine).nbytes, size);
  EXPECT_EQ(info(mine).state, RequestState::kept);
  EXPECT_EQ(kept_by(chat).bytes, size);
  close(turn);
  EXPECT_EQ(ack(turn, 0), AckResult::released);
  EXPECT_EQ(held(pool->stats()), size) << "the other block returned";
  EXPECT_TRUE(test::all_bytes(block->data, 7, 5000));
  EXPECT_EQ(pool->stats().requests_open, 0U) << "what is kept is no request";
  EXPECT_EQ(pool->close(false), Status::pool_busy);
  close(mine);
  EXPECT_TRUE(pool->released(mine));
  EXPECT_EQ(kept_by(chat).bytes, 0U);
  close(chat);
  expect_all_returned(*pool);
}

TEST_F(Keep, ViewsMoveWithTheirBlock) {
  const Handle chat = session();
  const Handle turn = open(*pool, {.devices = {0}});
  Block* block = take(bytes(5000, turn));
  pool->hold_view(*block);
  EXPECT_EQ(info(turn).live_views, 2U);
  const Handle mine = keep(block, chat);
  EXPECT_EQ(info(turn).live_views, 0U);
  EXPECT_EQ(info(mine).live_views, 2U);
  pool->drop_view(*block);
  EXPECT_EQ(info(mine).live_views, 1U);
  close(turn);
  (void)ack(turn, 0);
  close(mine);
  EXPECT_EQ(info(mine).state, RequestState::released);
  EXPECT_EQ(info(mine).live_views, 1U);
  EXPECT_EQ(pool->stats().retained, block->bytes);
  pool->hold_view(*block);
  EXPECT_EQ(info(mine).live_views, 2U);
  pool->drop_view(*block);
  pool->drop_view(*block);
  close(chat);
  expect_all_returned(*pool);
}

TEST_F(Keep, ATurnThatMayReadItPinsIt) {
  const Handle chat = session();
  const Handle first = open(*pool, {.devices = {0}});
  Block* block = take(kept(5000, first));
  const std::uint64_t size = block->bytes;
  const Handle mine = keep(block, chat);
  const Handle second = open(*pool, {.devices = {0, 1}});
  const Handle both[] = {chat, mine};
  ASSERT_EQ(pool->pin(second, both), Status::ok);
  ASSERT_EQ(pool->pin(second, both), Status::ok) << "a second pin changes nothing";
  EXPECT_EQ(kept_by(chat).pins, 2U);
  close(mine);
  EXPECT_FALSE(pool->released(mine));
  EXPECT_EQ(info(mine).state, RequestState::draining);
  EXPECT_EQ(kept_by(chat).bytes, 0U) << "dropped, so not charged";
  close(first);
  EXPECT_EQ(ack(first, 0), AckResult::released);
  EXPECT_EQ(kept_by(chat).pins, 1U);
  EXPECT_EQ(held(pool->stats()), size);
  close(chat);
  close(second);
  EXPECT_EQ(ack(second, 1), AckResult::pending);
  EXPECT_EQ(held(pool->stats()), size) << "device 0 may still read it";
  EXPECT_EQ(ack(second, 0), AckResult::released);
  EXPECT_TRUE(pool->released(mine));
  expect_all_returned(*pool);
}

TEST_F(Keep, ARequestIsIdleFromTheEndOfItsLastTurn) {
  const Handle chat = session();
  const Handle turn = open(*pool, {.devices = {0}});
  ASSERT_EQ(pool->pin(turn, {&chat, 1}), Status::ok);
  close(turn);
  EXPECT_EQ(kept_by(chat).pins, 1U) << "a device still reads";
  const std::int64_t before = now_ns();
  EXPECT_EQ(pool->device_lost(0), 1U);
  EXPECT_EQ(kept_by(chat).pins, 0U);
  EXPECT_GE(kept_by(chat).idle_since_ns, before);
  EXPECT_LE(kept_by(chat).idle_since_ns, now_ns());
  close(chat);
  Pool::Kept gone;
  EXPECT_FALSE(pool->kept(chat, gone));
  expect_all_returned(*pool);
}

TEST_F(Keep, TheChargeMovesOrNothingChanges) {
  const Handle chat = session(100'000);
  const Handle turn = open(*pool, {.devices = {0}, .reserve = 300'000, .quota = 400'000});
  Block* large = take(kept(90'000, turn));
  Block* small = take(kept(20'000, turn));
  const Handle mine = keep(large, chat);
  Handle refused;
  const Stats before = pool->stats();
  EXPECT_EQ(keep(small, chat, refused), Status::quota_exceeded);
  EXPECT_EQ(pool->owner_of(*small).generation, turn.generation);
  EXPECT_EQ(info(turn).nbytes, small->bytes);
  EXPECT_EQ(pool->stats().live, before.live);
  EXPECT_EQ(pool->requests(0).size(), 3U) << "the turn, the session, and what it keeps";
  // It fits if it replaces the large one.
  Handle instead;
  EXPECT_EQ(keep(small, chat, instead, mine), Status::ok);
  EXPECT_EQ(kept_by(chat).bytes, small->bytes);
  close(mine);
  // The whole quota of the turn is free again, to its last byte.
  Block* most = take(kept(350'000, turn));
  EXPECT_NE(most, nullptr);
  close(turn);
  (void)ack(turn, 0);
  EXPECT_EQ(held(pool->stats()), small->bytes);
  EXPECT_EQ(pool->stats().reserved, 0U);
  EXPECT_EQ(pool->verify(), nullptr);
  close(chat);
  expect_all_returned(*pool);
}

TEST_F(Keep, AllSessionsShareALimit) {
  const Handle one = session();
  const Handle two = session();
  const Handle turn = open(*pool, {});
  Block* a = take(kept(65536, turn));
  Block* b = take(kept(65536, turn));
  pool->set_kept_quota(100'000);
  const Handle mine = keep(a, one);
  Handle refused;
  EXPECT_EQ(keep(b, two, refused), Status::exhausted);
  close(mine);
  EXPECT_EQ(pool->kept_bytes(), 0U) << "dropped, although the turn still pins it";
  (void)keep(b, two);
  EXPECT_EQ(pool->kept_bytes(), b->bytes);
  EXPECT_EQ(pool->set_quota(two, 100), Status::quota_exceeded);
  EXPECT_EQ(pool->set_quota(two, 65536), Status::ok);
  close(turn);
  close(one);
  close(two);
  EXPECT_EQ(pool->kept_bytes(), 0U);
  expect_all_returned(*pool);
}

TEST_F(Keep, ARefusedKeepChangesNothing) {
  const Handle chat = session();
  const Handle turn = open(*pool, {.devices = {0}});
  Block* free = take(bytes(1000));
  EXPECT_EQ(pool->owner_of(*free).generation, 0U);
  Handle refused;
  EXPECT_EQ(keep(free, chat, refused), Status::request_closed);
  pool->drop_view(*free);
  Block* block = take(bytes(1000, turn));
  const Handle mine = keep(block, chat);
  EXPECT_EQ(keep(block, chat, refused), Status::invalid_argument) << "it is kept already";
  close(mine);
  EXPECT_EQ(keep(block, chat, refused), Status::invalid_argument) << "it was dropped";
  pool->drop_view(*block);
  Block* late = take(bytes(1000, turn));
  close(turn);
  const Handle kept_late = keep(late, chat);
  (void)ack(turn, 0);
  EXPECT_EQ(info(kept_late).nbytes, late->bytes) << "a draining request's tensors may be kept";
  pool->drop_view(*late);
  const Handle over = open(*pool, {});
  Block* retained = take(bytes(1000, over));
  EXPECT_EQ(keep(retained, over, refused), Status::invalid_argument) << "no session";
  close(over);
  EXPECT_EQ(keep(retained, chat, refused), Status::request_closed);
  pool->drop_view(*retained);
  close(chat);
  const Handle last = open(*pool, {});
  Block* after = take(bytes(1000, last));
  EXPECT_EQ(keep(after, chat, refused), Status::request_closed) << "the session is gone";
  pool->drop_view(*after);
  close(last);
  expect_all_returned(*pool);
}

TEST_F(Keep, AKeptTensorKeepsGrowingForTheSession) {
  const Handle chat = session(1 << 20);
  const Handle turn = open(*pool, {.devices = {0}, .reserve = 200'000, .quota = 300'000});
  Block* block = pool->open_growing(turn, 8 * kMiB).block;
  ASSERT_NE(block, nullptr);
  std::uint64_t usable = 0;
  ASSERT_EQ(pool->grow(*block, turn, 250'000, usable), Status::ok);
  const Handle mine = keep(block, chat);
  EXPECT_EQ(kept_by(chat).bytes, block->bytes);
  EXPECT_EQ(info(turn).nbytes, 0U);
  EXPECT_EQ(pool->grow(*block, turn, 300'000, usable), Status::request_closed);
  EXPECT_EQ(pool->grow(*block, mine, 300'000, usable), Status::ok);
  std::memset(block->data, 3, 300'000);
  Block* most = take(kept(250'000, turn));
  EXPECT_NE(most, nullptr) << "the turn's quota is free again";
  close(turn);
  (void)ack(turn, 0);
  EXPECT_EQ(pool->grow(*block, mine, 2'000'000, usable), Status::quota_exceeded);
  pool->set_kept_quota(500'000);
  EXPECT_EQ(pool->grow(*block, mine, 800'000, usable), Status::quota_exceeded);
  pool->set_kept_quota(1 << 20);
  EXPECT_EQ(pool->grow(*block, mine, 800'000, usable), Status::ok);
  EXPECT_EQ(kept_by(chat).bytes, block->bytes);
  EXPECT_EQ(pool->kept_bytes(), block->bytes);
  EXPECT_EQ(held(pool->stats()), block->bytes);
  EXPECT_TRUE(test::all_bytes(block->data, 3, 300'000));
  close(mine);
  EXPECT_EQ(pool->grow(*block, mine, 900'000, usable), Status::request_closed);
  pool->drop_view(*block);
  close(chat);
  expect_all_returned(*pool);
}

TEST_F(Keep, KeptBytesAreNotFoundByAnId) {
  Handle chat;
  ASSERT_EQ(pool->open_session("sa", kMuch, {}, chat), Status::ok);
  const std::uint32_t gpu = pool->devices().add("sgpu").value();
  EXPECT_EQ(pool->ack_id("sa", gpu, {}).result, AckResult::late);
  close(chat);
  expect_all_returned(*pool);
}

TEST_F(Keep, APoolClosedByForceLeavesNothing) {
  const Handle chat = session();
  const Handle turn = open(*pool, {.devices = {0}});
  Block* block = take(bytes(5000, turn));
  const Handle mine = keep(block, chat);
  close(mine);
  EXPECT_EQ(pool->close(true), Status::ok);
  EXPECT_EQ(pool->stats().retained, block->bytes);
  pool->drop_view(*block);
  EXPECT_EQ(held(pool->stats()), 0U);
  EXPECT_TRUE(pool->requests(0).empty());
}

class KeepModes : public Keep, public testing::WithParamInterface<int> {
 protected:
  KeepModes() {
    PoolOptions options;
    options.capacity = kCapacity;
    options.debug = GetParam() == 0 ? 2 : 0;
    options.scrub_on_release = GetParam() == 1;
    options.shared = GetParam() == 2;
    options.events = 64;
    pool = make_pool(options);
  }
};

TEST_P(KeepModes, TheSameEverywhere) {
  const Handle chat = session();
  for (int round = 0; round < 20; ++round) {
    const Handle turn = open(*pool, {.devices = {0}});
    Block* block = take(kept(1000 + 30'000 * static_cast<std::uint64_t>(round), turn));
    std::memset(block->data, 1 + round, 1000);
    const Handle mine = keep(block, chat);
    close(turn);
    (void)ack(turn, 0);
    EXPECT_TRUE(test::all_bytes(block->data, static_cast<unsigned char>(1 + round), 1000));
    if (round % 2 == 0) close(mine);
  }
  close(chat);
  EXPECT_TRUE(pool->corruptions().empty());
  int keeps = 0;
  for (const Event& event : pool->events()) keeps += event.kind == EventKind::keep ? 1 : 0;
  EXPECT_GT(keeps, 5);
  expect_all_returned(*pool);
}

INSTANTIATE_TEST_SUITE_P(Pools, KeepModes, testing::Values(0, 1, 2));

}  // namespace
}  // namespace slabpool
