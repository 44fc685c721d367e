// The k-th allocation fails, for every k, in every public call of a pool.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "slabpool/shared/owner.hpp"
#include "slabpool/shared/peer.hpp"
#include "support/fault_steps.hpp"

namespace slabpool::test {
namespace {

constexpr std::int64_t kHour = std::int64_t{3600} * 1'000'000'000;

enum class Kind { host, shared, debug };

PoolOptions options_of(Kind kind) {
  PoolOptions options;
  options.capacity = 16 * kMiB;
  options.shared = kind == Kind::shared;
  options.events = 64;
  options.debug = kind == Kind::debug ? 2 : 0;
  options.scrub_on_release = kind == Kind::debug;
  return options;
}

Status made(const Allocation& allocation, Block*& block) {
  block = allocation.block;
  return allocation.status;
}

// One pool and every call that a holder of it can make, in an order that leaves nothing held.
class Scenario {
 public:
  Scenario(Kind kind, Steps& steps) : steps_(steps), pool_(make_pool(options_of(kind))) {}

  void run() {
    wait_once();
    name_devices();
    blocks();
    requests();
    children();
    promises();
    growing();
    sessions();
    looking();
    acks();
    if (pool_->shared()) peers();
    losing();
    ending();
  }

 private:
  template <typename Call>
  void forth(const char* name, Call&& call) {
    steps_.forth(*pool_, name, call);
  }
  template <typename Call>
  void back(const char* name, Call&& call) {
    steps_.back(*pool_, name, call);
  }
  Handle opened(const char* name, const Opening& how) {
    Handle handle;
    forth(name, [&] { return pool_->open(how.spec(), handle); });
    return handle;
  }
  Block* taken(const char* name, const AllocateSpec& spec) {
    Block* block = nullptr;
    forth(name, [&] { return made(pool_->allocate(spec), block); });
    return block;
  }
  void drop(const char* name, Block* block) {
    back(name, [&] { pool_->drop_view(*block); });
  }

  // In a shared pool a waiting thread takes a descriptor to be woken by, which the pool keeps for the next one. A wait that
  // gets no memory for it sleeps in short slices instead.
  void wait_once() {
    const failing_new::Armed armed;
    EXPECT_TRUE(pool_->wait_released({}, in_seconds(120)));
  }

  void name_devices() {
    for (const char* name : {"sa", "sb", "the name of a device that is longer than a short string"}) {
      std::uint32_t number = 0;
      forth("devices().add", [&] {
        number = pool_->devices().add(name).value();
        return true;
      });
      devices_.push_back(number);
      back("devices().find", [&] { EXPECT_EQ(pool_->devices().find(name), number); });
      forth("devices().name", [&] { return pool_->devices().name(number) == name; });
    }
    EXPECT_EQ(devices_, (std::vector<std::uint32_t>{0, 1, 2}));
  }

