// Pools that scrub, pools that check for damage, and pools that keep an event log.
#include "slabpool/pool/pool.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kept;
using test::kMiB;
using test::make_pool;
using test::open;

TEST(PoolScrub, ABlockIsZeroedBeforeReuse) {
  PoolOptions options;
  options.capacity = 4 * kMiB;
  options.scrub_on_release = true;
  const auto pool = make_pool(options);
  for (const std::uint64_t size : {100, 5000, 200'000}) {
    const Handle request = open(*pool, {.devices = {0}});
    Block* block = pool->allocate(kept(size, request)).block;
    Block* alone = pool->allocate(bytes(size)).block;
    Block* retained = pool->allocate(bytes(size, request)).block;
    for (Block* one : {block, alone, retained}) std::memset(one->data, 0x5a, one->bytes);
    pool->close_request(request, false);
    EXPECT_TRUE(test::all_bytes(block->data, 0x5a, size)) << "scrubbed too early";
    (void)pool->ack(request, 0);
    EXPECT_TRUE(test::all_bytes(retained->data, 0x5a, size)) << "a view still reads";
    pool->drop_view(*retained);
    pool->drop_view(*alone);
    std::vector<Block*> out;
    Allocation made;
    while ((made = pool->allocate(bytes(size))).block != nullptr) {
      EXPECT_TRUE(test::all_bytes(made.block->data, 0, made.block->bytes)) << size;
      out.push_back(made.block);
    }
    for (Block* one : out) pool->drop_view(*one);
  }
  expect_all_returned(*pool);
}

TEST(PoolDebug, OverrunsAreFoundAndReturnedBlocksArePoisoned) {
  PoolOptions options;
  options.capacity = 4 * kMiB;
  options.debug = 2;
  const auto pool = make_pool(options);
  AllocateSpec spec = bytes(1000);
  spec.where = {"engine.py", 42};
  Block* fine = pool->allocate(spec).block;
  Block* broken = pool->allocate(spec).block;
  std::memset(fine->data, 1, 1000);
  std::memset(broken->data, 1, 1003);
  EXPECT_TRUE(pool->corruptions().empty());
  testing::internal::CaptureStderr();
  pool->drop_view(*fine);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  testing::internal::CaptureStderr();
  pool->drop_view(*broken);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("engine.py:42"), std::string::npos);
  ASSERT_EQ(pool->corruptions().size(), 1U);
  EXPECT_EQ(pool->corruptions()[0].offset, 0U);
  EXPECT_TRUE(test::all_bytes(fine->data, 0xDB, 1000));
  expect_all_returned(*pool);
}

TEST(PoolDebug, ZeroedMemoryIsZeroAndAligned) {
  PoolOptions options;
  options.capacity = 16 * kMiB;
  options.debug = 1;
  options.scrub_on_release = true;
  const auto pool = make_pool(options);
  for (const std::uint64_t size : {0, 1, 64, 1000, 131'072, 200'000}) {
    for (const std::uint64_t align : {std::uint64_t{64}, std::uint64_t{4096}, kMaxAlign}) {
      for (int i = 0; i < 3; ++i) {
        AllocateSpec spec = bytes(size);
        spec.zero = true;
        spec.align = align;
        Block* block = pool->allocate(spec).block;
        ASSERT_NE(block, nullptr);
        EXPECT_TRUE(test::all_bytes(block->data, 0, size));
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data) % align, 0U);
        std::memset(block->data, 0x5a, size);
        pool->drop_view(*block);
      }
    }
  }
  EXPECT_TRUE(pool->corruptions().empty());
  expect_all_returned(*pool);
}

TEST(PoolEvents, AreInOrder) {
  PoolOptions options;
  options.capacity = kMiB;
  options.events = 64;
  const auto pool = make_pool(options);
  const Handle request = open(*pool, {.devices = {0, 1}});
  Block* viewed = pool->allocate(bytes(100'000, request)).block;
  (void)pool->allocate(kept(50'000, request));
  EXPECT_EQ(pool->allocate(bytes(kMiB)).status, Status::exhausted);
  pool->note_exhausted({}, kMiB);
  (void)pool->ack(request, 0);
  EXPECT_EQ(pool->device_lost(1), 1U);
  pool->close_request(request, false);
  pool->drop_view(*viewed);
  std::vector<EventKind> kinds;
  for (const Event& event : pool->events()) kinds.push_back(event.kind);
  EXPECT_EQ(kinds, (std::vector<EventKind>{EventKind::open, EventKind::allocate, EventKind::allocate,
                                           EventKind::exhausted, EventKind::ack, EventKind::lost,
                                           EventKind::close, EventKind::release, EventKind::retain,
                                           EventKind::free}));
  for (const Event& event : pool->events()) {
    if (event.kind != EventKind::exhausted) {
      EXPECT_EQ(event.generation, request.generation);
    }
  }
}

}  // namespace
}  // namespace slabpool
