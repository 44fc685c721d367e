// Shared memory: pages of one sealed, sparse memfd as long as the reserved range, which peers map whole,
// so that an offset means the same bytes in every process.
//
// Committing allocates the pages: running out of memory is then an answer, and not a signal at the first
// touch. Decommitting punches a hole, which reads as zero. A peer that goes on reading memory it has let
// go of may make the system allocate pages in holes; they go with the next decommit or with the pool.
#pragma once

#include <memory>

#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/memory/shared_file.hpp"

namespace slabpool {

class SharedMemory final : public MemoryResource {
 public:
  // `reserve` is halved until the system grants it, down to `minimum`. Null if it does not; errno says why.
  static std::unique_ptr<SharedMemory> create(std::size_t reserve, std::size_t minimum);
  ~SharedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;

  const SharedFile& file() const noexcept { return *file_; }

 private:
  SharedMemory() = default;

  std::unique_ptr<SharedFile> file_;
  void* mapping_ = nullptr;  // what mmap returned; base_ is this, rounded up to 2 MiB
  std::size_t mapping_bytes_ = 0;
};

}  // namespace slabpool
