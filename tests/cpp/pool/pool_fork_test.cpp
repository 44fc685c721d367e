// A child of fork() may read the views it inherited. Its calls are refused, and neither they nor its
// exit change anything in the parent's pool.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "slabpool/pool/pool.hpp"
#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kept;
using test::kMiB;
using test::open;

// Runs `body` in a child process; true if `body` returned true there.
bool in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

class PoolFork : public test::PoolFixture {};

TEST_F(PoolFork, EveryCallIsRefusedInTheChild) {
  const Handle request = open(*pool, {.devices = {0}});
  Block* block = take(kept(1000, request));
  EXPECT_TRUE(pool->usable_here());
  EXPECT_TRUE(in_child([&] {
    Handle handle;
    return !pool->usable_here() && pool->allocate(bytes(100)).status == Status::forked &&
           pool->allocate(kept(100, request)).status == Status::forked &&
           pool->allocate_until(bytes(100), test::in_seconds(10)).status == Status::forked &&
           pool->open(test::Opening{}.spec(), handle) == Status::forked &&
           pool->ack(request, 0).status == Status::forked &&
           pool->ack_id("sa", 0, {}).status == Status::forked &&
           pool->add_device(request, 1) == Status::forked && pool->device_lost(0) == 0 &&
           pool->open_view(*block, block->serial(), request) == Status::forked && pool->trim() == 0 &&
           pool->close(true) == Status::forked && !pool->wait_released(request, test::in_seconds(10));
  }));
  EXPECT_TRUE(pool->is_open(request));
  EXPECT_EQ(info(request).pending, std::vector<std::uint32_t>{0});
  close(request);
  EXPECT_EQ(ack(request, 0), AckResult::released);
  expect_all_returned(*pool);
}

TEST_F(PoolFork, TheChildReadsWhatItInherited) {
  const Handle request = open(*pool, {});
  Block* viewed = take(bytes(100'000, request));
  Block* alone = take(bytes(300));
  std::memset(viewed->data, 0x5a, 100'000);
  std::memset(alone->data, 0x5b, 300);
  EXPECT_TRUE(in_child([&] {
    const bool same =
        test::all_bytes(viewed->data, 0x5a, 100'000) && test::all_bytes(alone->data, 0x5b, 300);
    // The child's garbage collection: views and requests that die there.
    pool->drop_view(*viewed);
    pool->drop_view(*alone);
    pool->close_request(request, false);
    return same && test::all_bytes(viewed->data, 0x5a, 100'000);
  }));
  EXPECT_EQ(pool->stats().live, viewed->bytes + alone->bytes);
  EXPECT_TRUE(pool->is_open(request));
  EXPECT_TRUE(test::all_bytes(viewed->data, 0x5a, 100'000));
  pool->drop_view(*viewed);
  pool->drop_view(*alone);
  close(request);
  expect_all_returned(*pool);
}

TEST_F(PoolFork, TheChildMayMakeItsOwnPool) {
  Block* block = take(bytes(1000));  // this thread has a cache of the parent's pool
  EXPECT_TRUE(in_child([&] {
    Error error;
    PoolOptions options;
    options.capacity = kMiB;
    const auto own = Pool::create(options, error);
    if (own == nullptr) return false;
    Block* mine = own->allocate(bytes(1000)).block;
    if (mine == nullptr || own->find(block->data) != nullptr) return false;
    own->drop_view(*mine);
    // So may a thread of the child; its end must not touch the parent's pool.
    std::thread([&] { own->drop_view(*own->allocate(bytes(50'000)).block); }).join();
    return test::held(own->stats()) == 0;
  }));
  pool->drop_view(*block);
  expect_all_returned(*pool);
}

TEST_F(PoolFork, AGrandchildIsRefusedToo) {
  EXPECT_TRUE(in_child(
      [&] { return in_child([&] { return pool->allocate(bytes(100)).status == Status::forked; }); }));
}

TEST_F(PoolFork, TheChildMayEndThePool) {
  EXPECT_TRUE(in_child([&] {
    pool.reset();
    return true;
  }));
  pool->drop_view(*take(bytes(1000)));
  expect_all_returned(*pool);
}

// fork() while other threads use the pool: no lock that the child needs is held.
TEST_F(PoolFork, AtAnyMoment) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      while (!stop.load()) {
        const Handle request = open(*pool, {.devices = {0}});
        for (const std::uint64_t size : {100, 5000, 400'000}) (void)pool->allocate(kept(size, request));
        pool->close_request(request, false);
        (void)pool->ack(request, 0);
        (void)pool->trim();
        std::thread([&] { pool->drop_view(*pool->allocate(bytes(100)).block); }).join();
      }
    });
  }
  for (int i = 0; i < test::rounds(200); ++i) {
    EXPECT_TRUE(in_child([&] {
      // Calls of a child that does not know it is one. They need no lock that another thread may have
      // held.
      return pool->allocate(bytes(100)).status == Status::forked && pool->trim() == 0 &&
             pool->close(false) == Status::forked;
    }));
    if (HasFailure()) break;
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
