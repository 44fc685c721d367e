// Tables of the pool: readable from the start, writable where they are opened, and data of the process only there.
#include "slabpool/memory/virtual_array.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <optional>

#include "slabpool/memory/system_files.hpp"

namespace slabpool {
namespace {

constexpr std::size_t kCount = std::size_t{64} << 20;  // 512 MiB of words
constexpr std::size_t kChunk = (std::size_t{64} << 10) / sizeof(std::uint64_t);

std::uint64_t data_kib() { return SystemFile("/proc/self/status").number_of("VmData:").value_or(0); }

// The signal that ends a child process that calls f(), 0 if none.
template <typename F>
int signal_of(F&& f) {
  const pid_t child = fork();
  if (child == 0) {
    (void)signal(SIGSEGV, SIG_DFL);  // a sanitizer's own handler would report it
    f();
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST(VirtualArray, EveryEntryReadsAsZero) {
  const VirtualArray<std::uint64_t> array(kCount);
  for (std::size_t i = 0; i < kCount; i += kCount / 1000) EXPECT_EQ(array[i], 0U) << i;
  EXPECT_EQ(array[kCount - 1], 0U);
}

TEST(VirtualArray, OnlyOpenEntriesAreWritable) {
  VirtualArray<std::uint64_t> array(kCount);
  ASSERT_TRUE(array.open(3 * kChunk, 3 * kChunk + 1));
  array[3 * kChunk] = 7;
  array[4 * kChunk - 1] = 8;  // the rest of the chunk
  EXPECT_EQ(array[3 * kChunk] + array[4 * kChunk - 1], 15U);
  EXPECT_EQ(signal_of([&] { array[3 * kChunk - 1] = 1; }), SIGSEGV);
  EXPECT_EQ(signal_of([&] { array[4 * kChunk] = 1; }), SIGSEGV);
}

TEST(VirtualArray, OpeningAgainAndAcrossOpenChunksKeepsWhatIsThere) {
  VirtualArray<std::uint64_t> array(kCount);
  ASSERT_TRUE(array.open(2 * kChunk, 2 * kChunk + 1));
  array[2 * kChunk] = 5;
  ASSERT_TRUE(array.open(0, 5 * kChunk));
  ASSERT_TRUE(array.open(2 * kChunk, 2 * kChunk + 1));
  EXPECT_EQ(array[2 * kChunk], 5U);
  for (const std::size_t i : {std::size_t{0}, kChunk, 3 * kChunk, 5 * kChunk - 1}) array[i] = i + 1;
  EXPECT_EQ(array[5 * kChunk - 1], 5 * kChunk);
  ASSERT_TRUE(array.open(kCount - 1, kCount));
  array[kCount - 1] = 9;
}

TEST(VirtualArray, CountsAsDataOnlyWhereItIsOpen) {
  if (data_kib() == 0) GTEST_SKIP() << "/proc/self/status cannot be read";
  const std::uint64_t before = data_kib();
  VirtualArray<std::uint64_t> array(kCount);
  ASSERT_TRUE(array.open(0, 1));
  ASSERT_TRUE(array.open(kCount / 2, kCount / 2 + 1));
  EXPECT_LT(data_kib() - before, 1024U);  // of 512 MiB
}

TEST(VirtualArray, ARefusalIsAnAnswerAndCanBeTriedAgain) {
  VirtualArray<std::uint64_t> array(kCount);
  ASSERT_TRUE(array.open(0, 1));
  array[0] = 3;
  struct rlimit old {};
  ASSERT_EQ(getrlimit(RLIMIT_DATA, &old), 0);
  struct rlimit none = old;
  none.rlim_cur = 4096;  // with 0 the kernel looks at the hard limit
  ASSERT_EQ(setrlimit(RLIMIT_DATA, &none), 0);
  const bool refused = !array.open(kCount / 2, kCount / 2 + 1);
  ASSERT_EQ(setrlimit(RLIMIT_DATA, &old), 0);
  EXPECT_TRUE(refused);
  EXPECT_EQ(array[0], 3U);
  EXPECT_EQ(array[kCount / 2], 0U);
  EXPECT_TRUE(array.open(kCount / 2, kCount / 2 + 1));
  array[kCount / 2] = 4;
}

TEST(VirtualArray, ChunksThatLieWholeInWhatIsClosedReadAsZeroAgain) {
  VirtualArray<std::uint64_t> array(kCount);
  ASSERT_TRUE(array.open(0, 4 * kChunk));
  for (std::size_t i = 0; i < 4 * kChunk; ++i) array[i] = i + 1;
  const std::size_t open = array.open_bytes();
  array.close(1, 3 * kChunk - 1);
  EXPECT_EQ(open - array.open_bytes(), kChunk * sizeof(std::uint64_t));
  for (std::size_t i = 0; i < 4 * kChunk; ++i) EXPECT_EQ(array[i], i / kChunk == 1 ? 0 : i + 1) << i;
  array.close(kChunk, 2 * kChunk);  // is closed
  ASSERT_TRUE(array.open(kChunk + 5, kChunk + 6));
  EXPECT_EQ(array.open_bytes(), open);
  array[kChunk + 5] = 7;
  array.close(0, 0);
  EXPECT_EQ(array[0], 1U);
}

TEST(VirtualArray, OverBorrowedMemoryEverythingIsWritable) {
  alignas(65536) static std::uint64_t words[4 * kChunk];
  VirtualArray<std::uint64_t> array(4 * kChunk, words);
  ASSERT_TRUE(array.open(kChunk, 2 * kChunk));
  array[kChunk] = 1;
  EXPECT_EQ(words[kChunk], 1U);
}

}  // namespace
}  // namespace slabpool
