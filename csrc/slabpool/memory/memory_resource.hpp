// Where a pool's bytes come from.
//
// A memory resource owns one contiguous *reserved* address range and commits or decommits whole
// pages of it. Reserving costs address space only; committed bytes may be touched. What must stay
// true: the range never moves, and a page that was decommitted reads as zero once committed again.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slabpool {

// Unit in which a pool commits, cuts and coalesces memory. 16 KiB: a multiple of every page size we
// run on (4 KiB on x86-64, 16 KiB on Apple silicon), and an eighth of the smallest tensor that gets
// a span of its own, so that rounding to pages wastes 12.5 % at most.
inline constexpr unsigned kPageBits = 14;
inline constexpr std::size_t kPageSize = std::size_t{1} << kPageBits;

class MemoryResource {
 public:
  MemoryResource() = default;
  MemoryResource(const MemoryResource&) = delete;
  MemoryResource& operator=(const MemoryResource&) = delete;
  virtual ~MemoryResource() = default;

  // First byte of the reserved range, aligned to 2 MiB.
  std::byte* base() const noexcept { return base_; }
  // Length of the reserved range in bytes, a multiple of kPageSize.
  std::size_t reserved() const noexcept { return reserved_; }

  // Makes [offset, offset + bytes) readable and writable, zero on first touch. False if the system
  // refuses; nothing has changed then. Both arguments are multiples of kPageSize.
  virtual bool commit(std::size_t offset, std::size_t bytes) noexcept = 0;

  // Gives the bytes back to the system. False if the system refuses; the range is then still
  // committed, with undefined contents.
  virtual bool decommit(std::size_t offset, std::size_t bytes) noexcept = 0;

 protected:
  std::byte* base_ = nullptr;
  std::size_t reserved_ = 0;
};

}  // namespace slabpool