  void blocks() {
    AllocateSpec aligned = bytes(100'000);
    aligned.align = kMaxAlign;
    aligned.zero = true;
    std::vector<Block*> all = {taken("a small block", bytes(100)), taken("a page", bytes(16'384)),
                               taken("a span", bytes(300'000)), taken("a large span", bytes(5 * kMiB)),
                               taken("an aligned block", aligned)};
    forth("allocate_until", [&] {
      return made(pool_->allocate_until(bytes(1000), in_seconds(120)), all.emplace_back(nullptr));
    });
    if (all.back() == nullptr) all.pop_back();
    Block* last = all.back();
    back("hold_view", [&] { pool_->hold_view(*last); });
    back("find", [&] { EXPECT_EQ(pool_->find(last->data), last); });
    back("find_held", [&] { EXPECT_EQ(pool_->find_held(last->data), last); });
    back("note_exhausted", [&] { pool_->note_exhausted({}, 5); });
    drop("drop_view of two", last);
    for (Block* block : all) {
      if (block != nullptr) drop("drop_view", block);
    }
    back("trim", [&] { (void)pool_->trim(); });
    // A thread's first allocation makes its cache; the blocks of a thread that has ended come back here.
    Block* block = nullptr;
    std::thread([&] {
      forth("the first allocation of a thread", [&] { return made(pool_->allocate(bytes(64)), block); });
    }).join();
    drop("drop_view of another thread's block", block);
  }

  void requests() {
    // More than one chunk of slots, and more than one holder's word.
    std::vector<Handle> many;
    for (int i = 0; i < 70; ++i)
      many.push_back(opened("open", {.id = "an id that is longer than a short string"}));
    for (const Handle handle : many) back("close_request", [&] { pool_->close_request(handle, true); });
    const Handle unborn = opened("open", {.id = "su", .devices = {0, 1}});
    (void)taken("allocate for a request", kept(1000, unborn));
    back("discard", [&] { pool_->discard(unborn); });
    EXPECT_TRUE(pool_->released(unborn)) << "no device has to acknowledge it";
    const Handle handle = opened("open", {.id = "sr", .devices = {0, 1}, .lease_ns = kHour});
    Block* viewed = taken("allocate for a request", bytes(1000, handle));
    (void)taken("allocate without a view", kept(200'000, handle));
    const std::uint32_t serial = viewed->serial();
    back("open_view", [&] { EXPECT_EQ(pool_->open_view(*viewed, serial, handle), Status::ok); });
    drop("drop_view of a request's block", viewed);
    forth("open_until", [&] {
      Handle other;
      const Status status = pool_->open_until(Opening{.id = "so"}.spec(), other, in_seconds(120));
      if (status == Status::ok) pool_->close_request(other, false);
      return status;
    });
    back("is_open", [&] { EXPECT_TRUE(pool_->is_open(handle)); });
    back("cancelled", [&] { EXPECT_FALSE(pool_->cancelled(handle)); });
    forth("add_device", [&] { return pool_->add_device(handle, 2); });
    back("close_request", [&] { pool_->close_request(handle, false); });
    back("heartbeat", [&] { pool_->heartbeat(0); });
    for (const std::uint32_t device : {0U, 1U, 1U, 2U})
      back("ack", [&] { EXPECT_EQ(pool_->ack(handle, device).status, Status::ok); });
    back("released", [&] { EXPECT_TRUE(pool_->released(handle)); });
    back("wait_released", [&] { EXPECT_TRUE(pool_->wait_released(handle, in_seconds(120))); });
    drop("drop_view of a retained block", viewed);
  }

  void children() {
    const Handle parent = opened("open", {.id = "sp", .devices = {0, 1}});
    (void)taken("allocate", kept(5000, parent));
    std::vector<Handle> children;
    for (int i = 0; i < 3; ++i) {
      children.push_back(opened("open a child", {.id = "sp", .devices = {0}, .parent = parent}));
      (void)taken("allocate for a child", kept(5000, children.back()));
    }
    const Handle grandchild =
        opened("open a grandchild", {.id = "sp", .devices = {0}, .parent = children[0]});
    back("close_request of a child", [&] { pool_->close_request(children[1], false); });
    back("an ack of a parent ends children", [&] { (void)pool_->ack(parent, 0); });
    back("close_request of a parent", [&] { pool_->close_request(parent, false); });
    EXPECT_TRUE(pool_->released(grandchild));
    back("the last ack with children",
         [&] { EXPECT_EQ(pool_->ack(parent, 1).result, AckResult::released); });
  }

  void promises() {
    const Handle handle = opened("open with a reserve",
                                 {.id = "sq", .devices = {0}, .reserve = 2 * kMiB, .quota = 4 * kMiB});
    std::vector<Block*> views;
    for (int i = 0; i < 40; ++i) views.push_back(taken("a small promised block", bytes(3000, handle)));
    views.push_back(taken("a promised span", bytes(300'000, handle)));
    views.push_back(taken("an unpromised span", bytes(2 * kMiB, handle)));
    for (std::size_t i = 0; i < views.size(); i += 2) drop("drop_view", views[i]);
    back("close_request", [&] { pool_->close_request(handle, false); });
    back("the last ack of a request with a promise", [&] { (void)pool_->ack(handle, 0); });
    for (std::size_t i = 1; i < views.size(); i += 2) drop("drop_view of a retained block", views[i]);
  }

  void growing() {
    const Handle handle = opened("open", {.id = "sg"});
    Block* block = nullptr;
    forth("open_growing", [&] { return made(pool_->open_growing(handle, 4 * kMiB), block); });
    std::uint64_t usable = 0;
    for (const std::uint64_t size : {kMiB / 8, kMiB, 2 * kMiB})
      forth("grow", [&] { return pool_->grow(*block, handle, size, usable); });
    forth("grow_until",
          [&] { return pool_->grow_until(*block, handle, 3 * kMiB, usable, in_seconds(120)); });
    Pool::Extent left;
    back("give_part", [&] { (void)pool_->give_part(*block, handle, kMiB, 2 * kMiB, 1, left); });
    EXPECT_EQ(block->bytes, kMiB);
    Block* never = nullptr;
    forth("open_growing", [&] { return made(pool_->open_growing(handle, kMiB), never); });
    back("cancel_growing", [&] { pool_->cancel_growing(*never, handle); });
    back("close_request", [&] { pool_->close_request(handle, false); });
    drop("drop_view of a growing block", block);
  }

  void sessions() {
    Handle session;
    forth("open_session", [&] {
      return pool_->open_session("the id of a session that is long", 8 * kMiB, {"test.cpp", 1}, session);
    });
    Handle group;
    forth("open_group", [&] {
      OpenSpec spec;
      spec.id = "the id of a group that is longer than a short string";
      spec.reserve = kMiB;
      return pool_->open_group(spec, group, nullptr);
    });
    const Handle under =
        opened("open under a group", {.id = "sg", .parent = group, .reserve = kMiB, .quota = kMiB});
    back("close under a group", [&] { pool_->close_request(under, false); });
    back("close a group", [&] { pool_->close_request(group, false); });
    const Handle turn = opened("open a turn", {.id = "st", .devices = {0}});
    Block* block = taken("allocate", bytes(5000, turn));
    Handle kept;
    forth("keep", [&] {
      KeepSpec spec;
      spec.id = "the name of what is kept, longer than a short string";
      spec.block = block;
      spec.from = pool_->owner_of(*block);
      spec.session = session;
      return pool_->keep(spec, kept);
    });
    const Handle next = opened("open the next turn", {.id = "st", .devices = {1}});
    forth("pin", [&] { return pool_->pin(next, std::vector<Handle>{session, kept}); });
    back("kept", [&] {
      Pool::Kept figures;
      EXPECT_TRUE(pool_->kept(session, figures));
    });
    back("set_quota", [&] { EXPECT_EQ(pool_->set_quota(session, 7 * kMiB), Status::ok); });
    back("set_kept_quota", [&] { pool_->set_kept_quota(7 * kMiB); });
    drop("drop_view", block);
    back("close_request of a turn", [&] { pool_->close_request(turn, false); });
    back("the end of a turn", [&] { (void)pool_->ack(turn, 0); });
    back("close_request of what is pinned", [&] { pool_->close_request(kept, false); });
    back("close_request of a pinned session", [&] { pool_->close_request(session, false); });
    EXPECT_FALSE(pool_->released(kept)) << "a turn pins it";
    back("close_request of a turn", [&] { pool_->close_request(next, false); });
    back("the last ack ends what it pinned", [&] { (void)pool_->ack(next, 1); });
    EXPECT_TRUE(pool_->released(kept));
    EXPECT_TRUE(pool_->released(session));
  }

  void looking() {
    const Handle handle = opened("open", {.id = "sl", .devices = {0, 1}});
    forth("describe", [&] {
      RequestInfo info;
      return pool_->describe(handle, info);
    });
    forth("requests", [&] { return pool_->requests(0).size() == 1; });
    forth("events", [&] { return !pool_->events().empty(); });
    forth("corruptions", [&] { return pool_->corruptions().empty(); });
    forth("refusal", [&] { return pool_->refusal().status == Status::ok; });
    back("stats", [&] { (void)pool_->stats(); });
    back("tagged", [&] { EXPECT_EQ(pool_->tagged(1).blocks, 0U); });
    back("verify", [&] { EXPECT_EQ(pool_->verify(), nullptr); });
    Waiter waiter;
    WakeTarget loop{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    ASSERT_GE(loop.fd, 0);
    waiter.target = &loop;
    waiter.request = {handle.slot, handle.generation};
    back("enter", [&] { pool_->enter(waiter); });
    forth("waiters", [&] { return pool_->waiters().size() == 1 && pool_->waiters()[0].id == "sl"; });
    forth("ahead_of", [&] { return pool_->ahead_of(waiter).count == 0; });
    back("in_circle", [&] { EXPECT_FALSE(pool_->in_circle()); });
    back("close_request that wakes", [&] { pool_->close_request(handle, false); });
    back("take_woken", [&] { EXPECT_EQ(pool_->take_woken(loop), &waiter); });
    back("leave", [&] { pool_->leave(waiter); });
    (void)::close(loop.fd);
    back("device_lost", [&] { EXPECT_EQ(pool_->device_lost(0), 1U); });
    back("ack", [&] { EXPECT_EQ(pool_->ack(handle, 1).result, AckResult::released); });
  }

  void acks() {
    const std::string_view id = "the id of a request, longer than a short string";
    const Handle handle = opened("open", {.id = id, .devices = {0, 1}});
    back("ack_id", [&] { EXPECT_EQ(pool_->ack_id(id, 0, {}).result, AckResult::pending); });
    back("ack_id",
         [&] { EXPECT_EQ(pool_->ack_id(id, 1, handle.generation).result, AckResult::pending); });
    back("ack_id of no request", [&] { EXPECT_EQ(pool_->ack_id("s?", 0, {}).result, AckResult::late); });
    back("ack of an unknown device",
         [&] { EXPECT_EQ(pool_->ack(handle, 2).status, Status::unknown_device); });
    back("close_request", [&] { pool_->close_request(handle, false); });
  }

  void peers() {
    PeerFiles files;
    Error error;
    forth("attach_peer", [&] {
      error = {};
      return pool_->attach_peer(0, files, error) ? Status::ok : error.status;
    });
    std::unique_ptr<SharedPeer> peer;
    forth("SharedPeer::create", [&] {
      peer = SharedPeer::create(0, files.data, files.table, files.board, files.tally, files.bell, error);
      return peer != nullptr;
    });
    const Handle handle = opened("open", {.id = "sx", .devices = {0}, .lease_ns = kHour});
    Block* block = taken("allocate", kept(5000, handle));
    Reference reference;
    back("refer", [&] {
      reference.pool_id = pool_->shared_id();
      reference.slot = handle.slot;
      reference.generation = handle.generation;
      reference.nbytes = 5000;
      EXPECT_EQ(pool_->refer(handle, block->data, 5000, reference.offset, reference.seal), Status::ok);
    });
    back("SharedPeer::map_writable", [&] { EXPECT_TRUE(peer->map_writable(pool_->writable_data())); });
    back("SharedPeer::open", [&] {
      std::byte* data = nullptr;
      EXPECT_EQ(peer->open(reference, true, data), PeerStatus::ok);
    });
    back("SharedPeer::heartbeat", [&] { peer->heartbeat(); });
    back("close_request", [&] { pool_->close_request(handle, false); });
    back("SharedPeer::ack", [&] { EXPECT_EQ(peer->ack(reference).status, PeerStatus::ok); });
    back("collect_acks", [&] { pool_->collect_acks(); });
    EXPECT_TRUE(pool_->released(handle));
    const Handle other = opened("open", {.id = "sy", .devices = {0}});
    Block* view = taken("allocate", bytes(5000, other));
    back("wait_released", [&] { EXPECT_FALSE(pool_->wait_released(other, now_ns() + 1'000'000)); });
    back("answer_bell", [&] { pool_->answer_bell(); });
    back("close_request", [&] { pool_->close_request(other, false); });
    back("detach_peer", [&] { EXPECT_EQ(pool_->detach_peer(0), 1U); });
    drop("drop_view of a retained block", view);
    back("dismiss_peers", [&] { pool_->dismiss_peers(); });
  }

  void losing() {
    const Handle parent = opened("open", {.id = "sp", .devices = {0, 1}});
    const Handle child = opened("open a child", {.id = "sp", .devices = {0}, .parent = parent});
    const Handle other = opened("open", {.id = "so", .devices = {0}});
    for (const Handle handle : {parent, child, other}) (void)taken("allocate", kept(5000, handle));
    for (const Handle handle : {child, other})
      back("close_request", [&] { pool_->close_request(handle, false); });
    back("device_lost", [&] { EXPECT_EQ(pool_->device_lost(0), 3U); });
    EXPECT_TRUE(pool_->released(child));
    EXPECT_TRUE(pool_->released(other));
    back("close_request", [&] { pool_->close_request(parent, false); });
    back("device_lost", [&] { EXPECT_EQ(pool_->device_lost(1), 1U); });
    EXPECT_TRUE(pool_->released(parent));
  }

  void ending() {
    expect_all_returned(*pool_);
    const Handle parent = opened("open", {.id = "sp", .devices = {0, 1}, .reserve = kMiB});
    const Handle child = opened("open a child", {.id = "sp", .devices = {0}, .parent = parent});
    Handle session;
    forth("open_session", [&] { return pool_->open_session("s", kMiB, {"test.cpp", 1}, session); });
    (void)taken("allocate", kept(5000, parent));
    Block* view = taken("allocate", bytes(5000, child));
    back("close of a pool in use", [&] { EXPECT_EQ(pool_->close(false), Status::pool_busy); });
    back("close by force", [&] { EXPECT_EQ(pool_->close(true), Status::ok); });
    back("close again", [&] { EXPECT_EQ(pool_->close(false), Status::ok); });
    EXPECT_TRUE(pool_->released(parent));
    drop("drop_view after the pool is closed", view);
    expect_all_returned(*pool_);
  }

  Steps& steps_;
  std::unique_ptr<Pool> pool_;
  std::vector<std::uint32_t> devices_;
};

class EachAllocation : public testing::TestWithParam<Kind> {};

TEST_P(EachAllocation, FailsInEveryCallOfThePool) {
  const std::uint64_t refused =
      each_allocation_fails([&](Steps& steps) { Scenario(GetParam(), steps).run(); });
  EXPECT_GT(refused, 40U) << "the scenario has allocations to fail";
}

TEST_P(EachAllocation, FailsInCreation) {
  std::uint64_t refused = 0;
  for (std::uint64_t k = 1; k != 0; ++k) {
    SCOPED_TRACE("allocation " + std::to_string(k));
    const std::size_t descriptors = open_descriptors();
    std::unique_ptr<Pool> pool;
    Error error;
    failing_new::fail(k);
    {
      const failing_new::Armed armed;
      pool = Pool::create(options_of(GetParam()), error);
    }
    const bool failed = failing_new::state.failed != 0;
    failing_new::fail(0);
    if (pool == nullptr) {
      ASSERT_TRUE(failed);
      ++refused;
      EXPECT_EQ(error.status, Status::system_refused);
      EXPECT_EQ(error.system_errno, ENOMEM);
      EXPECT_EQ(open_descriptors(), descriptors) << "a descriptor leaks";
      continue;
    }
    pool.reset();
    EXPECT_EQ(open_descriptors(), descriptors) << "a descriptor leaks";
    if (!failed) break;
  }
  EXPECT_GT(refused, 10U);
}

// A thread that has no cache yet, and gets no memory at all.
TEST_P(EachAllocation, FailsOnAThreadThatOnlyReturns) {
  auto pool = make_pool(options_of(GetParam()));
  const Handle parent = open(*pool, {.id = "sp", .devices = {0, 1, 2}});
  const Handle child = open(*pool, {.id = "sp", .devices = {0, 1}, .parent = parent});
  const Handle promised = open(*pool, {.id = "sq", .devices = {0}, .reserve = kMiB});
  const auto take = [&](const AllocateSpec& spec) {
    const Allocation made = pool->allocate(spec);
    EXPECT_EQ(made.status, Status::ok);
    return made.block;
  };
  for (const Handle handle : {parent, child, promised}) {
    (void)take(kept(5000, handle));
    (void)take(kept(300'000, handle));
  }
  Block* own = take(bytes(1000));
  Block* viewed = take(bytes(1000, parent));
  failing_new::fail_all();
  const auto on_a_new_thread = [&](const std::function<void()>& call) {
    std::thread([&] {
      const failing_new::Armed armed;
      call();
    }).join();
    expect_adds_up(pool->stats());
  };
  on_a_new_thread([&] { EXPECT_EQ(pool->allocate(bytes(100)).status, Status::system_refused); });
  on_a_new_thread([&] { pool->drop_view(*own); });
  on_a_new_thread([&] { pool->close_request(promised, false); });
  on_a_new_thread([&] { (void)pool->ack(promised, 0); });
  on_a_new_thread([&] { (void)pool->ack(parent, 0); });
  on_a_new_thread([&] { (void)pool->ack(parent, 0); });
  on_a_new_thread([&] { (void)pool->ack_id("s?", 0, {}); });
  on_a_new_thread([&] { EXPECT_EQ(pool->device_lost(1), 2U); });
  on_a_new_thread([&] { pool->close_request(parent, false); });
  on_a_new_thread([&] { EXPECT_EQ(pool->ack(parent, 2).result, AckResult::released); });
  on_a_new_thread([&] { pool->drop_view(*viewed); });
  on_a_new_thread([&] { pool->note_exhausted({}, 5); });
  EXPECT_GT(failing_new::state.failed, 0U);
  failing_new::fail(0);
  const Stats s = pool->stats();
  EXPECT_EQ(s.acks, 3U);
  EXPECT_EQ(s.duplicate_acks, 1U);
  EXPECT_EQ(s.late_acks, 1U);
  EXPECT_EQ(s.exhaustions, 1U);
  expect_all_returned(*pool);
}

INSTANTIATE_TEST_SUITE_P(Kinds, EachAllocation, testing::Values(Kind::host, Kind::shared, Kind::debug),
                         [](const testing::TestParamInfo<Kind>& one) {
                           const Kind kind = one.param;
                           return kind == Kind::host     ? "Host"
                                  : kind == Kind::shared ? "Shared"
                                                         : "Debug";
                         });

}  // namespace
}  // namespace slabpool::test
