// The logic of watches alone: bounds and hysteresis, which changes are told, margins, and who is woken.
#include "slabpool/wait/pressure.hpp"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <limits>
#include <memory>
#include <string>
#include <thread>

namespace slabpool {
namespace {

constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

struct Watched {
  Watched(PressureGauge& of, std::uint64_t up, std::uint64_t down, int fd = -1) : gauge(of) {
    watch.up = up;
    watch.down = down;
    watch.fd = fd;
    gauge.add(watch);
  }
  // The pending changes, as "+" and "-".
  std::string told() {
    std::string all;
    PressureChange change;
    while (gauge.take(watch, change)) {
      all += change.high ? '+' : '-';
      used = change.used;
    }
    return all;
  }
  PressureGauge& gauge;
  PressureWatch watch;
  std::uint64_t used = 0;
};

PressureGauge::Margins use(PressureGauge& gauge, std::uint64_t bytes) {
  PressureGauge::Margins margins;
  gauge.look([&] { margins = gauge.update(bytes); });
  return margins;
}

bool readable(int fd) {
  pollfd one{fd, POLLIN, 0};
  return poll(&one, 1, 0) == 1;
}

TEST(PressureGauge, AWatchIsHighFromItsUpperBoundUntilBelowItsLowerOne) {
  PressureGauge gauge;
  Watched a(gauge, 90, 80);
  (void)use(gauge, 89);
  EXPECT_EQ(a.told(), "");
  (void)use(gauge, 90);
  EXPECT_EQ(a.told(), "+");
  EXPECT_EQ(a.used, 90U);
  EXPECT_TRUE(gauge.is_high());
  for (const std::uint64_t bytes : {80, 89, 90, 100, 80}) (void)use(gauge, bytes);
  EXPECT_EQ(a.told(), "");
  (void)use(gauge, 79);
  EXPECT_EQ(a.told(), "-");
  EXPECT_EQ(a.used, 79U);
  EXPECT_FALSE(gauge.is_high());
  for (const std::uint64_t bytes : {89, 0, 80}) (void)use(gauge, bytes);
  EXPECT_EQ(a.told(), "");
}

TEST(PressureGauge, WithoutHysteresisEachPassIsTold) {
  PressureGauge gauge;
  Watched a(gauge, 50, 50);
  for (const std::uint64_t bytes : {50, 49, 50}) {
    (void)use(gauge, bytes);
    EXPECT_EQ(a.told(), bytes == 50 ? "+" : "-");
  }
}

TEST(PressureGauge, WhatNobodyTookIsToldInOrderAndLeadsToTheSameEnd) {
  PressureGauge gauge;
  Watched a(gauge, 50, 40);
  const char* told[] = {"", "+", "+-", "+", "+-", "+"};
  for (int changes = 0; changes < 6; ++changes) {
    for (int i = 0; i < changes; ++i) (void)use(gauge, i % 2 == 0 ? 60 : 10);
    EXPECT_EQ(a.told(), told[changes]) << changes;
    (void)use(gauge, 0);
    (void)a.told();
  }
}

TEST(PressureGauge, MarginsAreThoseOfTheNearestBounds) {
  PressureGauge gauge;
  EXPECT_EQ(use(gauge, 10).rise, PressureGauge::kFar);
  Watched a(gauge, 50, 40);
  Watched b(gauge, 90, 70);
  auto margins = use(gauge, 10);
  EXPECT_EQ(margins.rise, 39);
  EXPECT_EQ(margins.fall, PressureGauge::kFar);
  margins = use(gauge, 60);
  EXPECT_EQ(margins.rise, 29);
  EXPECT_EQ(margins.fall, 20);
  margins = use(gauge, 100);
  EXPECT_EQ(margins.rise, PressureGauge::kFar);
  EXPECT_EQ(margins.fall, 30);
  gauge.remove(b.watch);
  EXPECT_EQ(use(gauge, 100).fall, 60);
  EXPECT_EQ(a.told(), "+");
}

TEST(PressureGauge, AnEventLoopIsWokenByChangesAndByTheEnd) {
  PressureGauge gauge;
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  Watched a(gauge, 50, 40, fd);
  (void)use(gauge, 49);
  EXPECT_FALSE(readable(fd));
  (void)use(gauge, 50);
  EXPECT_TRUE(readable(fd));
  eventfd_t count = 0;
  EXPECT_EQ(eventfd_read(fd, &count), 0);
  (void)use(gauge, 60);
  EXPECT_FALSE(readable(fd));
  gauge.close_all();
  EXPECT_TRUE(readable(fd));
  EXPECT_TRUE(a.watch.closed());
  EXPECT_EQ(a.told(), "+");  // a pending change is not lost
  close(fd);
}

TEST(PressureGauge, AThreadIsWokenByAChangeAndByTheEnd) {
  PressureGauge gauge;
  Watched a(gauge, 50, 40);
  EXPECT_FALSE(gauge.wait(a.watch, 0));
  std::thread thread([&] {
    EXPECT_TRUE(gauge.wait(a.watch, kForever));
    EXPECT_EQ(a.told(), "+");
    EXPECT_TRUE(gauge.wait(a.watch, kForever));
    EXPECT_TRUE(a.watch.closed());
  });
  (void)use(gauge, 50);
  gauge.remove(a.watch);
  thread.join();
  EXPECT_FALSE(gauge.any());
}

}  // namespace
}  // namespace slabpool
