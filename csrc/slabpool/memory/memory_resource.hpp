// Where a pool's bytes come from.
//
// A memory resource owns one contiguous *reserved* address range and commits or decommits whole
// pages of it. Reserving costs address space only; committed bytes may be touched. What must stay
// true: the range never moves, and with commits_zero() a page reads as zero once it is committed (again).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace slabpool {

// Unit in which a pool commits, cuts and coalesces memory. 16 KiB: a multiple of every page size we
// run on (4 KiB on x86-64, 16 KiB on Apple silicon), and an eighth of the smallest tensor that gets
// a span of its own, so that rounding to pages wastes 12.5 % at most.
inline constexpr unsigned kPageBits = 14;
inline constexpr std::size_t kPageSize = std::size_t{1} << kPageBits;

enum class MemoryKind : std::uint8_t {
  host,     // pages of this process
  shared,   // pages that other processes map
  device,   // of a CUDA device: addresses that the host must not touch
  pinned,   // pages of this process that CUDA devices reach too
  managed,  // pages that move between the host and a CUDA device
};

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

  MemoryKind kind() const noexcept { return kind_; }
  bool host_reaches() const noexcept { return kind_ != MemoryKind::device; }
  // Bytes that are committed and decommitted together: a power of two, kPageSize at least. Both arguments of
  // both calls are multiples of it.
  std::size_t granule() const noexcept { return granule_; }
  // Whether bytes that were just committed read as zero.
  bool commits_zero() const noexcept { return commits_zero_; }
  // Whether all of the reserved range is committed from the start, and stays so: nothing is committed then, and
  // every decommit() is refused. The range is no longer than the capacity.
  bool whole() const noexcept { return whole_; }

  // Makes [offset, offset + bytes) readable and writable. False if the system refuses; nothing has changed then.
  virtual bool commit(std::size_t offset, std::size_t bytes) noexcept = 0;

  // Gives the bytes back to the system. False if the system refuses; the range is then still
  // committed, with undefined contents.
  virtual bool decommit(std::size_t offset, std::size_t bytes) noexcept = 0;

  // Which call was refused last, by whom, and what there is; "" where errno says it. Any thread.
  virtual std::string refusal() const { return {}; }

  // Sets committed bytes, and returns once that is so for everybody. False if the device failed.
  virtual bool fill(std::byte* at, std::size_t bytes, unsigned char value) noexcept {
    std::memset(at, value, bytes);
    return true;
  }

 protected:
  std::byte* base_ = nullptr;
  std::size_t reserved_ = 0;
  std::size_t granule_ = kPageSize;
  MemoryKind kind_ = MemoryKind::host;
  bool commits_zero_ = true;
  bool whole_ = false;
};

}  // namespace slabpool
