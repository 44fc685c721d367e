// A device hears that the host has cancelled a request: of exactly that generation, at once, and at no cost otherwise.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "slabpool/shared/owner.hpp"
#include "slabpool/shared/peer.hpp"
#include "support/pool_help.hpp"

namespace slabpool::test {
namespace {

using Host = SharedPeer::Host;

class SharedCancel : public PoolFixture {
 protected:
  SharedCancel() {
    pool.reset();
    PoolOptions options;
    options.capacity = kCapacity;
    options.shared = true;
    pool = make_pool(options);
    gpu = pool->devices().add("gpu0").value();
  }
  std::unique_ptr<SharedPeer> attach(std::uint32_t number) {
    PeerFiles files;
    Error error;
    EXPECT_TRUE(pool->attach_peer(number, files, error)) << strerror(error.system_errno);
    return SharedPeer::create(number, files.data, files.table, files.board, files.tally, files.bell,
                              error);
  }
  Reference refer(Handle handle) {
    Reference reference;
    reference.pool_id = pool->shared_id();
    reference.slot = handle.slot;
    reference.generation = handle.generation;
    EXPECT_EQ(pool->refer(handle, nullptr, 0, reference.offset, reference.seal), Status::ok);
    return reference;
  }
  static Host host_of(const SharedPeer& peer, const Reference& reference) {
    Host host{};
    EXPECT_EQ(peer.host_of(reference, host), PeerStatus::ok);
    return host;
  }
  static Host wait(SharedPeer& peer, const Reference& reference, std::int64_t seconds = 120) {
    Host host{};
    EXPECT_EQ(peer.wait_for_host(reference, in_seconds(seconds), host), PeerStatus::ok);
    return host;
  }
  std::uint32_t gpu = 0;
};

TEST_F(SharedCancel, OfExactlyThisRequest) {
  auto peer = attach(gpu);
  Reference before{};
  for (int i = 0; i < 50; ++i) {
    const Handle handle = open(*pool, {.devices = {gpu}});
    const Reference reference = refer(handle);
    EXPECT_EQ(host_of(*peer, reference), Host::holds);
    if (i > 0) {
      EXPECT_EQ(reference.slot, before.slot);
      EXPECT_EQ(host_of(*peer, before), Host::done);
    }
    pool->close_request(handle, i % 2 == 0);
    EXPECT_EQ(host_of(*peer, reference), i % 2 == 0 ? Host::cancelled : Host::done);
    EXPECT_EQ(peer->ack(reference).result, AckResult::released);
    EXPECT_EQ(host_of(*peer, reference), Host::done) << "it has acknowledged";
    EXPECT_TRUE(pool->released(handle));
    EXPECT_EQ(host_of(*peer, reference), Host::done) << "it is over";
    before = reference;
  }
  expect_all_returned(*pool);
}

TEST_F(SharedCancel, WrongReferences) {
  auto peer = attach(gpu);
  const std::uint32_t other = pool->devices().add("gpu1").value();
  const Handle handle = open(*pool, {.devices = {other}});
  Reference reference = refer(handle);
  Host host{};
  EXPECT_EQ(peer->host_of(reference, host), PeerStatus::unknown_device);
  EXPECT_EQ(peer->wait_for_host(reference, in_seconds(120), host), PeerStatus::unknown_device);
  reference.pool_id ^= 1;
  EXPECT_EQ(peer->host_of(reference, host), PeerStatus::other_pool);
  reference.pool_id ^= 1;
  reference.slot = kMaxRequests;
  EXPECT_EQ(peer->host_of(reference, host), PeerStatus::forged);
  close(handle);
  EXPECT_EQ(ack(handle, other), AckResult::released);
}

TEST_F(SharedCancel, AWaiterIsWokenByEveryWayInWhichTheHostLeaves) {
  auto peer = attach(gpu);
  for (int round = 0; round < 200; ++round) {
    const Handle parent = open(*pool, {.devices = {gpu}});
    const Handle handle = round % 4 == 3 ? open(*pool, {.devices = {gpu}, .parent = parent}) : parent;
    const Reference reference = refer(handle);
    Host heard{};
    std::atomic<bool> started{false};
    std::thread waiter([&] {
      started.store(true);
      heard = wait(*peer, reference);
    });
    while (!started.load()) std::this_thread::yield();
    bool cancelled = false;
    switch (round % 4) {
      case 0:
        pool->close_request(handle, true);
        break;
      case 1:
        pool->close_request(handle, false);
        break;
      case 2:
        EXPECT_EQ(pool->cancel_id("sa", {}, cancelled), Status::ok);
        break;
      default:
        pool->close_request(parent, true);
    }
    waiter.join();
    EXPECT_EQ(heard, round % 4 == 1 ? Host::done : Host::cancelled);
    EXPECT_EQ(peer->ack(refer(parent)).result, AckResult::released);
  }
  expect_all_returned(*pool);
}

TEST_F(SharedCancel, ManyWaitersOfManyRequests) {
  auto peer = attach(gpu);
  std::vector<Handle> requests;
  std::vector<std::thread> threads;
  std::atomic<int> started{0}, cancelled{0};
  for (int i = 0; i < 8; ++i) requests.push_back(open(*pool, {.devices = {gpu}}));
  for (const Handle handle : requests) {
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, reference = refer(handle)] {
        started.fetch_add(1);
        cancelled.fetch_add(wait(*peer, reference) == Host::cancelled ? 1 : 0);
      });
    }
  }
  while (started.load() != 32) std::this_thread::yield();
  for (const Handle handle : requests) pool->close_request(handle, true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cancelled.load(), 32);
  for (const Handle handle : requests) (void)ack(handle, gpu);
}

TEST_F(SharedCancel, ADeadlinePasses) {
  auto peer = attach(gpu);
  const Handle handle = open(*pool, {.devices = {gpu}});
  const Reference reference = refer(handle);
  const std::int64_t before = now_ns();
  Host host{};
  EXPECT_EQ(peer->wait_for_host(reference, before + 20'000'000, host), PeerStatus::ok);
  EXPECT_EQ(host, Host::holds);
  EXPECT_GE(now_ns(), before + 20'000'000);
  close(handle);
  EXPECT_EQ(peer->ack(reference).result, AckResult::released);
}

TEST_F(SharedCancel, LoseWakesWhoeverWaitsAndReturnsWhenNoneDoes) {
  for (int round = 0; round < 100; ++round) {
    auto peer = attach(gpu);
    const Handle handle = open(*pool, {.devices = {gpu}});
    const Reference reference = refer(handle);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        Host host{};
        EXPECT_EQ(peer->wait_for_host(reference, in_seconds(120), host), PeerStatus::closed);
      });
    }
    peer->lose();
    for (std::thread& thread : threads) thread.join();
    close(handle);
    EXPECT_EQ(pool->detach_peer(gpu), 1U);
  }
  expect_all_returned(*pool);
}

TEST_F(SharedCancel, AClosedPoolIsHeardOf) {
  auto peer = attach(gpu);
  const Handle handle = open(*pool, {.devices = {gpu}});
  const Reference reference = refer(handle);
  EXPECT_EQ(pool->close(true), Status::ok);
  EXPECT_EQ(host_of(*peer, reference), Host::cancelled);
  pool->dismiss_peers();
  Host host{};
  EXPECT_EQ(peer->host_of(reference, host), PeerStatus::closed);
}

}  // namespace
}  // namespace slabpool::test
