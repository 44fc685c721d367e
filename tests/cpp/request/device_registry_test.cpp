// Device names: each has one number for every caller, until it is taken back.
#include "slabpool/request/device_registry.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace slabpool {
namespace {

TEST(DeviceRegistry, NumbersInOrder) {
  DeviceRegistry devices;
  EXPECT_EQ(devices.add("sgpu0"), 0U);
  EXPECT_EQ(devices.add("sgpu1"), 1U);
  EXPECT_EQ(devices.add("sgpu0"), 0U);
  EXPECT_EQ(devices.find("sgpu1"), 1U);
  EXPECT_EQ(devices.find("sgpu2"), std::nullopt);
  EXPECT_EQ(devices.size(), 2U);
  EXPECT_EQ(devices.name(1), "sgpu1");
  EXPECT_EQ(devices.name(2), "");
}

TEST(DeviceRegistry, KindsAndBytesKeepNamesApart) {
  DeviceRegistry devices;
  EXPECT_NE(devices.add("s0"), devices.add("i0"));
  const std::string with_zero("sa\0b", 4);
  EXPECT_NE(devices.add(with_zero), devices.add("sa"));
  EXPECT_EQ(devices.name(*devices.find(with_zero)), with_zero);
}

TEST(DeviceRegistry, TakesExactlyAsManyAsItPromises) {
  DeviceRegistry devices;
  for (std::uint32_t i = 0; i < kMaxDevices; ++i) EXPECT_EQ(devices.add("i" + std::to_string(i)), i);
  EXPECT_EQ(devices.add("one more"), std::nullopt);
  EXPECT_EQ(devices.add("i77"), 77U) << "known names are still found";
  EXPECT_EQ(devices.size(), kMaxDevices);
}

TEST(DeviceRegistry, RemembersHeartbeats) {
  DeviceRegistry devices;
  EXPECT_EQ(devices.last_heard(5), 0);
  devices.heard(5, 123);
  EXPECT_EQ(devices.last_heard(5), 123);
  EXPECT_EQ(devices.last_heard(4), 0);
}

std::vector<std::uint32_t> retire(DeviceRegistry& devices,
                                  const std::vector<std::uint32_t>& in_use = {}) {
  std::vector<std::uint32_t> retired;
  devices.retire(
      retired,
      [&](const HolderMarks&, HolderMarks& marks) {
        for (const std::uint32_t device : in_use) marks.add(device_bit(device));
      },
      [](const HolderMarks&) {});
  return retired;
}

TEST(DeviceRegistry, NumbersThatAreHeldInUseOrForGoodStay) {
  DeviceRegistry devices;
  const std::uint32_t good = devices.add("sgood").value(), held = devices.hold("sheld").value(),
                      used = devices.hold("sused").value(), idle = devices.hold("sidle").value();
  devices.hold(held);
  for (const std::uint32_t device : {held, used, idle}) devices.drop(device);
  devices.heard(idle, 77);
  EXPECT_EQ(retire(devices, {used}), std::vector{idle});
  EXPECT_EQ(devices.find("sidle"), std::nullopt);
  EXPECT_EQ(devices.name(idle), "");
  EXPECT_EQ(devices.last_heard(idle), 0) << "not a sign of life of the next name";
  EXPECT_EQ(devices.size(), 4U);
  EXPECT_EQ(devices.room(), kMaxDevices - 3);
  EXPECT_EQ(devices.find("sgood"), good);
  devices.drop(held);
  EXPECT_EQ(retire(devices), (std::vector{used, held}));
  EXPECT_EQ(devices.hold("snew"), held) << "the smallest number first";
  EXPECT_EQ(devices.name(held), "snew");
}

TEST(DeviceRegistry, ManyMoreNamesThanNumbersInTurn) {
  DeviceRegistry devices;
  std::uint32_t sweeps = 0;
  for (std::uint32_t i = 0; i < 3 * kMaxDevices; ++i) {
    const std::string name = "s" + std::to_string(i);
    std::optional<std::uint32_t> number = devices.hold(name);
    if (!number) {
      ++sweeps;
      EXPECT_EQ(retire(devices).size(), kMaxDevices);
      number = devices.hold(name);
    }
    ASSERT_TRUE(number.has_value());
    EXPECT_EQ(devices.name(*number), name);
    devices.drop(*number);
  }
  EXPECT_EQ(sweeps, 2U);
}

TEST(DeviceRegistry, ThreadsAgreeOnNumbers) {
  DeviceRegistry devices;
  constexpr std::uint32_t kNames = 300;
  std::vector<std::vector<std::uint32_t>> seen(3);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < seen.size(); ++t) {
    threads.emplace_back([&devices, &mine = seen[t]] {
      for (std::uint32_t i = 0; i < kNames; ++i) mine.push_back(devices.add(std::to_string(i)).value());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(seen[0], seen[1]);
  EXPECT_EQ(seen[0], seen[2]);
  EXPECT_EQ(devices.size(), kNames);
}

}  // namespace
}  // namespace slabpool
