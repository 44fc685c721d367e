// Copies with strides on both sides, marks, ordering of streams; after a failure no work is left on a stream.
#include <gtest/gtest.h>

#include <array>
#include <numeric>
#include <random>
#include <vector>

#include "slabpool/cuda/copies.hpp"
#include "support/standin.hpp"

namespace slabpool::test {
namespace {

using namespace slabpool::cuda;
using Strides = std::vector<std::int64_t>;

DevicePointer address(const void* host) { return reinterpret_cast<DevicePointer>(host); }

class CopiesTest : public StandinTest {
 protected:
  static constexpr std::size_t kBytes = 4096;

  void SetUp() override {
    StandinTest::SetUp();
    const InContext context(*driver, 0);
    ASSERT_EQ(driver->cuMemAlloc(&device, kBytes), kSuccess);
    ASSERT_EQ(driver->cuStreamCreate(&stream, kStreamNonBlocking), kSuccess);
    ASSERT_EQ(driver->cuStreamCreate(&other, kStreamNonBlocking), kSuccess);
  }
  void TearDown() override {
    {
      const InContext context(*driver, 0);
      EXPECT_EQ(driver->cuStreamDestroy(stream), kSuccess);
      EXPECT_EQ(driver->cuStreamDestroy(other), kSuccess);
      EXPECT_EQ(driver->cuMemFree(device), kSuccess);
    }
    StandinTest::TearDown();
  }
  // All bytes of the device's memory, in order.
  CopySpec flat(DevicePointer to, DevicePointer from, std::int64_t count = kBytes) {
    static constexpr std::int64_t kOne = 1;
    length = count;
    CopySpec spec;
    spec.to = to;
    spec.from = from;
    spec.itemsize = 1;
    spec.shape = {&length, 1};
    spec.to_strides = spec.from_strides = {&kOne, 1};
    return spec;
  }
  unsigned char at(std::size_t offset) {
    unsigned char byte = 0;
    EXPECT_NE(standin_peek(device + offset, &byte, 1), 0);
    return byte;
  }

