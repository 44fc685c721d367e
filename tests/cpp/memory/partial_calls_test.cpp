// A pool on a kernel that refuses the k-th mprotect, madvise or fallocate after it has changed a half of the range, for
// every k. This program's definitions of those functions come before libc's.
//
// Whatever is refused: figures add up, every byte of every block that is handed out can be written, and nothing is left at
// the end.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "slabpool/memory/host_memory.hpp"
#include "slabpool/memory/shared_memory.hpp"
#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"

namespace {

// Calls of this thread until the next one is refused, and how many are refused from then on.
struct Refusals {
  std::string call;  // the name of a function, or "*"
  int before = 0;
  int times = 0;
  int refused = 0;
};
thread_local Refusals* refusals = nullptr;

bool refuses(const char* call) {
  if (refusals == nullptr || refusals->times == 0) return false;
  if (refusals->call != "*" && refusals->call != call) return false;
  if (refusals->before > 0) {
    --refusals->before;
    return false;
  }
  --refusals->times;
  ++refusals->refused;
  return true;
}

// Whole pages of the system.
std::size_t half(std::size_t bytes) { return bytes / 2 & ~std::size_t{4095}; }

}  // namespace

extern "C" int mprotect(void* address, std::size_t bytes, int protection) noexcept {
  const bool refused = refuses("mprotect");
  const std::size_t part = refused ? half(bytes) : bytes;
  const long result = part != 0 ? syscall(SYS_mprotect, address, part, protection) : 0;
  if (refused) errno = ENOMEM;
  return refused ? -1 : static_cast<int>(result);
}

extern "C" int madvise(void* address, std::size_t bytes, int advice) noexcept {
  const bool refused = refuses("madvise");
  const std::size_t part = refused ? half(bytes) : bytes;
  const long result = part != 0 ? syscall(SYS_madvise, address, part, advice) : 0;
  if (refused) errno = EAGAIN;
  return refused ? -1 : static_cast<int>(result);
}

extern "C" int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  const bool refused = refuses("fallocate");
  const auto part = refused ? static_cast<off_t>(half(static_cast<std::size_t>(bytes))) : bytes;
  const long result = part != 0 ? syscall(SYS_fallocate, fd, mode, offset, part) : 0;
  if (refused) errno = ENOSPC;
  return refused ? -1 : static_cast<int>(result);
}

namespace slabpool::test {
namespace {

class Refusing {
 public:
  Refusing(std::string call, int nth, int times) : mine_{std::move(call), nth, times} {
    refusals = &mine_;
  }
  Refusing(const Refusing&) = delete;
  Refusing& operator=(const Refusing&) = delete;
  ~Refusing() { refusals = nullptr; }
  int refused() const { return mine_.refused; }
  void end() { mine_.times = 0; }

