// A pool on a driver that refuses its k-th call, for every k: memory is mapped and registered granule by granule, so a
// refusal leaves the granules before it changed.
//
// Whatever is refused: figures add up, every granule of every block that is handed out is accessible, and nothing is left
// at the end.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/pool/pool.hpp"
#include "support/pool_help.hpp"
#include "support/standin.hpp"

namespace slabpool::test {
namespace {

using namespace slabpool::cuda;

struct Refused {
  std::vector<const char*> calls;  // refused at the same time, each from its nth call on
  MemoryKind memory;
};

class PartialDriverCalls : public StandinTest, public testing::WithParamInterface<Refused> {
 protected:
  static constexpr std::uint64_t kCapacity = 15 * kMiB;  // of pinned memory: granules of 1 MiB

  void make() {
    PoolOptions options;
    options.capacity = kCapacity;
    options.memory = GetParam().memory;
    options.device = 0;
    pool = make_pool(options);
  }
  bool on_device() const { return GetParam().memory == MemoryKind::device; }
  void write(const Block& block) {
    if (!on_device()) {
      std::memset(block.data, 0x5a, block.bytes);
      if (GetParam().calls[0] == std::string("cuCtxPushCurrent")) return;  // refused to the test, too
      const InContext context(*driver, 0);
      DevicePointer seen = 0;
      for (std::uint64_t i = 0; i < block.bytes; i += kPageSize)
        ASSERT_EQ(driver->cuMemHostGetDevicePointer(&seen, block.data + i, 0), kSuccess) << i;
      return;
    }
    const auto at = reinterpret_cast<std::uint64_t>(block.data);
    for (std::uint64_t i = 0; i < block.bytes; i += kPageSize)
      ASSERT_TRUE(standin_poke(at + i, "used", 4)) << i << " of " << block.bytes;
  }
  void check() {
    EXPECT_STREQ(pool->verify(), nullptr);
    const Stats stats = pool->stats();
    expect_adds_up(stats);
    EXPECT_EQ(held(stats), held_);
    EXPECT_LE(pool->quarantined_bytes(), stats.cached);
    if (on_device()) {
      EXPECT_LE(standin_used(0), stats.committed) << "all memory is counted";
    }
  }
  void take(std::uint64_t nbytes) {
    const Allocation made = pool->allocate(bytes(nbytes));
    if (made.block != nullptr) {
      held_ += made.block->bytes;
      blocks.push_back(made.block);
      write(*made.block);
    } else {
      EXPECT_TRUE(made.status == Status::system_refused || made.status == Status::exhausted);
    }
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
  void work() {
    for (const std::uint64_t nbytes : {5 * kMiB, 3 * kMiB, 100'000 + 0 * kMiB, 2 * kMiB}) take(nbytes);
    drop(1);
    trim();
    Handle request;
    ASSERT_EQ(pool->open(Opening{.id = "grows"}.spec(), request), Status::ok);
    const Allocation grows = pool->open_growing(request, 8 * kMiB);
    ASSERT_NE(grows.block, nullptr);
    for (const std::uint64_t nbytes : {kMiB, 3 * kMiB, 5 * kMiB}) {
      std::uint64_t usable = 0;
      const std::uint64_t before = grows.block->bytes;
      const Status status = pool->grow(*grows.block, request, nbytes, usable);
      EXPECT_TRUE(status == Status::ok || status == Status::system_refused ||
                  status == Status::exhausted);
      held_ += grows.block->bytes - before;
      write(*grows.block);
      check();
    }
    take(4 * kMiB);
    drop(0);
    held_ -= grows.block->bytes;
    pool->close_request(request, false);
    pool->drop_view(*grows.block);
    trim();
    take(10 * kMiB);
    while (!blocks.empty()) drop(0);
    trim();
  }

  std::unique_ptr<Pool> pool;
  std::vector<Block*> blocks;
  std::uint64_t held_ = 0;
};

TEST_P(PartialDriverCalls, EveryCallMayBeRefused) {
  int most = 0;
  for (const int times : {1, 2, 1 << 20}) {
    bool refused = true;
    for (int nth = 1; refused && !HasFailure(); ++nth) {
      SCOPED_TRACE("call " + std::to_string(nth) + ", refused " + std::to_string(times));
      make();
      std::uint64_t before = 0;
      for (const char* call : GetParam().calls) {
        before += standin_calls(call);
        standin_fail(call, nth, kUnknown, times);
      }
      work();
      std::uint64_t calls = 0;
      for (const char* call : GetParam().calls) calls += standin_calls(call);
      refused = calls - before >= static_cast<std::uint64_t>(nth);
      standin_clear_faults();
      EXPECT_STREQ(standin_complaints(), "");
      trim();
      EXPECT_EQ(pool->stats().committed, 0u);
      EXPECT_EQ(pool->quarantined_bytes(), 0u);
      EXPECT_EQ(standin_used(0), 0u);
      take(kCapacity);
      EXPECT_EQ(blocks.size(), 1u) << "all of the pool can be used again";
      while (!blocks.empty()) drop(0);
      pool.reset();
      EXPECT_STREQ(standin_leaks(), "");
      most = std::max(most, nth);
    }
  }
  EXPECT_GT(most, 3);
}

INSTANTIATE_TEST_SUITE_P(Device, PartialDriverCalls,
                         testing::Values(Refused{{"cuMemCreate"}, MemoryKind::device},
                                         Refused{{"cuMemMap"}, MemoryKind::device},
                                         Refused{{"cuMemSetAccess"}, MemoryKind::device},
                                         Refused{{"cuMemUnmap"}, MemoryKind::device},
                                         Refused{{"cuMemUnmap", "cuMemMap"}, MemoryKind::device},
                                         Refused{{"cuMemUnmap", "cuMemCreate"}, MemoryKind::device},
                                         Refused{{"cuMemUnmap", "cuMemSetAccess"}, MemoryKind::device},
                                         Refused{{"cuCtxPushCurrent"}, MemoryKind::device}));
INSTANTIATE_TEST_SUITE_P(Pinned, PartialDriverCalls,
                         testing::Values(Refused{{"cuMemHostRegister"}, MemoryKind::pinned},
                                         Refused{{"cuMemHostUnregister"}, MemoryKind::pinned},
                                         Refused{{"cuMemHostRegister", "cuMemHostUnregister"},
                                                 MemoryKind::pinned},
                                         Refused{{"cuCtxPushCurrent"}, MemoryKind::pinned}));

}  // namespace
}  // namespace slabpool::test
