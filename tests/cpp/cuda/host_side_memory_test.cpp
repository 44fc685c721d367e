// Pinned and managed memory: views of the host, registering and unregistering, and every refusal.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/pool/pool.hpp"
#include "support/standin.hpp"

namespace slabpool::test {
namespace {

using namespace slabpool::cuda;

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::size_t resident(const std::byte* at, std::size_t bytes) {
  std::vector<unsigned char> pages(bytes / 4096);
  if (mincore(const_cast<std::byte*>(at), bytes, pages.data()) != 0) return 0;
  return static_cast<std::size_t>(std::count_if(pages.begin(), pages.end(),
                                                [](unsigned char page) { return (page & 1) != 0; })) *
         4096;
}

class PinnedMemoryTest : public StandinTest {
 protected:
  std::unique_ptr<MemoryResource> make(std::size_t capacity = 8 * kMiB, int device = -1) {
    CudaMemoryOptions options;
    options.device = device;
    options.capacity = options.minimum = capacity;
    options.reserve = 8 * capacity;
    return create_pinned_memory(options, error);
  }
  Error error;
};

TEST_F(PinnedMemoryTest, IsRegisteredWhileItIsCommitted) {
  auto memory = make(12 * kMiB);
  ASSERT_NE(memory, nullptr) << error.text;
  EXPECT_EQ(memory->kind(), MemoryKind::pinned);
  EXPECT_TRUE(memory->host_reaches());
  EXPECT_TRUE(memory->commits_zero());
  const std::size_t granule = memory->granule();
  EXPECT_EQ(granule, 4 * kMiB);
  ASSERT_TRUE(memory->commit(granule, 2 * granule));
  EXPECT_EQ(standin_calls("cuMemHostRegister"), 2u);
  std::byte* at = memory->base() + granule;
  std::memset(at, 1, 2 * granule);
  DevicePointer seen = 0;
  {
    const InContext other(*driver, 1);  // registered for every device
    ASSERT_EQ(driver->cuMemHostGetDevicePointer(&seen, at + granule + 5, 0), kSuccess);
  }
  EXPECT_EQ(seen, reinterpret_cast<DevicePointer>(at + granule + 5));
  EXPECT_EQ(resident(at, 2 * granule), 2 * granule);
  ASSERT_TRUE(memory->decommit(granule, granule));
  EXPECT_EQ(resident(at, granule), 0u);
  EXPECT_EQ(standin_calls("cuMemHostUnregister"), 1u);
  ASSERT_TRUE(memory->commit(granule, granule));
  EXPECT_EQ(at[granule - 1], std::byte{0});
  EXPECT_EQ(at[granule], std::byte{1});
  memory.reset();
  EXPECT_EQ(standin_calls("cuMemHostUnregister"), 3u);
}

TEST_F(PinnedMemoryTest, GranulesSuitTheCapacity) {
  const auto granule = [this](std::size_t capacity) { return make(capacity)->granule(); };
  EXPECT_EQ(granule(std::size_t{4} << 30), 32 * kMiB);
  EXPECT_EQ(granule(96 * kMiB), 32 * kMiB);
  EXPECT_EQ(granule(100 * kMiB), 4 * kMiB);
  EXPECT_EQ(granule(kMiB), kMiB);
  EXPECT_EQ(granule(1'000'000'000), 8 * kMiB);  // rounds up by less than a 64th
  EXPECT_EQ(granule(kMostSystemPage), kMostSystemPage) << "the smallest pool";
}

TEST_F(PinnedMemoryTest, EveryCallOfACommitMayFail) {
  auto memory = make(16 * kMiB);
  const std::size_t granule = memory->granule();
  ASSERT_EQ(granule, 16 * kMiB);
  ASSERT_TRUE(memory->commit(0, granule));
  memory->base()[5] = std::byte{3};
  int failures = 0;
  bool failed = true;
  for (int nth = 1; failed; ++nth) {
    standin_fail("*", nth, kOutOfMemory, 1);
    const bool done = memory->commit(granule, 3 * granule);
    failed = failed_at(nth);
    EXPECT_EQ(memory->base()[5], std::byte{3});
    if (done) {
      ASSERT_TRUE(memory->decommit(granule, 3 * granule));
    } else {
      ++failures;
      const std::string left = standin_leaks();
      EXPECT_EQ(std::count(left.begin(), left.end(), '\n'), 1) << nth << left;
      EXPECT_EQ(resident(memory->base() + granule, 3 * granule), 0u) << nth;
    }
  }
  EXPECT_EQ(failures, 3 + 1);  // each registration, and making the context current
  EXPECT_NE(memory->refusal().text.find("cuMemHostRegister of 16 MiB"), std::string::npos)
      << memory->refusal().text;
}

TEST_F(PinnedMemoryTest, EveryCallOfADecommitMayFail) {
  auto memory = make(8 * kMiB);
  const std::size_t granule = memory->granule();
  int failures = 0;
  bool failed = true;
  ASSERT_TRUE(memory->commit(0, 4 * granule));
  for (int nth = 1; failed; ++nth) {
    std::memset(memory->base(), nth, 4 * granule);
    standin_fail("*", nth, kUnknown, 1);
    const bool done = memory->decommit(granule, 2 * granule);
    failed = failed_at(nth);
    EXPECT_EQ(memory->base()[4 * granule - 1], static_cast<std::byte>(nth));
    if (done) {
      ASSERT_TRUE(memory->commit(granule, 2 * granule));
      EXPECT_EQ(memory->base()[granule], std::byte{0});
      continue;
    }
    ++failures;
    const InContext context(*driver, 0);
    DevicePointer seen = 0;
    for (std::size_t i = 0; i < 4; ++i)
      EXPECT_EQ(driver->cuMemHostGetDevicePointer(&seen, memory->base() + i * granule, 0), kSuccess)
          << nth;
  }
  EXPECT_EQ(failures, 2 + 1);
}

// The driver refuses to register the second granule and to unregister the first, whose pages must then stay: otherwise
// the device would use other pages than the host.
TEST_F(PinnedMemoryTest, PagesStayIfTheDriverRefusesToUnregister) {
  auto memory = make(8 * kMiB);
  const std::size_t granule = memory->granule();
  standin_fail("cuMemHostRegister", 2, kOutOfMemory, 1);
  standin_fail("cuMemHostUnregister", 1, kUnknown, 1);
  EXPECT_FALSE(memory->commit(0, 2 * granule));
  standin_clear_faults();
  EXPECT_EQ(resident(memory->base(), granule), granule);
  ASSERT_TRUE(memory->commit(0, 2 * granule));
  EXPECT_EQ(standin_calls("cuMemHostRegister"), 3u);
  EXPECT_EQ(memory->base()[granule - 1], std::byte{0});
}

TEST_F(PinnedMemoryTest, SaysWhyItFails) {
  EXPECT_EQ(make(kMiB, 2), nullptr);
  EXPECT_EQ(error.text.find("there is no CUDA device 2: "), 0u) << error.text;
  standin_fail("cuMemHostRegister", 1, 304, -1);
  auto memory = make();
  EXPECT_FALSE(memory->commit(0, memory->granule()));
  EXPECT_EQ(memory->refusal().text.find(
                "cuMemHostRegister of 8 MiB on CUDA device 0: CUDA error 304 (unknown to this "
                "driver)"),
            0u)
      << memory->refusal().text;
  EXPECT_EQ(resident(memory->base(), memory->granule()), 0u);
}

TEST_F(PinnedMemoryTest, NearADevice) {
  standin_set_attribute(1, kAttributeHostNumaId, 0);
  auto memory = make(8 * kMiB, 1);
  ASSERT_NE(memory, nullptr) << error.text;
  ASSERT_TRUE(memory->commit(0, memory->granule()));
  memory->base()[0] = std::byte{1};
  // A node that does not exist is not an error: the node is only preferred.
  standin_set_attribute(1, kAttributeHostNumaId, 1000);
  auto far = make(8 * kMiB, 1);
  ASSERT_NE(far, nullptr) << error.text;
  ASSERT_TRUE(far->commit(0, far->granule()));
  far->base()[0] = std::byte{1};
}

TEST_F(PinnedMemoryTest, AForksChildGivesNothingBack) {
  auto memory = make();
  ASSERT_TRUE(memory->commit(0, memory->granule()));
  memory->base()[0] = std::byte{9};
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool ok = memory->base()[0] == std::byte{9} &&
                    !memory->commit(memory->granule(), memory->granule()) &&
                    !memory->decommit(0, memory->granule());
    memory.reset();
    _exit(ok && standin_calls_after_fork() == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(PinnedMemoryTest, ManyThreads) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([i] {
      CudaMemoryOptions options;
      options.device = i % 2 - (i / 2);
      options.capacity = options.minimum = options.reserve = 4 * kMiB;
      Error reason;
      auto memory = create_pinned_memory(options, reason);
      ASSERT_NE(memory, nullptr) << reason.text;
      for (int round = 0; round < 10; ++round) {
        ASSERT_TRUE(memory->commit(0, 4 * kMiB));
        std::memset(memory->base(), i, 4 * kMiB);
        ASSERT_TRUE(memory->decommit(0, 4 * kMiB));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class ManagedMemoryTest : public StandinTest {
 protected:
  std::unique_ptr<MemoryResource> make(std::size_t capacity, int device = 0) {
    CudaMemoryOptions options;
    options.device = device;
    options.capacity = options.minimum = capacity;
    options.reserve = 8 * capacity;
    return create_managed_memory(options, error);
  }
  Error error;
};

TEST_F(ManagedMemoryTest, IsTheHostsToo) {
  auto memory = make(5 * kMiB, 1);
  ASSERT_NE(memory, nullptr) << error.text;
  EXPECT_EQ(memory->kind(), MemoryKind::managed);
  EXPECT_TRUE(memory->host_reaches());
  EXPECT_TRUE(memory->always_committed());
  EXPECT_FALSE(memory->commits_zero());
  EXPECT_EQ(memory->address_space(), 5 * kMiB);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->base()) % (2 * kMiB), 0u);
  std::memset(memory->base(), 7, 5 * kMiB);
  unsigned char byte = 0;
  EXPECT_EQ(standin_peek(reinterpret_cast<std::uint64_t>(memory->base() + 5 * kMiB - 1), &byte, 1), 1);
  EXPECT_EQ(byte, 7);
  EXPECT_FALSE(memory->decommit(0, kMiB));
}

TEST_F(ManagedMemoryTest, IsRefusedWhereItDoesNotFit) {
  standin_set_memory(0, 64 * kMiB);
  EXPECT_EQ(make(65 * kMiB), nullptr);
  EXPECT_EQ(error.text,
            "managed memory of 65 MiB does not fit on CUDA device 0 (slabpool stand-in 0): 64 MiB of "
            "its 64 MiB are "
            "free. Make the pool smaller, or close what holds the rest");
  EXPECT_NE(make(64 * kMiB), nullptr);
  standin_set_attribute(0, kAttributeConcurrentManagedAccess, 0);
  EXPECT_EQ(make(kMiB), nullptr);
  EXPECT_NE(error.text.find("Use pinned memory (memory=\"pinned:0\")"), std::string::npos) << error.text;
  EXPECT_EQ(standin_context_depth(), 0u);
}

TEST_F(ManagedMemoryTest, EveryCallOfACreationMayFail) {
  int failures = 0;
  bool failed = true;
  for (int nth = 1; failed; ++nth) {
    standin_fail("*", nth, kUnknown, 1);
    auto memory = make(kMiB);
    failed = failed_at(nth);
    if (memory != nullptr) continue;
    ++failures;
    EXPECT_STREQ(standin_leaks(), "") << nth;
    EXPECT_NE(error.text.find("CUDA device 0"), std::string::npos) << nth << error.text;
  }
  EXPECT_GE(failures, 6);
}

// A pool over each of both kinds: blocks of all sizes until it is full, several times.
TEST_F(ManagedMemoryTest, PoolsOfBothKinds) {
  for (const MemoryKind kind : {MemoryKind::pinned, MemoryKind::managed}) {
    PoolOptions options;
    options.capacity = 32 * kMiB;
    options.memory = kind;
    options.device = 0;
    auto pool = Pool::create(options, error);
    ASSERT_NE(pool, nullptr) << error.text;
    for (int round = 0; round < 3; ++round) {
      std::vector<Block*> blocks;
      std::uint64_t total = 0;
      for (std::uint64_t bytes = 3 * kMiB; bytes >= 4096;) {
        AllocateSpec spec;
        spec.nbytes = bytes;
        spec.zero = true;
        const Allocation made = pool->allocate(spec);
        if (made.block == nullptr) {
          bytes /= 2;
          continue;
        }
        EXPECT_EQ(std::count(made.block->data, made.block->data + bytes, std::byte{0}),
                  static_cast<std::ptrdiff_t>(bytes));
        std::memset(made.block->data, 0xEE, bytes);
        blocks.push_back(made.block);
        total += bytes;
      }
      EXPECT_GT(total, 29 * kMiB);
      EXPECT_LE(pool->stats().committed, 32 * kMiB);
      EXPECT_STREQ(pool->verify(), nullptr);
      for (Block* block : blocks) pool->drop_view(*block);
      const std::uint64_t given = pool->trim();
      EXPECT_EQ(given, kind == MemoryKind::pinned ? 32 * kMiB : 0u);
      EXPECT_STREQ(pool->verify(), nullptr);
    }
  }
}

}  // namespace
}  // namespace slabpool::test
