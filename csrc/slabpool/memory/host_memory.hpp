// Host memory: anonymous private pages of this process.
//
// The range is reserved without access; commit() opens it with mprotect. So an access outside committed memory faults,
// resident bytes never exceed committed bytes, and a system with strict overcommit charges only what is committed.
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
  // Null if the system refuses `minimum` bytes, has larger pages than kPageSize, or lacks the NUMA node.
  static std::unique_ptr<HostMemory> create(const HostMemoryOptions& options, Error& error);
  ~HostMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;

 private:
  HostMemory() = default;

  void* mapping_ = nullptr;  // what mmap returned; base_ is this, rounded up to 2 MiB
  std::size_t mapping_bytes_ = 0;
};

}  // namespace slabpool