 private:
  Refusals mine_;
};

// ---- one resource

template <typename Make>
void expect_both_calls_repair(Make make) {
  constexpr std::size_t kBytes = 8 * kPageSize;
  for (const char* call : {"mprotect", "madvise", "fallocate"}) {
    for (int nth = 0; nth < 3; ++nth) {
      SCOPED_TRACE(std::string(call) + " " + std::to_string(nth));
      const std::unique_ptr<MemoryResource> memory = make();
      ASSERT_NE(memory, nullptr);
      const auto write = [&] { std::memset(memory->base(), 0x5a, kBytes); };
      {
        const Refusing refusing(call, nth, 1);
        if (!memory->commit(0, kBytes)) {
          EXPECT_EQ(refusing.refused(), 1);
          EXPECT_NE(memory->refusal().system_errno, 0);
          ASSERT_TRUE(memory->decommit(0, kBytes));
          EXPECT_EQ(memory->held_bytes(), 0U);
          ASSERT_TRUE(memory->commit(0, kBytes));
        }
        EXPECT_TRUE(all_bytes(memory->base(), 0, kBytes));
        write();
      }
      {
        const Refusing refusing(call, nth, 1);
        if (!memory->decommit(0, kBytes)) {
          EXPECT_EQ(refusing.refused(), 1);
          ASSERT_TRUE(memory->commit(0, kBytes));
          write();
          ASSERT_TRUE(memory->decommit(0, kBytes));
        }
      }
      EXPECT_EQ(memory->held_bytes(), 0U);
      ASSERT_TRUE(memory->commit(0, kBytes));
      EXPECT_TRUE(all_bytes(memory->base(), 0, kBytes));
    }
  }
}

TEST(PartialCalls, OfHostMemoryAreRepairedByEitherCall) {
  expect_both_calls_repair([] {
    HostMemoryOptions options;
    options.reserve = options.minimum = 16 * kMiB;
    Error error;
    return HostMemory::create(options, error);
  });
}

TEST(PartialCalls, OfSharedMemoryAreRepairedByEitherCall) {
  expect_both_calls_repair([] {
    Error error;
    return SharedMemory::create(16 * kMiB, 16 * kMiB, error);
  });
}

TEST(PartialCalls, SharedMemoryHoldsWhatIsWrittenIntoHolesUntilItIsDiscarded) {
  Error error;
  const auto memory = SharedMemory::create(16 * kMiB, 16 * kMiB, error);
  ASSERT_NE(memory, nullptr);
  ASSERT_TRUE(memory->commit(0, kPageSize));
  std::memset(memory->base(), 7, kPageSize);
  EXPECT_EQ(memory->held_bytes(), kPageSize);
  const std::string stray(kPageSize, 'x');
  ASSERT_EQ(pwrite(memory->file().fd(), stray.data(), stray.size(), 8 * kMiB),
            static_cast<ssize_t>(stray.size()));
  EXPECT_EQ(memory->held_bytes(), 2 * kPageSize);
  memory->discard(kPageSize, 16 * kMiB - kPageSize);
  EXPECT_EQ(memory->held_bytes(), kPageSize);
  EXPECT_TRUE(all_bytes(memory->base(), 7, kPageSize));
}

// ---- a pool

class PartialCallsOfAPool : public testing::TestWithParam<bool> {
 protected:
  static constexpr std::uint64_t kCapacity = 4 * kMiB;

  void SetUp() override {
    PoolOptions options;
    options.capacity = kCapacity;
    options.shared = GetParam();
    pool = make_pool(options);
  }

  void check() {
    EXPECT_STREQ(pool->verify(), nullptr);
    const Stats stats = pool->stats();
    expect_adds_up(stats);
    EXPECT_EQ(held(stats), held_);
    EXPECT_LE(pool->quarantined_bytes(), stats.cached);
  }
  // Writes all of the block: a page without memory or access ends the test.
  void write(Block& block) { std::memset(block.data, 0x5a, block.bytes); }
  void take(std::uint64_t nbytes, Handle request = {}) {
    AllocateSpec spec = bytes(nbytes, request);
    spec.zero = true;
    const Allocation made = pool->allocate(spec);
    if (made.block == nullptr) {
      EXPECT_TRUE(made.status == Status::system_refused || made.status == Status::exhausted)
          << static_cast<int>(made.status);
      return check();
    }
    EXPECT_TRUE(all_bytes(made.block->data, 0, nbytes)) << nbytes;
    write(*made.block);
    blocks.push_back(made.block);
    held_ += made.block->bytes;
    check();
  }
  void drop(std::size_t i) {
    if (i >= blocks.size()) return;
    held_ -= blocks[i]->bytes;
    pool->drop_view(*blocks[i]);
    blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
    check();
  }
  void trim() {
    (void)pool->trim();
    check();
  }
  void grow(Block& block, Handle request, std::uint64_t nbytes) {
    std::uint64_t usable = 0;
    const std::uint64_t before = block.bytes;
    const Status status = pool->grow(block, request, nbytes, usable);
    EXPECT_TRUE(status == Status::ok || status == Status::system_refused || status == Status::exhausted);
    if (status == Status::ok) {
      EXPECT_GE(usable, nbytes);
    }
    held_ += block.bytes - before;
    write(block);
    check();
  }

