// The event log: in order, the newest entries, and none torn, with any number of writers and readers.
#include "slabpool/observe/event_log.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "support/scale.hpp"

namespace slabpool {
namespace {

TEST(EventLog, KeepsWhatHappenedInOrder) {
  EventLog log(8);
  EXPECT_TRUE(log.read().empty());
  log.add(EventKind::open, 1, kNoDevice, 0);
  log.add(EventKind::allocate, 1, kNoDevice, 4096);
  log.add(EventKind::ack, 1, 3, 0);
  const std::vector<Event> events = log.read();
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].kind, EventKind::open);
  EXPECT_EQ(events[1].kind, EventKind::allocate);
  EXPECT_EQ(events[1].bytes, 4096U);
  EXPECT_EQ(events[1].device, kNoDevice);
  EXPECT_EQ(events[2].kind, EventKind::ack);
  EXPECT_EQ(events[2].device, 3U);
  EXPECT_EQ(events[2].generation, 1U);
  EXPECT_GT(events[0].time_ns, 0);
  EXPECT_LE(events[0].time_ns, events[1].time_ns);
  EXPECT_LE(events[1].time_ns, events[2].time_ns);
  EXPECT_EQ(events[0].thread, events[2].thread);
}

TEST(EventLog, OverwritesTheOldest) {
  EventLog log(5);
  for (std::uint64_t i = 0; i < 23; ++i) log.add(EventKind::free, i, kNoDevice, i);
  const std::vector<Event> events = log.read();
  ASSERT_EQ(events.size(), 5U);
  for (std::uint64_t i = 0; i < 5; ++i) EXPECT_EQ(events[i].generation, 18 + i);
}

TEST(EventLog, ARingOfOneHoldsTheLast) {
  EventLog log(1);
  for (std::uint64_t i = 0; i < 3; ++i) log.add(EventKind::close, i, kNoDevice, 0);
  ASSERT_EQ(log.read().size(), 1U);
  EXPECT_EQ(log.read()[0].generation, 2U);
}

TEST(EventLog, NamesTheThread) {
  EventLog log(4);
  log.add(EventKind::open, 1, kNoDevice, 0);
  std::thread([&] { log.add(EventKind::open, 2, kNoDevice, 0); }).join();
  const std::vector<Event> events = log.read();
  ASSERT_EQ(events.size(), 2U);
  EXPECT_NE(events[0].thread, events[1].thread);
}

// A small ring, so that writers overtake each other all the time. All fields of an entry are made from
// one number, so an entry mixed from two writers would show.
TEST(EventLog, NoEntryIsTorn) {
  EventLog log(16);
  std::atomic<bool> stop{false};
  std::vector<std::thread> writers;
  for (std::uint64_t t = 1; t <= 3; ++t) {
    writers.emplace_back([&, t] {
      for (std::uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
        const std::uint64_t n = t << 20 | (i & 0xfffff);
        log.add(EventKind::ack, n, static_cast<std::uint32_t>(n), n * 3);
      }
    });
  }
  while (log.read().empty()) std::this_thread::yield();  // until a writer runs
  std::size_t seen = 0;
  for (int i = 0; i < test::rounds(20'000); ++i) {
    const std::vector<Event> events = log.read();
    EXPECT_LE(events.size(), 16U);
    for (const Event& event : events) {
      ++seen;
      ASSERT_EQ(event.device, static_cast<std::uint32_t>(event.generation));
      ASSERT_EQ(event.bytes, event.generation * 3);
      ASSERT_EQ(event.kind, EventKind::ack);
    }
  }
  stop.store(true);
  for (std::thread& writer : writers) writer.join();
  EXPECT_GT(seen, 0U);
}

}  // namespace
}  // namespace slabpool
