// Host memory: committed bytes are usable, others fault, and decommitted bytes read as zero after the next commit.
#include "slabpool/memory/host_memory.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>

#include "support/fake_memory.hpp"

namespace slabpool {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

std::unique_ptr<HostMemory> make(std::size_t bytes) {
  HostMemoryOptions options;
  options.reserve = options.minimum = bytes;
  Error error;
  return HostMemory::create(options, error);
}

// The signal that ends a child process that reads one byte, 0 if it can.
int signal_of_read(const std::byte* address) {
  const pid_t child = fork();
  if (child == 0) {
    (void)signal(SIGSEGV, SIG_DFL);  // a sanitizer's own handler would report it
    (void)signal(SIGBUS, SIG_DFL);
    const volatile std::byte* p = address;
    const std::byte byte = *p;
    _exit(byte == std::byte{0} ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST(HostMemory, ReservesAnAlignedRange) {
  const auto memory = make(64 * kMiB);
  ASSERT_NE(memory, nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->base()) % (2 * kMiB), 0U);
  EXPECT_EQ(memory->address_space(), 64 * kMiB);
}

TEST(HostMemory, CommittedPagesAreZeroAndWritable) {
  const auto memory = make(16 * kMiB);
  ASSERT_TRUE(memory->commit(3 * kPageSize, 5 * kPageSize));
  std::byte* data = memory->base() + 3 * kPageSize;
  EXPECT_TRUE(test::all_bytes(data, 0, 5 * kPageSize));
  std::memset(data, 0x5a, 5 * kPageSize);
  EXPECT_TRUE(test::all_bytes(data, 0x5a, 5 * kPageSize));
}

TEST(HostMemory, PagesThatCameBackReadAsZero) {
  const auto memory = make(16 * kMiB);
  ASSERT_TRUE(memory->commit(0, 8 * kPageSize));
  std::memset(memory->base(), 0x5a, 8 * kPageSize);
  ASSERT_TRUE(memory->decommit(2 * kPageSize, 3 * kPageSize));
  ASSERT_TRUE(memory->commit(2 * kPageSize, 3 * kPageSize));
  EXPECT_TRUE(test::all_bytes(memory->base(), 0x5a, 2 * kPageSize));
  EXPECT_TRUE(test::all_bytes(memory->base() + 2 * kPageSize, 0, 3 * kPageSize));
  EXPECT_TRUE(test::all_bytes(memory->base() + 5 * kPageSize, 0x5a, 3 * kPageSize));
}

TEST(HostMemory, WhatIsNotCommittedFaults) {
  const auto memory = make(16 * kMiB);
  ASSERT_TRUE(memory->commit(0, 2 * kPageSize));
  EXPECT_EQ(signal_of_read(memory->base()), 0);
  EXPECT_EQ(signal_of_read(memory->base() + 2 * kPageSize), SIGSEGV);
  ASSERT_TRUE(memory->decommit(0, kPageSize));
  EXPECT_EQ(signal_of_read(memory->base()), SIGSEGV);
  EXPECT_EQ(signal_of_read(memory->base() + kPageSize), 0);
}

TEST(HostMemory, TakesLessAddressSpaceIfTheSystemHasNoMore) {
  HostMemoryOptions options;
  options.reserve = std::size_t{1} << 52;  // more than a process can have
  options.minimum = 16 * kMiB;
  Error error;
  const auto memory = HostMemory::create(options, error);
  ASSERT_NE(memory, nullptr);
  EXPECT_GE(memory->address_space(), options.minimum);
  EXPECT_LT(memory->address_space(), options.reserve);
}

TEST(HostMemory, SaysWhyWhenTheSystemRefuses) {
  HostMemoryOptions options;
  options.reserve = options.minimum = std::size_t{1} << 52;
  Error error;
  EXPECT_EQ(HostMemory::create(options, error), nullptr);
  EXPECT_EQ(error.status, Status::system_refused);
  EXPECT_EQ(error.system_errno, ENOMEM);
}

TEST(HostMemory, ANumaNodeThatDoesNotExistIsAnError) {
  for (const int node : {1000, 1023, 1024, 1 << 30}) {
    HostMemoryOptions options;
    options.reserve = options.minimum = 16 * kMiB;
    options.numa_node = node;
    Error error;
    EXPECT_EQ(HostMemory::create(options, error), nullptr) << node;
    EXPECT_NE(error.system_errno, 0) << node;
  }
}

TEST(HostMemory, TheLastRefusalIsRemembered) {
  const auto memory = make(16 * kMiB);
  EXPECT_EQ(memory->refusal().status, Status::ok);
  // The kernel refuses mprotect of a range that is not mapped any more.
  ASSERT_EQ(munmap(memory->base(), kPageSize), 0);
  EXPECT_FALSE(memory->commit(0, kPageSize));
  EXPECT_EQ(memory->refusal().status, Status::system_refused);
  EXPECT_EQ(memory->refusal().system_errno, ENOMEM);
}

TEST(HostMemory, HugePagesMayBeLeftOut) {
  HostMemoryOptions options;
  options.reserve = options.minimum = 16 * kMiB;
  options.huge_pages = false;
  Error error;
  const auto memory = HostMemory::create(options, error);
  ASSERT_NE(memory, nullptr);
  ASSERT_TRUE(memory->commit(0, 4 * kMiB));
  std::memset(memory->base(), 1, 4 * kMiB);
}

}  // namespace
}  // namespace slabpool
