// Wake-ups through a file descriptor, for event loops: one comes whenever memory returned or a request
// ended, none is lost, and a full pipe delays no thread.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <random>
#include <thread>

#include "slabpool/pool/pool.hpp"
#include "support/meeting.hpp"
#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::dawdle;
using test::expect_all_returned;
using test::kMiB;
using test::make_pool;
using test::open;
using test::rounds;

class Wakeup : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(pipe(ends), 0);
    ASSERT_EQ(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    ASSERT_EQ(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    pool->add_wakeup(ends[1]);
  }
  void TearDown() override {
    close(ends[0]);
    close(ends[1]);
  }
  // Waits until the descriptor is readable, and reads it.
  bool woken(int milliseconds) {
    pollfd fd{ends[0], POLLIN, 0};
    if (poll(&fd, 1, milliseconds) != 1) return false;
    char buffer[4096];
    while (read(ends[0], buffer, sizeof buffer) > 0) {
    }
    return true;
  }

  std::unique_ptr<Pool> pool = make_pool(kMiB);
  int ends[2]{};
};

TEST_F(Wakeup, ComesWhenMemoryReturnsAndWhenRequestsEnd) {
  EXPECT_FALSE(woken(0));
  Block* block = pool->allocate(bytes(1000)).block;
  EXPECT_FALSE(woken(0));
  pool->drop_view(*block);
  EXPECT_TRUE(woken(0));
  const Handle request = open(*pool, {.devices = {0}});
  (void)pool->ack(request, 0);
  EXPECT_FALSE(woken(0));
  pool->close_request(request, false);
  EXPECT_TRUE(woken(0));
  pool->remove_wakeup(ends[1]);
  pool->drop_view(*pool->allocate(bytes(1000)).block);
  EXPECT_FALSE(woken(0));
}

TEST_F(Wakeup, AFullPipeDelaysNoThread) {
  for (int i = 0; i < 20'000; ++i) pool->drop_view(*pool->allocate(bytes(100)).block);
  EXPECT_TRUE(woken(0));
  pool->remove_wakeup(ends[1]);
}

TEST_F(Wakeup, NoneIsLost) {
  const int total = rounds(20'000);
  Block* current = pool->allocate(bytes(900'000)).block;
  test::Meeting start(2);
  std::thread other([&] {
    std::mt19937_64 random(1);
    for (int round = 0; round < total; ++round) {
      start.arrive();
      dawdle(random);
      pool->drop_view(*current);
      start.arrive();
    }
  });
  for (int round = 0; round < total; ++round) {
    start.arrive();
    Allocation made;
    while ((made = pool->allocate(bytes(900'000))).block == nullptr) {
      if (!woken(120'000)) {
        ADD_FAILURE() << "round " << round;
        std::abort();  // the other thread waits for this one
      }
    }
    start.arrive();
    current = made.block;
  }
  other.join();
  pool->drop_view(*current);
  pool->remove_wakeup(ends[1]);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
