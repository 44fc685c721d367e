// The memory limits of the control groups that this process belongs to (Linux cgroups, version 1 and 2).
//
// A process that touches more than its group may have is ended by the kernel; no system call fails before that. So a
// caller that commits memory for real asks here first. The answer is a reading: other processes of the group allocate
// meanwhile, so it keeps a margin and is not a promise.
//
// What cannot be read counts as unlimited. Limits are looked up once, when the object is made, from the group of the
// process up to the group that is mounted; the usage of the limited ones is read again by each question. Reading takes
// a descriptor for a moment and no heap memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "slabpool/base/error.hpp"

namespace slabpool {

struct MemoryGroup {
  std::string folder;       // "/sys/fs/cgroup/jobs/7"
  bool version_2 = false;   // which files it has
  std::uint64_t limit = 0;  // bytes, when it was looked up
  const char* limit_file() const noexcept { return version_2 ? "memory.max" : "memory.limit_in_bytes"; }
  const char* usage_file() const noexcept {
    return version_2 ? "memory.current" : "memory.usage_in_bytes";
  }
};

class MemoryGroups {
 public:
  // No group is limited.
  MemoryGroups() = default;
  // Those of this process. `root` stands in front of every path that is read: tests put a made-up tree there. Throws
  // std::bad_alloc.
  static MemoryGroups find(const std::string& root = {});

  // Groups with a limit, the process's own first.
  const std::vector<MemoryGroup>& limited() const noexcept { return limited_; }

  // False if `bytes` can never be committed, because a group's limit is lower; `error` then has a text with the numbers,
  // the file and what to do.
  bool admits(std::uint64_t bytes, Error& error) const;

  // The group that has no room for `bytes` more, even if the kernel drops every cached page of files and swaps what it
  // may; null if all have, or none is limited.
  const MemoryGroup* full_for(std::uint64_t bytes) const noexcept;

  // "memory.max of the control group /sys/fs/cgroup/jobs/7 is 512 MiB, of which 500 MiB is in use".
  std::string describe(const MemoryGroup& group) const;

 private:
  std::uint64_t room(const MemoryGroup& group, std::uint64_t enough) const noexcept;

  std::string root_;
  std::vector<MemoryGroup> limited_;
};

}  // namespace slabpool