  // Every way of the pool to its memory resource: spans, slabs, ranges, tensors that grow, making room, trimming.
  void work() {
    for (const std::uint64_t nbytes : {kMiB, kMiB / 2, std::uint64_t{300'000}, std::uint64_t{5000}})
      take(nbytes);
    drop(1);
    trim();
    // The system may refuse to open the tables for a first request and for a range.
    Handle request;
    const bool opened = pool->open(Opening{.id = "grows"}.spec(), request) == Status::ok;
    Block* const grows = opened ? pool->open_growing(request, 2 * kMiB).block : nullptr;
    if (grows != nullptr) {
      for (const std::uint64_t nbytes : {kMiB / 4, kMiB / 2, kMiB}) grow(*grows, request, nbytes);
    }
    take(kMiB);
    take(2 * kMiB);
    drop(0);
    if (opened) pool->close_request(request, false);
    if (grows != nullptr) {
      held_ -= grows->bytes;
      pool->drop_view(*grows);
    }
    check();
    trim();
    Handle reserved;
    if (pool->open(Opening{.id = "reserves", .reserve = kMiB}.spec(), reserved) == Status::ok) {
      const std::size_t before = blocks.size();
      for (int i = 0; i < 12; ++i) take(40'000, reserved);
      // Before the views, so that each block goes back with its view.
      pool->close_request(reserved, false);
      while (blocks.size() > before) drop(blocks.size() - 1);
      check();
    }
    take(kCapacity / 2);
    trim();
    while (!blocks.empty()) drop(0);
    trim();
  }
  // After the system has stopped refusing.
  void expect_nothing_left() {
    trim();
    EXPECT_EQ(pool->stats().committed, 0U);
    EXPECT_EQ(pool->quarantined_bytes(), 0U);
    EXPECT_EQ(pool->held_bytes(), 0U);
    take(kCapacity);
    EXPECT_EQ(blocks.size(), 1U) << "all of the pool can be used again";
    while (!blocks.empty()) drop(0);
    trim();
    EXPECT_EQ(pool->held_bytes(), 0U);
  }

  std::unique_ptr<Pool> pool;
  std::vector<Block*> blocks;
  std::uint64_t held_ = 0;
};

// One refusal; two in a row, so that the undoing is refused as well; and all until the work is done.
TEST_P(PartialCallsOfAPool, EveryCallMayBeRefused) {
  bool quarantined = false;
  for (const int times : {1, 2, 3, 1 << 20}) {
    int nth = 0;
    for (bool refused = true; refused && !HasFatalFailure(); ++nth) {
      SCOPED_TRACE("call " + std::to_string(nth) + ", refused " + std::to_string(times));
      SetUp();
      Refusing refusing("*", nth, times);
      work();
      refused = refusing.refused() != 0;
      refusing.end();
      quarantined = quarantined || pool->quarantined_bytes() != 0;
      expect_nothing_left();
      if (HasFailure()) return;
    }
    EXPECT_GT(nth, 10) << "the work makes that many system calls";
  }
  EXPECT_TRUE(quarantined) << "some refusal could not be undone";
}

TEST_P(PartialCallsOfAPool, ARefusedAllocationIsTheSystemsRefusal) {
  const Refusing refusing("*", 0, 1 << 20);
  const Allocation made = pool->allocate(bytes(kMiB));
  EXPECT_EQ(made.block, nullptr);
  EXPECT_EQ(made.status, Status::system_refused);
  EXPECT_NE(pool->refusal().system_errno, 0);
}

INSTANTIATE_TEST_SUITE_P(Memory, PartialCallsOfAPool, testing::Values(false, true),
                         [](const auto& tested) { return tested.param ? "Shared" : "Host"; });

}  // namespace
}  // namespace slabpool::test
