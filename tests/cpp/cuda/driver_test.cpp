// The driver's table, contexts, descriptions of devices and of errors. Cases without a driver, or with an incomplete one,
// are in tests/cuda/test_available.py, because each needs a process of its own.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "slabpool/cuda/device_info.hpp"
#include "slabpool/cuda/site.hpp"
#include "support/standin.hpp"

namespace slabpool::test {
namespace {

using namespace slabpool::cuda;

class DriverTest : public StandinTest {};

TEST_F(DriverTest, IsThereOnceForAll) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this] { EXPECT_EQ(Driver::get(), driver); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(driver->version(), 12040);
  EXPECT_EQ(driver->devices(), 2);
  EXPECT_EQ(driver->library(), SLABPOOL_STANDIN_CUDA);
  EXPECT_TRUE(driver->maps_memory());
#define SLABPOOL_TEST_THERE(name, ...) EXPECT_NE(driver->name, nullptr) << #name;
  SLABPOOL_CUDA_FUNCTIONS(SLABPOOL_TEST_THERE)
#undef SLABPOOL_TEST_THERE
}

TEST_F(DriverTest, ContextsAreRetainedOnce) {
  Result result = kUnknown;
  const Context first = driver->context(0, result);
  EXPECT_EQ(result, kSuccess);
  const Context second = driver->context(1, result);
  EXPECT_NE(first, second);
  standin_reset();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this, first] {
      Result answer = kUnknown;
      EXPECT_EQ(driver->context(0, answer), first);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(standin_calls("cuDevicePrimaryCtxRetain"), 0u);
  EXPECT_EQ(driver->context(2, result), nullptr);
  EXPECT_EQ(result, kInvalidDevice);
}

TEST_F(DriverTest, WhatWasCurrentStaysSo) {
  Result result = kUnknown;
  const Context first = driver->context(0, result);
  const Context second = driver->context(1, result);
  Context now = nullptr;
  {
    const CurrentContext current(*driver, first);
    EXPECT_TRUE(current.ok());
    ASSERT_EQ(driver->cuCtxGetCurrent(&now), kSuccess);
    EXPECT_EQ(now, first);
    {
      const CurrentContext same(*driver, first);
      EXPECT_EQ(standin_context_depth(), 1u);
      const CurrentContext inner(*driver, second);
      EXPECT_EQ(standin_context_depth(), 2u);
      ASSERT_EQ(driver->cuCtxGetCurrent(&now), kSuccess);
      EXPECT_EQ(now, second);
    }
    ASSERT_EQ(driver->cuCtxGetCurrent(&now), kSuccess);
    EXPECT_EQ(now, first);
  }
  ASSERT_EQ(driver->cuCtxGetCurrent(&now), kSuccess);
  EXPECT_EQ(now, nullptr);
  const CurrentContext none(*driver, nullptr);
  EXPECT_FALSE(none.ok());
  standin_fail("cuCtxPushCurrent", 1, kInvalidContext, 1);
  const CurrentContext refused(*driver, first);
  EXPECT_FALSE(refused.ok());
}

TEST_F(DriverTest, Errors) {
  EXPECT_EQ(driver->describe(kOutOfMemory), "CUDA_ERROR_OUT_OF_MEMORY 2 (out of memory)");
  EXPECT_EQ(driver->describe(12345), "CUDA error 12345 (unknown to this driver)");
  for (const Result sticky : {214, 700, 719, 999}) EXPECT_TRUE(Driver::is_sticky(sticky)) << sticky;
  for (const Result passing : {kSuccess, kInvalidValue, kOutOfMemory, kNotReady, kNotSupported})
    EXPECT_FALSE(Driver::is_sticky(passing)) << passing;
}

TEST_F(DriverTest, AForksChildHasNone) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    Error error;
    const bool none = Driver::get(error) == nullptr && error.text.find("forked") != std::string::npos;
    _exit(none && standin_calls_after_fork() == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(DriverTest, Devices) {
  standin_set_attribute(1, kAttributePciDomain, 0x12);
  standin_set_attribute(1, kAttributePciBus, 0xab);
  standin_set_attribute(1, kAttributePciDevice, 0x1f);
  standin_set_attribute(1, kAttributeHostNumaId, 3);
  standin_set_attribute(1, kAttributeVirtualMemory, 0);
  DeviceInfo info;
  Error error;
  ASSERT_TRUE(describe_device(*driver, 1, info, error)) << error.text;
  EXPECT_EQ(info.name, "slabpool stand-in 1");
  EXPECT_EQ(info.total_bytes, std::uint64_t{1} << 30);
  EXPECT_EQ(info.pci, "0012:ab:1f.0");
  EXPECT_EQ(info.numa_node, 3);
  EXPECT_FALSE(info.virtual_memory);
  EXPECT_FALSE(info.exportable);
  EXPECT_TRUE(info.managed);
  EXPECT_FALSE(describe_device(*driver, 2, info, error));
  EXPECT_EQ(error.text,
            "cuDeviceGet of CUDA device 2: CUDA_ERROR_INVALID_DEVICE 101 (invalid device ordinal)");
  std::uint64_t free = 0;
  EXPECT_TRUE(free_memory(*driver, 1, free, error));
  EXPECT_EQ(free, std::uint64_t{1} << 30);
  standin_lose_device(1, kIllegalAddress);
  EXPECT_FALSE(free_memory(*driver, 1, free, error));
  EXPECT_EQ(error.text.find("the free memory of CUDA device 1: CUDA_ERROR_ILLEGAL_ADDRESS 700"), 0u)
      << error.text;
}

TEST_F(DriverTest, Bytes) {
  EXPECT_EQ(show_bytes(0), "0 bytes");
  EXPECT_EQ(show_bytes(1023), "1023 bytes");
  EXPECT_EQ(show_bytes(3 << 20), "3 MiB");
  EXPECT_EQ(show_bytes((std::uint64_t{3} << 30) / 2), "1.5 GiB");
}

}  // namespace
}  // namespace slabpool::test
