// Limits of control groups, read from made-up trees of files, and kept in a real group where one can be made.
#include "slabpool/memory/memory_groups.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "slabpool/memory/shared_memory.hpp"

namespace slabpool {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr const char* kUnlimited = "9223372036854771712\n";  // of version 1

class MemoryGroupsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/slabpool-groups-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  void put(const std::string& path, std::uint64_t number) { put(path, std::to_string(number) + "\n"); }
  // One mounted hierarchy each, and the group of the process in it.
  void version_2(const std::string& group, const std::string& mount = "/sys/fs/cgroup") {
    put("/proc/self/cgroup", "0::" + group + "\n");
    put("/proc/self/mountinfo",
        "25 1 0:22 / /proc rw - proc proc rw\n"
        "31 23 0:28 / " +
            mount + " rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
  }
  void version_1(const std::string& group, const std::string& mounted = "/") {
    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:" + group + "\n1:cpu,cpuacct:/x\n0::/\n");
    put("/proc/self/mountinfo", "35 31 0:32 " + mounted +
                                    " /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
                                    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
                                    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }
  void usage(const std::string& folder, std::uint64_t bytes, const std::string& stat = {}) {
    put(folder + "/memory.current", bytes);
    put(folder + "/memory.stat", stat);
    put("/proc/meminfo", "MemTotal: 1000 kB\nSwapFree:        0 kB\n");
  }
  MemoryGroups find() const { return MemoryGroups::find(root_); }

  std::string root_;
};

TEST_F(MemoryGroupsTest, NoFilesMeanNoLimit) {
  Error error;
  EXPECT_TRUE(find().limited().empty());
  EXPECT_TRUE(find().admits(~std::uint64_t{0}, error));
  EXPECT_EQ(find().full_for(~std::uint64_t{0} / 2), nullptr);
  EXPECT_TRUE(error.text.empty());
}

TEST_F(MemoryGroupsTest, MaxIsNoLimit) {
  version_2("/a");
  put("/sys/fs/cgroup/a/memory.max", "max\n");
  EXPECT_TRUE(find().limited().empty());
  version_1("/a");
  put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", kUnlimited);
  EXPECT_TRUE(find().limited().empty());
}

TEST_F(MemoryGroupsTest, VersionTwoHasTheLimitsOfEveryParent) {
  version_2("/jobs/7/main");
  put("/sys/fs/cgroup/jobs/memory.max", 64 * kMiB);
  put("/sys/fs/cgroup/jobs/memory.current", 60 * kMiB);
  put("/sys/fs/cgroup/jobs/7/memory.max", 512 * kMiB);
  put("/sys/fs/cgroup/jobs/7/main/memory.max", "max\n");
  const MemoryGroups groups = find();
  ASSERT_EQ(groups.limited().size(), 2U);
  EXPECT_EQ(groups.limited()[0].folder, "/sys/fs/cgroup/jobs/7");
  EXPECT_EQ(groups.limited()[1].folder, "/sys/fs/cgroup/jobs");
  Error error;
  EXPECT_TRUE(groups.admits(64 * kMiB, error));
  EXPECT_FALSE(groups.admits(65 * kMiB, error));
  EXPECT_EQ(error.status, Status::system_refused);
  for (const char* part : {"65 MiB", "memory.max of /sys/fs/cgroup/jobs is 64 MiB", "60 MiB is in use",
                           "Make the pool smaller"})
    EXPECT_NE(error.text.find(part), std::string::npos) << error.text;
}

TEST_F(MemoryGroupsTest, VersionOneIsFoundBesideVersionTwo) {
  version_1("/docker/c1");
  put("/sys/fs/cgroup/memory/docker/c1/memory.limit_in_bytes", 32 * kMiB);
  put("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", kUnlimited);
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", kUnlimited);
  const MemoryGroups groups = find();
  ASSERT_EQ(groups.limited().size(), 1U);
  EXPECT_EQ(groups.limited()[0].folder, "/sys/fs/cgroup/memory/docker/c1");
  EXPECT_EQ(groups.limited()[0].limit, 32 * kMiB);
}

// In a container without a group namespace the path is the host's, and only the container's group is mounted.
TEST_F(MemoryGroupsTest, AMountedGroupStandsForItsPath) {
  version_1("/docker/c1", "/docker/c1");
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", 32 * kMiB);
  ASSERT_EQ(find().limited().size(), 1U);
  EXPECT_EQ(find().limited()[0].folder, "/sys/fs/cgroup/memory");
  version_1("/docker/c1/inner", "/docker/c1");
  put("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", 16 * kMiB);
  EXPECT_EQ(find().limited().size(), 2U);
  version_1("/docker/c10", "/docker/c1");  // not below it, in spite of the name
  ASSERT_EQ(find().limited().size(), 1U);
  EXPECT_EQ(find().limited()[0].folder, "/sys/fs/cgroup/memory");
}

TEST_F(MemoryGroupsTest, APathOutsideTheMountMeansTheMountedGroup) {
  version_2("/../../elsewhere");
  put("/sys/fs/cgroup/memory.max", 8 * kMiB);
  ASSERT_EQ(find().limited().size(), 1U);
  EXPECT_EQ(find().limited()[0].limit, 8 * kMiB);
}

TEST_F(MemoryGroupsTest, NamesMayHaveSpacesInThem) {
  version_2("/my group", "/sys/fs/my\\040groups");
  put("/sys/fs/my groups/my group/memory.max", 8 * kMiB);
  ASSERT_EQ(find().limited().size(), 1U);
}

TEST_F(MemoryGroupsTest, ALineOfAnyShapeIsPassedOver) {
  put("/proc/self/cgroup", "\n:\n::\n0\n0::\n7:memory\n");
  put("/proc/self/mountinfo",
      "\n-\n- cgroup2\n1 2 3 4 5 6 - cgroup2 x\n1 2 3 / /a b - cgroup2 cgroup2 rw\n");
  put("/a/memory.max", 8 * kMiB);
  EXPECT_EQ(find().limited().size(), 1U);  // "0::" is the group that is mounted
}

TEST_F(MemoryGroupsTest, RoomIsTheLimitLessTheUsageLessAMargin) {
  version_2("/a");
  put("/sys/fs/cgroup/a/memory.max", 64 * kMiB);
  usage("/sys/fs/cgroup/a", 40 * kMiB);
  const MemoryGroups groups = find();
  EXPECT_EQ(groups.full_for(22 * kMiB), nullptr);  // the margin is 2 MiB
  EXPECT_EQ(groups.full_for(22 * kMiB + 1), &groups.limited()[0]);
  usage("/sys/fs/cgroup/a", 70 * kMiB);  // the limit was lowered below the usage
  EXPECT_NE(groups.full_for(1), nullptr);
}

TEST_F(MemoryGroupsTest, PagesOfFilesGiveWay) {
  version_2("/a");
  put("/sys/fs/cgroup/a/memory.max", 64 * kMiB);
  const std::string stat =
      "anon 1\nfile 20000000\nshmem 9000000\ninactive_file 8388608\nactive_file 4194304\n";
  usage("/sys/fs/cgroup/a", 60 * kMiB, stat);
  EXPECT_EQ(find().full_for(14 * kMiB), nullptr);
  EXPECT_NE(find().full_for(14 * kMiB + 1), nullptr);
}

TEST_F(MemoryGroupsTest, SwapThatTheGroupMayUseIsRoom) {
  version_2("/a");
  put("/sys/fs/cgroup/a/memory.max", 64 * kMiB);
  usage("/sys/fs/cgroup/a", 60 * kMiB);
  put("/proc/meminfo", "SwapFree:   102400 kB\n");
  EXPECT_EQ(find().full_for(100 * kMiB), nullptr);
  put("/sys/fs/cgroup/a/memory.swap.max", 10 * kMiB);
  put("/sys/fs/cgroup/a/memory.swap.current", 4 * kMiB);
  EXPECT_EQ(find().full_for(8 * kMiB), nullptr);
  EXPECT_NE(find().full_for(8 * kMiB + 1), nullptr);
}

TEST_F(MemoryGroupsTest, VersionOneCountsSwapAndFilesOfTheWholeGroup) {
  version_1("/a");
  const std::string folder = "/sys/fs/cgroup/memory/a";
  put(folder + "/memory.limit_in_bytes", 64 * kMiB);
  put(folder + "/memory.usage_in_bytes", 60 * kMiB);
  put(folder + "/memory.stat",
      "inactive_file 1\nactive_file 1\ntotal_inactive_file 3145728\ntotal_active_file 1048576\n");
  put("/proc/meminfo", "SwapFree:   1024 kB\n");
  EXPECT_EQ(find().full_for(7 * kMiB), nullptr);  // 4 + 4 + 1 - 2
  EXPECT_NE(find().full_for(7 * kMiB + 1), nullptr);
  put(folder + "/memory.memsw.limit_in_bytes", 64 * kMiB);
  put(folder + "/memory.memsw.usage_in_bytes", 60 * kMiB);
  EXPECT_EQ(find().full_for(6 * kMiB), nullptr);
  EXPECT_NE(find().full_for(6 * kMiB + 1), nullptr);
}

TEST_F(MemoryGroupsTest, WhatCannotBeReadIsUnlimited) {
  version_2("/a");
  put("/sys/fs/cgroup/a/memory.max", 64 * kMiB);
  usage("/sys/fs/cgroup/a", 64 * kMiB);
  const MemoryGroups groups = find();
  ASSERT_NE(groups.full_for(kMiB), nullptr);
  std::filesystem::remove(root_ + "/sys/fs/cgroup/a/memory.current");
  EXPECT_EQ(groups.full_for(kMiB), nullptr);
}

TEST_F(MemoryGroupsTest, SharedMemoryRefusesWhatAFullGroupHasNoRoomFor) {
  version_2("/a");
  put("/sys/fs/cgroup/a/memory.max", 64 * kMiB);
  usage("/sys/fs/cgroup/a", 40 * kMiB);
  Error error;
  const auto memory = SharedMemory::create(256 * kMiB, kMiB, error, find());
  ASSERT_NE(memory, nullptr) << error.text;
  ASSERT_TRUE(memory->commit(0, 4 * kMiB));
  EXPECT_FALSE(memory->commit(4 * kMiB, 23 * kMiB));
  const Error why = memory->refusal();
  EXPECT_EQ(why.status, Status::system_refused);
  EXPECT_NE(why.text.find("memory.max of /sys/fs/cgroup/a is 64 MiB, of which 40 MiB"),
            std::string::npos)
      << why.text;
  struct stat file {};
  ASSERT_EQ(fstat(memory->file().fd(), &file), 0);
  EXPECT_EQ(static_cast<std::uint64_t>(file.st_blocks) * 512, 4 * kMiB);  // nothing is half made
  usage("/sys/fs/cgroup/a", 20 * kMiB);
  EXPECT_TRUE(memory->commit(4 * kMiB, 23 * kMiB));
}

// A group of the kernel's own, with a limit of 64 MiB, in which a child commits shared memory until it is refused.
TEST(MemoryGroupsOfTheKernel, SharedMemoryIsRefusedBeforeTheKernelKills) {
  std::ifstream mounts("/proc/self/mountinfo");
  const std::string all((std::istreambuf_iterator<char>(mounts)), std::istreambuf_iterator<char>());
  const bool version_1 = all.find("cgroup rw,memory") != std::string::npos;
  const std::string folder =
      (version_1 ? "/sys/fs/cgroup/memory/slabpool-test-" : "/sys/fs/cgroup/slabpool-test-") +
      std::to_string(getpid());
  if (mkdir(folder.c_str(), 0755) != 0) GTEST_SKIP() << "no control group can be made at " << folder;
  std::ofstream(folder + (version_1 ? "/memory.limit_in_bytes" : "/memory.max"))
      << 64 * kMiB << std::flush;
  std::ifstream check(folder + (version_1 ? "/memory.limit_in_bytes" : "/memory.max"));
  std::uint64_t limit = 0;
  check >> limit;
  if (limit != 64 * kMiB) {
    (void)rmdir(folder.c_str());
    GTEST_SKIP() << "the limit of " << folder << " cannot be set";
  }
  const pid_t child = fork();
  if (child == 0) {
    std::ofstream(folder + "/cgroup.procs") << getpid() << std::flush;
    Error error;
    const auto memory = SharedMemory::create(1024 * kMiB, kMiB, error);
    if (memory == nullptr) _exit(2);
    std::uint64_t done = 0;
    while (done < 1024 * kMiB && memory->commit(done, kMiB)) done += kMiB;
    const bool named = memory->refusal().text.find(folder) != std::string::npos;
    if (!named || done < 32 * kMiB || done > 64 * kMiB) _exit(3);
    if (memory->commit(done, 512 * kMiB)) _exit(4);  // more than fits, at once
    if (!memory->decommit(0, 16 * kMiB) || !memory->commit(0, 8 * kMiB)) _exit(5);
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(rmdir(folder.c_str()), 0);
}

}  // namespace
}  // namespace slabpool
