// Guards: a write past the end is found and reported, nothing else is, and returned blocks are poisoned.
#include "slabpool/observe/guard.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>

#include "support/fake_memory.hpp"

namespace slabpool {
namespace {

class GuardTest : public testing::Test {
 protected:
  GuardTest() {
    block.data = bytes.data();
    block.bytes = bytes.size();
  }
  // What the guard prints to standard error when the block returns.
  std::string disarm() {
    testing::internal::CaptureStderr();
    guard.disarm(block);
    return testing::internal::GetCapturedStderr();
  }

  std::array<std::byte, 512> bytes{};
  Block block;
  Guard guard;
};

TEST_F(GuardTest, ReportsNothingForAnIntactBlock) {
  guard.arm(block, 100, 7, {"engine.py", 42});
  std::memset(block.data, 0x11, 100);
  EXPECT_EQ(disarm(), "");
  EXPECT_TRUE(guard.found().empty());
}

TEST_F(GuardTest, FindsTheFirstByteWrittenPastTheEnd) {
  for (const std::size_t offset : {std::size_t{0}, std::size_t{13}, kGuard - 1}) {
    guard.arm(block, 100, 7, {"engine.py", 42});
    block.data[100 + offset] = std::byte{1};
    block.data[100 + kGuard - 1] = std::byte{2};
    const std::string said = disarm();
    EXPECT_NE(said.find("byte " + std::to_string(offset) + " past the end of a block of 100 bytes"),
              std::string::npos)
        << said;
    EXPECT_NE(said.find("engine.py:42"), std::string::npos) << said;
    const Corruption last = guard.found().back();
    EXPECT_EQ(last.offset, offset);
    EXPECT_EQ(last.nbytes, 100U);
    EXPECT_EQ(last.generation, 7U);
    EXPECT_EQ(last.address, reinterpret_cast<std::uintptr_t>(block.data));
    EXPECT_EQ(last.file, "engine.py");
    EXPECT_EQ(last.line, 42U);
  }
  EXPECT_EQ(guard.found().size(), 3U);
}

TEST_F(GuardTest, PoisonsTheUsersBytes) {
  guard.arm(block, 200, 1, {});
  std::memset(block.data, 0, 200);
  (void)disarm();
  EXPECT_TRUE(test::all_bytes(block.data, 0xDB, 200));
}

TEST_F(GuardTest, ABlockOfNoBytesWorks) {
  guard.arm(block, 0, 1, {});
  EXPECT_EQ(disarm(), "");
  guard.arm(block, 0, 1, {});
  block.data[0] = std::byte{1};
  EXPECT_NE(disarm(), "");
}

TEST_F(GuardTest, ABlockThatWasNeverArmedIsLeftAlone) {
  EXPECT_EQ(disarm(), "");
  EXPECT_TRUE(test::all_bytes(block.data, 0, block.bytes));
}

TEST_F(GuardTest, EachUseOfABlockHasItsOwnLength) {
  guard.arm(block, 300, 1, {});
  EXPECT_EQ(disarm(), "");
  guard.arm(block, 10, 2, {});
  EXPECT_EQ(disarm(), "");
  EXPECT_TRUE(guard.found().empty());
}

}  // namespace
}  // namespace slabpool