  std::int64_t length = 0;
  DevicePointer device = 0;
  Stream stream = nullptr;
  Stream other = nullptr;
};

// Every element of a random shape with random strides on both sides is copied to its place, and no other byte changes.
TEST_F(CopiesTest, AnyStridesOnBothSides) {
  std::mt19937 random(6);
  const auto pick = [&](int from, int to) { return std::uniform_int_distribution(from, to)(random); };
  for (int round = 0; round < 300; ++round) {
    const std::size_t itemsize = static_cast<std::size_t>(pick(1, 3));
    Strides shape, sides[2];
    for (int i = pick(0, 4); i > 0; --i) shape.push_back(pick(round % 20 == 0 ? 0 : 1, 4));
    // Each side has its own order of the axes, with holes, forwards or backwards.
    std::int64_t first[2] = {0, 0}, extent[2];
    for (int side = 0; side < 2; ++side) {
      std::vector<std::size_t> order(shape.size());
      std::iota(order.begin(), order.end(), 0u);
      if (pick(0, 1) == 0) std::shuffle(order.begin(), order.end(), random);
      Strides strides(shape.size());
      std::int64_t step = static_cast<std::int64_t>(itemsize);
      for (const std::size_t axis : order) {
        if (pick(0, 3) == 0) step += pick(0, 2);
        strides[axis] = step;
        step *= std::max<std::int64_t>(shape[axis], 1);
        if (pick(0, 4) == 0 && shape[axis] > 0) {
          first[side] += strides[axis] * (shape[axis] - 1);
          strides[axis] = -strides[axis];
        }
      }
      extent[side] = step;
      sides[side] = strides;
    }
    ASSERT_LE(extent[0], static_cast<std::int64_t>(kBytes));
    std::vector<unsigned char> source(static_cast<std::size_t>(extent[1])), target(kBytes, 0),
        expected(kBytes, 0);
    for (auto& byte : source) byte = static_cast<unsigned char>(pick(1, 255));
    ASSERT_EQ(repeat(0, kLegacyStream, device, kBytes, 0, 0), kSuccess);

    std::size_t count = 1;
    for (const std::int64_t dim : shape) count *= static_cast<std::size_t>(dim);
    for (std::size_t n = 0; n < count; ++n) {
      std::int64_t to = first[0], from = first[1];
      std::size_t rest = n;
      for (std::size_t i = shape.size(); i-- > 0;) {
        const auto index = static_cast<std::int64_t>(rest % static_cast<std::size_t>(shape[i]));
        rest /= static_cast<std::size_t>(shape[i]);
        to += index * sides[0][i];
        from += index * sides[1][i];
      }
      for (std::size_t byte = 0; byte < itemsize; ++byte)
        expected[static_cast<std::size_t>(to) + byte] = source[static_cast<std::size_t>(from) + byte];
    }

    CopySpec spec;
    spec.to = device + static_cast<DevicePointer>(first[0]);
    spec.from = address(source.data() + first[1]);
    spec.itemsize = itemsize;
    spec.shape = shape;
    spec.to_strides = sides[0];
    spec.from_strides = sides[1];
    ASSERT_EQ(copy(0, kLegacyStream, spec), kSuccess);
    ASSERT_NE(standin_peek(device, target.data(), kBytes), 0);
    ASSERT_EQ(target, expected) << "round " << round;
  }
}

TEST_F(CopiesTest, WhatLiesSideBySideIsOneCall) {
  const auto calls = [&](Strides shape, Strides to, Strides from) {
    std::vector<unsigned char> source(kBytes);
    CopySpec spec;
    spec.to = device;
    spec.from = address(source.data());
    spec.itemsize = 4;
    spec.shape = shape;
    spec.to_strides = to;
    spec.from_strides = from;
    const std::uint64_t before = standin_calls("cuMemcpyAsync");
    EXPECT_EQ(copy(0, kLegacyStream, spec), kSuccess);
    return standin_calls("cuMemcpyAsync") - before;
  };
  EXPECT_EQ(calls({}, {}, {}), 1u);
  EXPECT_EQ(calls({0, 3}, {12, 4}, {12, 4}), 0u);
  EXPECT_EQ(calls({2, 3, 4}, {48, 16, 4}, {48, 16, 4}), 1u);
  EXPECT_EQ(calls({2, 3, 4}, {4, 8, 24}, {4, 8, 24}), 1u);  // both in Fortran order
  EXPECT_EQ(calls({2, 1, 4}, {16, 0, 4}, {16, 999, 4}),
            1u);                                    // the stride of an axis of length 1 does not matter
  EXPECT_EQ(calls({5, 4}, {16, 4}, {64, 4}), 5u);   // rows of a wider array
  EXPECT_EQ(calls({5, 4}, {16, 4}, {4, 20}), 20u);  // one side transposed: one call an element
}

TEST_F(CopiesTest, AMarkIsPassedWhenTheCopyIsDone) {
  std::vector<unsigned char> source(kBytes, 7);
  Event mark = nullptr;
  standin_hold(0, stream);
  ASSERT_EQ(copy(0, stream, flat(device, address(source.data())), &mark), kSuccess);
  ASSERT_NE(mark, nullptr);
  EXPECT_FALSE(passed(0, mark));
  EXPECT_NE(at(kBytes - 1), 7);
  standin_release(0, stream);
  standin_settle();
  EXPECT_TRUE(passed(0, mark));
  EXPECT_EQ(at(kBytes - 1), 7);
  forget(0, mark);
}

TEST_F(CopiesTest, ALostDevicePassesEveryMark) {
  std::vector<unsigned char> source(kBytes, 7);
  Event mark = nullptr;
  standin_hold(0, stream);
  ASSERT_EQ(copy(0, stream, flat(device, address(source.data())), &mark), kSuccess);
  standin_lose_device(0, 719);
  EXPECT_TRUE(passed(0, mark));
  Event none = nullptr;
  EXPECT_EQ(copy(0, stream, flat(device, address(source.data())), &none), 719);
  EXPECT_EQ(none, nullptr);
  bool lost = false;
  EXPECT_NE(describe(719, lost).find("CUDA_ERROR_LAUNCH_FAILED"), std::string::npos);
  EXPECT_TRUE(lost);
  standin_lose_device(0, 0);
  standin_release(0, stream);
  forget(0, mark);
}

// Whichever call is refused, the earlier copies are finished when copy() returns, and no event is left.
TEST_F(CopiesTest, AFailureLeavesNothingUnderWay) {
  const Strides shape{4, 2}, to{16, 4}, from{32, 4};
  std::vector<unsigned char> source(kBytes, 7);
  CopySpec spec;
  spec.to = device;
  spec.from = address(source.data());
  spec.itemsize = 4;
  spec.shape = shape;
  spec.to_strides = to;
  spec.from_strides = from;
  bool failed = true;
  for (int nth = 1; failed; ++nth) {
    ASSERT_LT(nth, 100);
    standin_fail("*", nth, kInvalidValue, 1);
    Event mark = nullptr;
    const Result result = copy(0, stream, spec, &mark);
    standin_clear_faults();
    failed = result != kSuccess;
    if (failed) {
      EXPECT_EQ(mark, nullptr);
      EXPECT_EQ(std::string(standin_leaks()).find("cuEvent"), std::string::npos) << nth;
    } else {
      standin_settle();
      EXPECT_TRUE(passed(0, mark));
      forget(0, mark);
    }
    EXPECT_EQ(standin_queued(0, stream), 0u) << nth;
  }
  EXPECT_EQ(at(0), 7);
}

TEST_F(CopiesTest, RepeatsAPattern) {
  const unsigned char pattern[] = {1, 2, 3};
  ASSERT_EQ(copy(0, kLegacyStream, flat(device, address(pattern), 3)), kSuccess);
  ASSERT_EQ(repeat(0, kLegacyStream, device, 3000, 3), kSuccess);
  for (std::size_t i = 0; i < 3000; ++i) ASSERT_EQ(at(i), pattern[i % 3]) << i;
  ASSERT_EQ(repeat(0, kLegacyStream, device, 3, 3), kSuccess);
  ASSERT_EQ(repeat(0, kLegacyStream, device, 100, 0, 9), kSuccess);
  EXPECT_EQ(at(99), 9);
  EXPECT_EQ(at(100), pattern[100 % 3]);
}

TEST_F(CopiesTest, OneStreamWaitsForAnother) {
  constexpr std::int64_t kHalf = kBytes / 2;
  const std::vector<unsigned char> seven(kHalf, 7);
  Event marks[2] = {};
  standin_hold(0, stream);
  ASSERT_EQ(copy(0, stream, flat(device, address(seven.data()), kHalf), &marks[0]), kSuccess);
  ASSERT_EQ(order(0, stream, other), kSuccess);
  ASSERT_EQ(copy(0, other, flat(device + kHalf, device, kHalf), &marks[1]), kSuccess);
  standin_settle();
  EXPECT_FALSE(passed(0, marks[1]));
  EXPECT_NE(at(kBytes - 1), 7);
  standin_release(0, stream);
  standin_settle();
  EXPECT_TRUE(passed(0, marks[1]));
  EXPECT_EQ(at(kBytes - 1), 7);
  for (const Event mark : marks) forget(0, mark);
  EXPECT_EQ(order(0, stream, stream), kSuccess);  // without a call of the driver
}

// A stream in the context of a device other than the array's.
TEST_F(CopiesTest, StreamsOfAnotherContext) {
  Stream far = nullptr;
  {
    const InContext context(*driver, 1);
    ASSERT_EQ(driver->cuStreamCreate(&far, kStreamNonBlocking), kSuccess);
  }
  EXPECT_EQ(order(0, far, stream), kSuccess);
  EXPECT_EQ(order(0, stream, far), kSuccess);
  standin_settle();
  const InContext context(*driver, 1);
  EXPECT_EQ(driver->cuStreamDestroy(far), kSuccess);
}

TEST_F(CopiesTest, ACaptureIsRefusedBeforeAnythingIsQueued) {
  std::vector<unsigned char> source(kBytes, 7);
  Event mark = nullptr;
  standin_capture(0, stream, 1);
  EXPECT_EQ(copy(0, stream, flat(device, address(source.data())), &mark), kCaptureUnsupported);
  EXPECT_EQ(mark, nullptr);
  standin_capture(0, stream, 0);
  EXPECT_EQ(standin_queued(0, stream), 0u);
}

}  // namespace
}  // namespace slabpool::test
