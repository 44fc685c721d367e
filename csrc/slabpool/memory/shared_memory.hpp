// Shared memory: pages of one sealed, sparse memfd as long as the reserved range. Peers map the whole file, so an
// offset means the same bytes in every process.
//
// commit() allocates the pages, so running out of memory is an answer and not a signal at the first touch. Where a control
// group limits the memory of the process, commit() refuses what would not fit: the kernel would end the process instead.
// decommit() punches a hole, which reads as zero. A peer that touches memory after its ack makes the kernel allocate
// pages in a hole: held_bytes() counts them, and discard() frees them.
//
// Invariants:
//   file().bytes() = address_space(), and byte i of the range is byte i of the file.
#pragma once

#include <memory>

#include "slabpool/memory/memory_groups.hpp"
#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/memory/shared_file.hpp"

namespace slabpool {

class SharedMemory final : public MemoryResource {
 public:
  // `reserve` is halved until the system grants it, down to `minimum`. Null if it does not. Throws std::bad_alloc.
  static std::unique_ptr<SharedMemory> create(std::size_t reserve, std::size_t minimum, Error& error,
                                              MemoryGroups groups = MemoryGroups::find());
  ~SharedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;
  bool punch_hole(std::size_t offset, std::size_t bytes) noexcept override;
  bool fill_hole(std::size_t offset, std::size_t bytes) noexcept override;
  std::uint64_t held_bytes() const noexcept override;
  void discard(std::size_t offset, std::size_t bytes) noexcept override;
  Error refusal() const override;

  const SharedFile& file() const noexcept { return *file_; }

 private:
  SharedMemory() = default;
  bool map(std::size_t bytes, Error& error);
  bool has_room(std::size_t bytes) noexcept;
  bool take_pages(std::size_t offset, std::size_t bytes) noexcept;
  void unmap() noexcept;

  MemoryGroups groups_;
  // The group that was full at the last refusal; null: it had another reason. Relaxed: a report only.
  std::atomic<const MemoryGroup*> full_{nullptr};
  std::unique_ptr<SharedFile> file_;
  void* mapping_ = nullptr;  // what mmap returned; base_ is this, rounded up to 2 MiB
  std::size_t mapping_bytes_ = 0;
};

}  // namespace slabpool
