// The source of a pool's bytes: one reserved address range, of which parts are committed and decommitted.
//
// Reserving costs address space only. Committed bytes may be read and written.
//
// Invariants:
//   base() % 2 MiB = 0,  address_space() % kPageSize = 0,  granule() = 2^n * kPageSize
//   The range never moves while the resource lives.
//   commits_zero()      =>  a byte that was not committed, nor undefined, reads as zero after each commit().
//   always_committed()  =>  every byte is committed from the start, decommit() always fails, and the range is no
//                           longer than the capacity.
#pragma once

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/error.hpp"

namespace slabpool {

// Unit in which a pool cuts, counts and coalesces memory: the smallest page of any system slabpool runs on, so that a free
// page of the system is a free page of the pool. Where the system's pages are larger, the granule is one of those.
inline constexpr unsigned kPageBits = 12;
inline constexpr std::size_t kPageSize = std::size_t{1} << kPageBits;
// The largest page of a system that slabpool runs on (aarch64 has pages of 4, 16 or 64 KiB). Also the least capacity.
inline constexpr std::size_t kMostSystemPage = std::size_t{16} << 10;

// Alignment of base(): one huge page.
inline constexpr std::size_t kRangeAlign = std::size_t{2} << 20;

enum class MemoryKind : std::uint8_t {
  host,     // pages of this process
  shared,   // pages that other processes map
  device,   // pages of a CUDA device, at addresses that the host must not touch
  pinned,   // pages of this process that CUDA devices access too
  managed,  // pages that migrate between the host and a CUDA device
};

class MemoryResource {
 public:
  MemoryResource() = default;
  MemoryResource(const MemoryResource&) = delete;
  MemoryResource& operator=(const MemoryResource&) = delete;
  virtual ~MemoryResource() = default;

  std::byte* base() const noexcept { return base_; }
  // Length of the reserved range in bytes.
  std::size_t address_space() const noexcept { return address_space_; }
  // Bytes that are committed and decommitted together. Both arguments of commit() and decommit() are multiples of it.
  std::size_t granule() const noexcept { return granule_; }

  MemoryKind kind() const noexcept { return kind_; }
  bool host_reaches() const noexcept { return kind_ != MemoryKind::device; }
  bool commits_zero() const noexcept { return commits_zero_; }
  bool always_committed() const noexcept { return always_committed_; }

  // Both calls may cover several mappings or driver handles, and the system may refuse after it has changed some of
  // them. So a call that returns false leaves the range *undefined*: parts of it may be committed, with any contents,
  // and refusal() says why. A later commit() or decommit() that covers the range and succeeds ends that. Both accept
  // ranges of which parts are undefined.

  // Makes [offset, offset + bytes) readable and writable.
  virtual bool commit(std::size_t offset, std::size_t bytes) noexcept = 0;
  // Returns the bytes to the system.
  virtual bool decommit(std::size_t offset, std::size_t bytes) noexcept = 0;

  // Holes: pages that go back to the system one run at a time, while committed pages around them are in use. No call
  // changes protection, because each hole would become a mapping of its own and the kernel limits their number. So an access
  // to a hole does not fault. A hole that is filled reads as zero. Both calls take whole granules.
  bool has_holes() const noexcept { return has_holes_; }
  // Makes committed pages a hole. False: they are committed, with any contents.
  virtual bool punch_hole(std::size_t, std::size_t) noexcept { return false; }
  // Commits the pages of a hole. False: they are a hole still.
  virtual bool fill_hole(std::size_t, std::size_t) noexcept { return false; }

  // Bytes that the system keeps for the range, committed or not; 0 where the resource cannot tell.
  virtual std::uint64_t held_bytes() const noexcept { return 0; }
  // Frees what the system keeps for a part of the range that is not committed, and takes away the access that a hole left.
  virtual void discard(std::size_t, std::size_t) noexcept {}

  // Why the last commit(), decommit() or fill() that failed did so; status ok if none failed. Any thread may call it.
  virtual Error refusal() const {
    Error error;
    if (const int number = refused_errno_.load(std::memory_order_relaxed)) error.fail_errno({}, number);
    return error;
  }

  // Sets committed bytes. On return every device sees the new value. False if the device failed.
  virtual bool fill(std::byte* at, std::size_t bytes, unsigned char value) noexcept {
    std::memset(at, value, bytes);
    return true;
  }

  // Checks the equations at the top of this file.
  void assert_valid() const noexcept {
    SLABPOOL_ASSERT(reinterpret_cast<std::uintptr_t>(base_) % kRangeAlign == 0,
                    "the range is aligned to 2 MiB", base_);
    SLABPOOL_ASSERT(address_space_ % kPageSize == 0, "the range is whole pages", address_space_);
    SLABPOOL_ASSERT(std::has_single_bit(granule_) && granule_ >= kPageSize,
                    "a granule is a power of two, one page at least", granule_);
  }
  // Checks the arguments of commit() and decommit().
  void assert_granules([[maybe_unused]] std::size_t offset,
                       [[maybe_unused]] std::size_t bytes) const noexcept {
    SLABPOOL_ASSERT(bytes != 0 && offset % granule_ == 0 && bytes % granule_ == 0,
                    "whole granules are committed and decommitted", offset, bytes, granule_);
    SLABPOOL_ASSERT(offset <= address_space_ && bytes <= address_space_ - offset,
                    "they lie in the range", offset, bytes, address_space_);
  }

 protected:
  // Records errno as the refusal. Returns false. Relaxed: a report only.
  bool note_refusal() noexcept {
    refused_errno_.store(errno, std::memory_order_relaxed);
    return false;
  }

  std::byte* base_ = nullptr;
  std::size_t address_space_ = 0;
  std::size_t granule_ = kPageSize;
  std::atomic<int> refused_errno_{0};
  MemoryKind kind_ = MemoryKind::host;
  bool commits_zero_ = true;
  bool has_holes_ = false;
  bool always_committed_ = false;
};

}  // namespace slabpool
