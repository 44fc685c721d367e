// Names of devices come and go: numbers go from names that nothing waits for to new ones, and no ack with them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "support/pool_help.hpp"
#include "support/scale.hpp"

namespace slabpool {
namespace {

using test::expect_all_returned;
using test::open;
using test::rounds;

class PoolNames : public test::PoolFixture {
 protected:
  std::uint32_t hold(const std::string& name) { return pool->devices().hold(name).value(); }
  std::vector<std::uint32_t> retire() {
    std::vector<std::uint32_t> retired;
    pool->retire_devices(retired);
    std::sort(retired.begin(), retired.end());
    return retired;
  }
  // A request on devices of these names, whose numbers only the request keeps from being taken back.
  Handle open_on(const std::vector<std::string>& names, std::optional<Handle> parent = {}) {
    std::vector<std::uint32_t> numbers;
    for (const std::string& name : names) numbers.push_back(hold(name));
    const Handle handle = open(*pool, {.devices = numbers, .parent = parent});
    for (const std::uint32_t number : numbers) pool->devices().drop(number);
    return handle;
  }
};

TEST_F(PoolNames, ANumberStaysWhileARequestWaitsForIt) {
  const Handle first = open_on({"sa", "sb"});
  const Handle child = open_on({"sb"}, first);
  EXPECT_TRUE(retire().empty());
  close(child);
  EXPECT_EQ(ack(child, 1), AckResult::released);
  close(first);
  EXPECT_EQ(ack(first, 0), AckResult::pending);
  const Handle other = open_on({"sc"});
  EXPECT_EQ(retire(), std::vector<std::uint32_t>{0}) << "a has left the only request that ever named it";
  EXPECT_EQ(pool->devices().name(1), "sb");
  EXPECT_EQ(ack(first, 1), AckResult::released);
  EXPECT_EQ(retire(), std::vector<std::uint32_t>{1});
  pool->device_lost(2);
  close(other);
  expect_all_returned(*pool);
}

TEST_F(PoolNames, NumbersThatALiveRequestHasNamedGoLast) {
  const Handle longest = open_on({"sa", "sb"});
  const Handle shorter = open_on({"sc"});
  EXPECT_EQ(ack(longest, 0), AckResult::pending);
  close(shorter);
  EXPECT_EQ(ack(shorter, 2), AckResult::released);
  EXPECT_EQ(retire(), std::vector<std::uint32_t>{2});
  EXPECT_EQ(ack(longest, 0), AckResult::duplicate) << "a has its number";
  EXPECT_EQ(retire(), std::vector<std::uint32_t>{0});
  EXPECT_EQ(hold("sd"), 0U);
  EXPECT_EQ(pool->ack(longest, 0).status, Status::unknown_device) << "d was never named for it";
  EXPECT_EQ(pool->ack_retired(longest), AckResult::duplicate) << "a was";
  EXPECT_EQ(pool->add_device(longest, 0), Status::ok);
  pool->devices().drop(0);
  EXPECT_TRUE(retire().empty());
  close(longest);
  EXPECT_EQ(ack(longest, 1), AckResult::pending);
  EXPECT_EQ(ack(longest, 0), AckResult::released);
  EXPECT_EQ(pool->ack_retired(longest), AckResult::late);
  expect_all_returned(*pool);
}

TEST_F(PoolNames, BeyondTheFirstWordToo) {
  std::vector<std::string> names;
  for (int i = 0; i < 100; ++i) names.push_back("s" + std::to_string(i));
  const Handle request = open_on(names);
  for (const std::uint32_t gone : {15U, 16U, 63U, 99U})
    EXPECT_EQ(ack(request, gone), AckResult::pending);
  EXPECT_EQ(retire(), (std::vector<std::uint32_t>{15, 16, 63, 99}));
  for (const std::uint32_t gone : {15U, 16U, 63U, 99U})
    EXPECT_EQ(pool->ack(request, gone).status, Status::unknown_device);
  EXPECT_EQ(ack(request, 17), AckResult::pending);
  EXPECT_EQ(ack(request, 17), AckResult::duplicate);
  pool->discard(request);
  EXPECT_EQ(retire().size(), 96U);
  expect_all_returned(*pool);
}

// Threads open requests on new names and acknowledge them, with fewer numbers than names. Each ack counts for its own
// request: it finds its bit set, and the request waits for no other device.
TEST_F(PoolNames, SweepsRaceWithOpeningAndAcks) {
  constexpr int kThreads = 4;
  for (std::uint32_t i = 0; i < kMaxDevices - kThreads - 2; ++i)
    ASSERT_TRUE(pool->devices().add("g" + std::to_string(i)));
  std::atomic<std::uint64_t> sweeps{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < rounds(400); ++i) {
        const std::string name = "s" + std::to_string(t) + "." + std::to_string(i);
        std::optional<std::uint32_t> number;
        while (!(number = pool->devices().hold(name))) {
          std::vector<std::uint32_t> retired;
          pool->retire_devices(retired);
          ++sweeps;
        }
        const Handle request = open(*pool, {.devices = {*number}});
        pool->devices().drop(*number);
        EXPECT_EQ(pool->devices().name(*number), name);
        pool->close_request(request, false);
        EXPECT_EQ(pool->devices().name(*number), name) << "it still waits";
        EXPECT_EQ(pool->ack(request, *number).result, AckResult::released);
        EXPECT_EQ(pool->ack(request, *number).result, AckResult::late);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(sweeps, 0U);
  EXPECT_EQ(pool->stats().acks,
            static_cast<std::uint64_t>(kThreads) * static_cast<std::uint64_t>(rounds(400)));
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
