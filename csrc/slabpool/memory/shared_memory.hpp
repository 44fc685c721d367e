// Shared memory: pages of one sealed, sparse memfd as long as the reserved range. Peers map the whole file, so an
// offset means the same bytes in every process.
//
// commit() allocates the pages, so running out of memory is an answer and not a signal at the first touch.
// decommit() punches a hole, which reads as zero. A peer that reads memory after its ack may make the kernel
// allocate pages in a hole; they are freed by the next decommit() there, or with the pool.
//
// Invariants:
//   file().bytes() = address_space(), and byte i of the range is byte i of the file.
#pragma once

#include <memory>

#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/memory/shared_file.hpp"

namespace slabpool {

class SharedMemory final : public MemoryResource {
 public:
  // `reserve` is halved until the system grants it, down to `minimum`. Null if it does not.
  static std::unique_ptr<SharedMemory> create(std::size_t reserve, std::size_t minimum, Error& error);
  ~SharedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;

  const SharedFile& file() const noexcept { return *file_; }

 private:
  SharedMemory() = default;
  bool map(std::size_t bytes, Error& error);
  void unmap() noexcept;

  std::unique_ptr<SharedFile> file_;
  void* mapping_ = nullptr;  // what mmap returned; base_ is this, rounded up to 2 MiB
  std::size_t mapping_bytes_ = 0;
};

}  // namespace slabpool
