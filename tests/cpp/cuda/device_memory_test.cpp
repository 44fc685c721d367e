// Device memory, mapped in granules or as one allocation: no memory is lost when the driver refuses.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <vector>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/device_info.hpp"
#include "slabpool/pool/pool.hpp"
#include "support/standin.hpp"

namespace slabpool::test {
namespace {

using namespace slabpool::cuda;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGranule = 2 * kMiB;

class DeviceMemoryTest : public StandinTest {
 protected:
  std::unique_ptr<MemoryResource> make(std::size_t capacity = 64 * kMiB, int device = 0,
                                       bool shared = false) {
    CudaMemoryOptions options;
    options.device = device;
    options.capacity = options.minimum = capacity;
    options.reserve = 8 * capacity;
    options.shared = shared;
    return create_device_memory(options, error);
  }
  static void fill(MemoryResource& memory, std::size_t offset, std::size_t bytes, unsigned char value) {
    EXPECT_TRUE(memory.fill(memory.base() + offset, bytes, value));
  }
  static int at(const MemoryResource& memory, std::size_t offset) {
    unsigned char byte = 0;
    return standin_peek(reinterpret_cast<std::uint64_t>(memory.base() + offset), &byte, 1) != 0 ? byte
                                                                                                : -1;
  }

  Error error;
};

TEST_F(DeviceMemoryTest, CommitsPiecesAndGivesThemBack) {
  auto memory = make();
  ASSERT_NE(memory, nullptr) << error.text;
  EXPECT_EQ(memory->kind(), MemoryKind::device);
  EXPECT_FALSE(memory->host_reaches());
  EXPECT_FALSE(memory->commits_zero());
  EXPECT_FALSE(memory->always_committed());
  EXPECT_EQ(memory->granule(), kGranule);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->base()) % kGranule, 0u);
  EXPECT_EQ(memory->address_space(), 512 * kMiB);
  EXPECT_EQ(standin_used(0), 0u);
  ASSERT_TRUE(memory->commit(4 * kGranule, 6 * kGranule));
  EXPECT_EQ(standin_used(0), 6 * kGranule);
  EXPECT_EQ(standin_calls("cuMemSetAccess"), 1u);
  // Across the border of two granules.
  fill(*memory, 5 * kGranule - 100, 200, 7);
  EXPECT_EQ(at(*memory, 5 * kGranule - 100), 7);
  EXPECT_EQ(at(*memory, 5 * kGranule + 99), 7);
  EXPECT_NE(at(*memory, 5 * kGranule + 100), 7);
  // Decommits some of the granules that were committed together; the others keep their bytes.
  ASSERT_TRUE(memory->decommit(6 * kGranule, 2 * kGranule));
  EXPECT_EQ(standin_used(0), 4 * kGranule);
  EXPECT_EQ(at(*memory, 5 * kGranule), 7);
  ASSERT_TRUE(memory->commit(6 * kGranule, kGranule));
  fill(*memory, 6 * kGranule, kGranule, 9);
  EXPECT_EQ(at(*memory, 7 * kGranule - 1), 9);
  EXPECT_EQ(standin_used(0), 5 * kGranule);
  EXPECT_EQ(memory->refusal().text, "");
  memory.reset();
  EXPECT_EQ(standin_used(0), 0u);
}

