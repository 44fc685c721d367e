// The stand-in driver itself: it refuses each misuse and records a complaint.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "support/standin.hpp"

namespace slabpool::test {
namespace {

using namespace slabpool::cuda;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGranule = 2 * kMiB;

class StandinsOwnTest : public StandinTest {
 protected:
  // The complaint about the last call, which must exist.
  static void expect_complaint(Result result, const char* about) {
    EXPECT_NE(result, kSuccess) << about;
    EXPECT_NE(std::string(standin_complaints()).find(about), std::string::npos)
        << about << ": " << standin_complaints();
    standin_clear_complaints();
  }
  MemoryHandle create() {
    MemoryHandle handle = 0;
    EXPECT_EQ(driver->cuMemCreate(&handle, kGranule, &property_, 0), kSuccess);
    return handle;
  }
  MemAllocationProp property_;
  MemAccessDesc access_;
};

TEST_F(StandinsOwnTest, Contexts) {
  DevicePointer address = 0;
  expect_complaint(driver->cuMemAlloc(&address, 100), "cuMemAlloc without a current context");
  expect_complaint(driver->cuCtxPushCurrent(&address), "which is no context");
  Context gone = nullptr;
  expect_complaint(driver->cuCtxPopCurrent(&gone), "cuCtxPopCurrent of nothing");
}

TEST_F(StandinsOwnTest, Allocations) {
  const InContext context(*driver, 0);
  DevicePointer address = 0;
  ASSERT_EQ(driver->cuMemAlloc(&address, 1000), kSuccess);
  EXPECT_EQ(address % 512, 0u);
  EXPECT_NE(address % kGranule, 0u);
  EXPECT_EQ(standin_used(0), 1000u);
  EXPECT_NE(std::string(standin_leaks()).find("1000 bytes"), std::string::npos);
  expect_complaint(driver->cuMemFree(address + 1), "is not allocated");
  EXPECT_EQ(driver->cuMemFree(address), kSuccess);
  expect_complaint(driver->cuMemFree(address), "is not allocated");
  char byte = 0;
  EXPECT_EQ(standin_peek(address, &byte, 1), 0);
  standin_clear_complaints();
}

TEST_F(StandinsOwnTest, Mappings) {
  const InContext context(*driver, 0);
  DevicePointer range = 0;
  expect_complaint(driver->cuMemAddressReserve(&range, kMiB, 0, 0, 0), "cuMemAddressReserve");
  ASSERT_EQ(driver->cuMemAddressReserve(&range, 4 * kGranule, kGranule, 0, 0), kSuccess);
  MemoryHandle handle = 0;
  expect_complaint(driver->cuMemCreate(&handle, kMiB, &property_, 0), "cuMemCreate of 1048576 bytes");
  handle = create();
  expect_complaint(driver->cuMemMap(range + kMiB, kGranule, 0, handle, 0), "cuMemMap");
  expect_complaint(driver->cuMemMap(range + 4 * kGranule, kGranule, 0, handle, 0),
                   "beyond a reserved range");
  expect_complaint(driver->cuMemMap(range, kGranule, 0, handle + 1, 0), "no handle");
  ASSERT_EQ(driver->cuMemMap(range, kGranule, 0, handle, 0), kSuccess);
  const MemoryHandle other = create();
  expect_complaint(driver->cuMemMap(range, kGranule, 0, other, 0), "where something is mapped");
  // No access before cuMemSetAccess, nor where nothing is mapped.
  expect_complaint(driver->cuMemsetD8Async(range, 0, 1, kLegacyStream) != kSuccess
                       ? kInvalidValue
                       : driver->cuStreamSynchronize(kLegacyStream),
                   "device 0 has no access");
  standin_lose_device(0, 0);
  expect_complaint(driver->cuMemSetAccess(range, 2 * kGranule, &access_, 1), "where no mapping begins");
  ASSERT_EQ(driver->cuMemMap(range + kGranule, kGranule, 0, other, 0), kSuccess);
  ASSERT_EQ(driver->cuMemSetAccess(range, 2 * kGranule, &access_, 1), kSuccess);
  ASSERT_EQ(driver->cuMemsetD8Async(range + kGranule - 8, 7, 16, kLegacyStream), kSuccess);
  ASSERT_EQ(driver->cuStreamSynchronize(kLegacyStream), kSuccess);
  char bytes[16] = {};
  ASSERT_EQ(standin_peek(range + kGranule - 8, bytes, 16), 1);
  EXPECT_EQ(std::string(bytes, 16), std::string(16, '\7'));
  expect_complaint(driver->cuMemUnmap(range, kMiB), "not mapped so");
  expect_complaint(driver->cuMemUnmap(range, 2 * kGranule), "not mapped so");
  expect_complaint(driver->cuMemAddressFree(range, 4 * kGranule), "where something is mapped");
  // Physical memory is freed with the last handle and mapping.
  ASSERT_EQ(driver->cuMemRelease(handle), kSuccess);
  expect_complaint(driver->cuMemRelease(handle), "no handle");
  EXPECT_EQ(standin_used(0), 2 * kGranule);
  ASSERT_EQ(driver->cuMemUnmap(range, kGranule), kSuccess);
  EXPECT_EQ(standin_used(0), kGranule);
  expect_complaint(driver->cuMemUnmap(range, kGranule), "not mapped so");
  ASSERT_EQ(driver->cuMemUnmap(range + kGranule, kGranule), kSuccess);
  ASSERT_EQ(driver->cuMemRelease(other), kSuccess);
  EXPECT_EQ(standin_used(0), 0u);
  expect_complaint(driver->cuMemAddressFree(range, kGranule), "not reserved so");
  ASSERT_EQ(driver->cuMemAddressFree(range, 4 * kGranule), kSuccess);
}

TEST_F(StandinsOwnTest, Registrations) {
  const InContext context(*driver, 0);
  void* pages = mmap(nullptr, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(pages, MAP_FAILED);
  auto* at = static_cast<char*>(pages);
  ASSERT_EQ(mprotect(at + 3 * 4096, 4096, PROT_NONE), 0);
  expect_complaint(driver->cuMemHostRegister(at, 4 * 4096, 0), "which the host may not write");
  ASSERT_EQ(driver->cuMemHostRegister(at, 2 * 4096, kHostRegisterPortable), kSuccess);
  expect_complaint(driver->cuMemHostRegister(at + 4096, 4096, 0), "some of which is registered");
  DevicePointer seen = 0;
  expect_complaint(driver->cuMemHostGetDevicePointer(&seen, at, 0), "not registered for devices");
  expect_complaint(driver->cuMemHostUnregister(at + 4096), "no registration begins at");
  // A copy of bytes of which only some are registered.
  char bytes[16] = {};
  EXPECT_EQ(standin_peek(reinterpret_cast<std::uint64_t>(at) + 2 * 4096 - 8, bytes, 16), 0);
  expect_complaint(kInvalidValue, "a range goes on beyond it");
  // Pages that are unmapped while the device may use them.
  ASSERT_EQ(munmap(at, 4096), 0);
  ASSERT_EQ(driver->cuMemHostUnregister(at), kSuccess);
  expect_complaint(kInvalidValue, "went away while it was registered");
  ASSERT_EQ(munmap(at + 4096, 3 * 4096), 0);
}

TEST_F(StandinsOwnTest, FaultsAndCounts) {
  const InContext context(*driver, 0);
  standin_fail("cuMemAlloc", 2, kOutOfMemory, 2);
  DevicePointer made[2] = {};
  DevicePointer none = 0;
  EXPECT_EQ(driver->cuMemAlloc(&made[0], 1), kSuccess);
  EXPECT_EQ(standin_faults_left(), 1u);
  EXPECT_EQ(driver->cuMemAlloc(&none, 1), kOutOfMemory);
  EXPECT_EQ(driver->cuMemAlloc(&none, 1), kOutOfMemory);
  EXPECT_EQ(standin_faults_left(), 0u);
  EXPECT_EQ(driver->cuMemAlloc(&made[1], 1), kSuccess);
  EXPECT_EQ(standin_calls("cuMemAlloc"), 4u);
  EXPECT_EQ(standin_used(0), 2u);
  standin_set_memory(0, 2);
  EXPECT_EQ(driver->cuMemAlloc(&none, 1), kOutOfMemory);
  standin_lose_device(0, kIllegalAddress);
  EXPECT_EQ(driver->cuMemFree(made[0]), kIllegalAddress);
  standin_lose_device(0, 0);
  for (const DevicePointer address : made) EXPECT_EQ(driver->cuMemFree(address), kSuccess);
}

}  // namespace
}  // namespace slabpool::test
