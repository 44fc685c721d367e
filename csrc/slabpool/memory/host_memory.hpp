// Host memory: anonymous private pages of this process.
//
// The range is reserved without access; commit() opens it with mprotect. So an access outside committed memory faults, but
// for holes; resident bytes never exceed committed bytes while no code writes to memory that it does not hold. A system with
// strict overcommit charges what is committed, and holes.
#pragma once

#include <memory>

#include "slabpool/memory/memory_resource.hpp"

namespace slabpool {

struct HostMemoryOptions {
  std::size_t reserve = 0;  // bytes of address space wanted; halved until the system grants it
  std::size_t minimum = 0;  // bytes below which creation fails
  bool huge_pages = true;   // ask for transparent huge pages
  int numa_node = -1;       // bind to this node; -1: the system chooses
  int preferred_node = -1;  // prefer this node, if the system permits it and the node has room
};

class HostMemory final : public MemoryResource {
 public:
  // Null if the system refuses `minimum` bytes, has larger pages than kMostSystemPage, or lacks the NUMA node.
  static std::unique_ptr<HostMemory> create(const HostMemoryOptions& options, Error& error);
  ~HostMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;
  bool punch_hole(std::size_t offset, std::size_t bytes) noexcept override;
  bool fill_hole(std::size_t offset, std::size_t bytes) noexcept override;
  void discard(std::size_t offset, std::size_t bytes) noexcept override;

 private:
  HostMemory() = default;

  void* mapping_ = nullptr;  // what mmap returned; base_ is this, rounded up to 2 MiB
  std::size_t mapping_bytes_ = 0;
};

}  // namespace slabpool