// A system call reports an inaccessible address without a crash.
TEST_F(DeviceMemoryTest, TheHostHasNoAccess) {
  auto memory = make();
  ASSERT_TRUE(memory->commit(0, kGranule));
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const char byte = 1;
  ASSERT_EQ(write(ends[1], &byte, 1), 1);
  EXPECT_EQ(read(ends[0], memory->base(), 1), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(write(ends[1], memory->base(), 1), -1);
  EXPECT_EQ(errno, EFAULT);
  for (const int end : ends) (void)close(end);
}

// Each test below makes the first call of the driver fail, then the second, and so on until none fails. An operation that
// failed must have changed nothing.

TEST_F(DeviceMemoryTest, EveryCallOfACommitMayFail) {
  auto memory = make();
  ASSERT_TRUE(memory->commit(0, kGranule));
  fill(*memory, 0, kGranule, 3);
  int failures = 0;
  bool failed = true;
  for (int nth = 1; failed; ++nth) {
    standin_fail("*", nth, kOutOfMemory, 1);
    const bool done = memory->commit(kGranule, 4 * kGranule);
    failed = failed_at(nth);
    EXPECT_EQ(standin_used(0), done ? 5 * kGranule : kGranule) << nth;
    EXPECT_EQ(at(*memory, kGranule - 1), 3) << nth;
    failures += done ? 0 : 1;
    if (done && failed) {
      ASSERT_TRUE(memory->decommit(kGranule, 4 * kGranule));
    }
  }
  EXPECT_GE(failures, 2 * 4 + 1);  // create and map of four granules, and access
  fill(*memory, kGranule, 4 * kGranule, 4);
  EXPECT_EQ(at(*memory, 5 * kGranule - 1), 4);
}

TEST_F(DeviceMemoryTest, EveryCallOfADecommitMayFail) {
  int failures = 0, lost = 0;
  bool failed = true;
  for (int nth = 1; failed; ++nth) {
    auto memory = make();
    ASSERT_TRUE(memory->commit(0, 5 * kGranule));
    fill(*memory, 0, 5 * kGranule, 5);
    standin_fail("*", nth, kUnknown, 1);
    const bool done = memory->decommit(kGranule, 3 * kGranule);
    failed = failed_at(nth);
    EXPECT_EQ(at(*memory, 0), 5);
    EXPECT_EQ(at(*memory, 4 * kGranule), 5);
    if (!done) {
      ++failures;
      EXPECT_EQ(standin_used(0), 5 * kGranule) << nth;
      fill(*memory, 0, 5 * kGranule, 6);
      EXPECT_EQ(at(*memory, 2 * kGranule), 6);
    } else {
      // Memory of a handle that the driver refuses to release is lost, and must not count as committed.
      lost += standin_used(0) == 3 * kGranule ? 1 : 0;
      EXPECT_EQ(at(*memory, 2 * kGranule), -1);
      standin_clear_complaints();
      ASSERT_TRUE(memory->commit(2 * kGranule, kGranule));
    }
    memory.reset();
    if (done && failed) standin_reset();
  }
  EXPECT_EQ(failures, 3 + 1);  // unmap of each, and making the context current
  EXPECT_EQ(lost, 3);
}

// The driver refuses to unmap the third granule, and then to map one of the others again or to give access to it.
TEST_F(DeviceMemoryTest, ADecommitThatIsNotUndoneIsRepairedByEitherCall) {
  for (const char* call : {"cuMemMap", "cuMemSetAccess"}) {
    for (const int nth : {1, 2}) {
      for (const bool commits : {false, true}) {
        SCOPED_TRACE(std::string(call) + " " + std::to_string(nth) +
                     (commits ? " commit" : " decommit"));
        auto memory = make();
        ASSERT_TRUE(memory->commit(0, 4 * kGranule));
        standin_fail("cuMemUnmap", 3, kUnknown, 1);
        standin_fail(call, nth, kUnknown, 1);
        EXPECT_FALSE(memory->decommit(0, 4 * kGranule));
        EXPECT_EQ(standin_faults_left(), 0u);
        standin_clear_faults();
        if (commits) {
          ASSERT_TRUE(memory->commit(0, 4 * kGranule));
          EXPECT_EQ(standin_used(0), 4 * kGranule);
          fill(*memory, 0, 4 * kGranule, 6);
          EXPECT_EQ(at(*memory, 4 * kGranule - 1), 6);
        }
        ASSERT_TRUE(memory->decommit(0, 4 * kGranule));
        EXPECT_EQ(standin_used(0), 0u);
      }
    }
  }
}

TEST_F(DeviceMemoryTest, EveryCallOfACreationMayFail) {
  for (const bool shared : {false, true}) {
    int failures = 0;
    bool failed = true;
    for (int nth = 1; failed; ++nth) {
      standin_fail("*", nth, kUnknown, 1);
      auto memory = make(64 * kMiB, 0, shared);
      failed = failed_at(nth);
      if (memory != nullptr) continue;
      ++failures;
      EXPECT_STREQ(standin_leaks(), "") << nth;
      EXPECT_NE(error.text.find("CUDA device 0"), std::string::npos) << nth << error.text;
      error.text.clear();
    }
    EXPECT_GE(failures, shared ? 8 : 4);
  }
}

TEST_F(DeviceMemoryTest, SaysWhatWasRefused) {
  standin_set_memory(0, 16 * kMiB);
  auto memory = make(16 * kMiB);
  ASSERT_TRUE(memory->commit(0, 4 * kMiB));
  auto other = make(16 * kMiB);
  EXPECT_FALSE(other->commit(0, 16 * kMiB));
  EXPECT_EQ(standin_used(0), 4 * kMiB);
  EXPECT_EQ(
      other->refusal().text,
      "cuMemCreate of 16 MiB on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY 2 (out of memory); 12 MiB of "
      "its "
      "16 MiB are free. Other pools, libraries or processes hold the rest: close or trim those, or ask "
      "for less");
  ASSERT_TRUE(other->commit(0, 12 * kMiB));
  EXPECT_EQ(make(18 * kMiB), nullptr);
  EXPECT_EQ(error.text, "CUDA device 0 has 16 MiB of memory, and the pool asks for 18 MiB");
  EXPECT_EQ(make(kGranule, 2), nullptr);
  EXPECT_EQ(error.text.find("there is no CUDA device 2: "), 0u) << error.text;
}

TEST_F(DeviceMemoryTest, ALostDevice) {
  auto memory = make();
  ASSERT_TRUE(memory->commit(0, 2 * kGranule));
  standin_lose_device(0, 719);
  EXPECT_FALSE(memory->fill(memory->base(), 100, 0));
  EXPECT_FALSE(memory->commit(2 * kGranule, kGranule));
  EXPECT_FALSE(memory->decommit(0, 2 * kGranule));
  EXPECT_NE(memory->refusal().text.find("CUDA_ERROR_LAUNCH_FAILED 719"), std::string::npos);
  EXPECT_NE(memory->refusal().text.find("the device has failed"), std::string::npos);
  EXPECT_EQ(make(), nullptr);
  EXPECT_EQ(standin_context_depth(), 0u);
  auto other = make(64 * kMiB, 1);
  ASSERT_NE(other, nullptr);
  EXPECT_TRUE(other->commit(0, kGranule));
  memory.reset();  // releases nothing, and does not hang
  other.reset();
  standin_lose_device(0, 0);
  standin_reset();
}

TEST_F(DeviceMemoryTest, LeavesTheThreadsContextAlone) {
  const InContext other(*driver, 1);
  auto memory = make(64 * kMiB, 0);
  ASSERT_TRUE(memory->commit(0, kGranule));
  fill(*memory, 0, 10, 1);
  Context now = nullptr;
  ASSERT_EQ(driver->cuCtxGetCurrent(&now), kSuccess);
  EXPECT_EQ(now, other.context);
  EXPECT_EQ(standin_context_depth(), 1u);
  EXPECT_EQ(standin_used(0), kGranule);
  EXPECT_EQ(standin_used(1), 0u);
  memory.reset();
  EXPECT_EQ(standin_context_depth(), 1u);
}

TEST_F(DeviceMemoryTest, TwoDevicesAndManyThreads) {
  std::vector<std::thread> threads;
  for (int device = 0; device < 2; ++device) {
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([this, device, i] {
        CudaMemoryOptions options;
        options.device = device;
        options.capacity = options.minimum = 16 * kMiB;
        options.reserve = 64 * kMiB;
        Error reason;
        auto memory = create_device_memory(options, reason);
        ASSERT_NE(memory, nullptr) << reason.text;
        for (int round = 0; round < 20; ++round) {
          ASSERT_TRUE(memory->commit(0, 4 * kGranule));
          fill(*memory, kGranule, kGranule, static_cast<unsigned char>(16 * device + i));
          EXPECT_EQ(at(*memory, kGranule + 5), 16 * device + i);
          ASSERT_TRUE(memory->decommit(0, 4 * kGranule));
        }
        EXPECT_EQ(standin_context_depth(), 0u);
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DeviceMemoryTest, AForksChildGivesNothingBack) {
  auto memory = make();
  ASSERT_TRUE(memory->commit(0, kGranule));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool ok = !memory->commit(kGranule, kGranule) && !memory->decommit(0, kGranule) &&
                    !memory->fill(memory->base(), 10, 0) && memory->refusal().text.empty();
    memory.reset();
    const bool refused = make() == nullptr && error.text.find("forked") != std::string::npos;
    _exit(ok && refused && standin_calls_after_fork() == 0 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  fill(*memory, 0, kGranule, 6);
  EXPECT_EQ(at(*memory, 0), 6);
}

// ---- memory of one allocation

TEST_F(DeviceMemoryTest, WhereTheDeviceMapsNothing) {
  standin_set_attribute(0, kAttributeVirtualMemory, 0);
  auto memory = make(10 * kMiB);
  ASSERT_NE(memory, nullptr) << error.text;
  EXPECT_TRUE(memory->always_committed());
  EXPECT_EQ(memory->granule(), kPageSize);
  EXPECT_EQ(memory->address_space(), 10 * kMiB);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->base()) % kGranule, 0u);
  EXPECT_EQ(standin_used(0), 12 * kMiB - 256);
  EXPECT_FALSE(memory->decommit(0, kPageSize));
  fill(*memory, 0, 10 * kMiB, 8);
  EXPECT_EQ(at(*memory, 10 * kMiB - 1), 8);
  standin_set_memory(0, 20 * kMiB);
  EXPECT_EQ(make(10 * kMiB), nullptr);
  EXPECT_NE(error.text.find("cuMemAlloc of 12 MiB on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY"),
            std::string::npos)
      << error.text;
}

TEST_F(DeviceMemoryTest, SharedMemoryIsSeenByWhoeverOpensIt) {
  auto memory = make(5 * kMiB, 1, true);
  ASSERT_NE(memory, nullptr) << error.text;
  EXPECT_TRUE(memory->always_committed());
  EXPECT_EQ(memory->address_space(), 6 * kMiB);
  EXPECT_EQ(standin_used(1), 6 * kMiB);
  const int fd = shareable_fd(*memory, error);
  ASSERT_GE(fd, 0) << error.text;
  auto peer = open_device_memory(fd, 5 * kMiB, 1, error);
  ASSERT_NE(peer, nullptr) << error.text;
  EXPECT_EQ(standin_used(1), 6 * kMiB);
  EXPECT_NE(peer->base(), memory->base());
  fill(*memory, 3 * kMiB, 100, 11);
  EXPECT_EQ(at(*peer, 3 * kMiB + 99), 11);
  fill(*peer, 0, 100, 12);
  EXPECT_EQ(at(*memory, 99), 12);
  // The owner may end first: the memory stays until the last process has released it.
  memory.reset();
  EXPECT_EQ(at(*peer, 99), 12);
  int failures = 0;
  bool failed = true;
  for (int nth = 1; failed; ++nth) {
    standin_fail("*", nth, kUnknown, 1);
    auto opened = open_device_memory(fd, 5 * kMiB, 1, error);
    failures += opened == nullptr ? 1 : 0;
    failed = failed_at(nth);
  }
  EXPECT_GE(failures, 6);
  peer.reset();
  (void)close(fd);
}

TEST_F(DeviceMemoryTest, WhatCannotBeShared) {
  standin_set_attribute(0, kAttributeHandleTypePosixFd, 0);
  EXPECT_EQ(make(4 * kMiB, 0, true), nullptr);
  EXPECT_NE(error.text.find("cannot be shared between processes"), std::string::npos) << error.text;
  auto memory = make(4 * kMiB, 0, false);
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(shareable_fd(*memory, error), -1);
  EXPECT_EQ(error.text, "this memory was not made to be shared between processes");
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_EQ(open_device_memory(pipes[0], kMiB, 0, error), nullptr);
  EXPECT_NE(error.text.find("cuMemImportFromShareableHandle on CUDA device 0"), std::string::npos)
      << error.text;
  EXPECT_STRNE(standin_complaints(), "");
  standin_clear_complaints();
  (void)close(pipes[0]);
  (void)close(pipes[1]);
}

// ---- pools

class DevicePoolTest : public DeviceMemoryTest {
 protected:
  std::unique_ptr<Pool> make_pool(std::size_t capacity) {
    PoolOptions options;
    options.capacity = capacity;
    options.memory = MemoryKind::device;
    options.device = 0;
    auto pool = Pool::create(options, error);
    EXPECT_NE(pool, nullptr) << error.text;
    return pool;
  }
  // Blocks of all sizes until the pool is full, twice; its figures agree with the device's.
  void use(Pool& pool, std::size_t capacity) {
    for (int round = 0; round < 2; ++round) {
      std::vector<Block*> blocks;
      std::uint64_t total = 0;
      for (std::uint64_t bytes = 3 * kMiB; bytes >= 4096;) {
        AllocateSpec spec;
        spec.nbytes = bytes;
        spec.zero = true;
        const Allocation made = pool.allocate(spec);
        if (made.block == nullptr) {
          EXPECT_EQ(made.status, Status::exhausted);
          bytes /= 2;
          continue;
        }
        unsigned char byte = 1;
        ASSERT_EQ(standin_peek(reinterpret_cast<std::uint64_t>(made.block->data) + bytes - 1, &byte, 1),
                  1);
        EXPECT_EQ(byte, 0);
        ASSERT_TRUE(standin_poke(reinterpret_cast<std::uint64_t>(made.block->data), "used", 4));
        blocks.push_back(made.block);
        total += bytes;
      }
      EXPECT_GT(total, capacity * 9 / 10);
      const Stats stats = pool.stats();
      EXPECT_LE(stats.committed, capacity);
      EXPECT_EQ(stats.committed, stats.live + stats.retained + stats.in_doubt + stats.cached);
      EXPECT_STREQ(pool.verify(), nullptr);
      for (Block* block : blocks) pool.drop_view(*block);
      EXPECT_STREQ(pool.verify(), nullptr);
    }
  }
};

TEST_F(DevicePoolTest, MappedMemory) {
  auto pool = make_pool(32 * kMiB);
  use(*pool, 32 * kMiB);
  EXPECT_LE(standin_used(0), 32 * kMiB);
  EXPECT_EQ(pool->stats().committed, standin_used(0));
  EXPECT_GT(pool->trim(), 30 * kMiB);
  EXPECT_EQ(standin_used(0), pool->stats().committed);
  EXPECT_LE(standin_used(0), kGranule);
  use(*pool, 32 * kMiB);
  EXPECT_EQ(pool->close(false), Status::ok);
}

TEST_F(DevicePoolTest, WholeMemory) {
  standin_set_attribute(0, kAttributeVirtualMemory, 0);
  auto pool = make_pool(32 * kMiB);
  EXPECT_EQ(pool->stats().committed, 32 * kMiB);
  use(*pool, 32 * kMiB);
  EXPECT_EQ(pool->trim(), 0u);
  EXPECT_EQ(pool->stats().committed, 32 * kMiB);
  // One tensor of the whole capacity, after many small ones.
  AllocateSpec all;
  all.nbytes = 32 * kMiB;
  const Allocation made = pool->allocate(all);
  ASSERT_NE(made.block, nullptr);
  pool->drop_view(*made.block);
}

TEST_F(DevicePoolTest, RunsOutBesideOthers) {
  standin_set_memory(0, 8 * kMiB);
  auto other = make(8 * kMiB);
  ASSERT_TRUE(other->commit(0, 6 * kMiB));
  auto pool = make_pool(8 * kMiB);
  AllocateSpec spec;
  spec.nbytes = 4 * kMiB;
  const Allocation refused = pool->allocate(spec);
  EXPECT_EQ(refused.block, nullptr);
  EXPECT_EQ(refused.status, Status::system_refused);
  EXPECT_STREQ(pool->verify(), nullptr);
  ASSERT_TRUE(other->decommit(0, 6 * kMiB));
  const Allocation made = pool->allocate(spec);
  ASSERT_NE(made.block, nullptr);
  pool->drop_view(*made.block);
}

}  // namespace
}  // namespace slabpool::test
