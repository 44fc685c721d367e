// A fixed-capacity array of zero bytes whose memory is opened for writing as the array grows.
//
// For the pool's own tables (page map, request slots): they are sized for the largest pool, never move, and are
// readable without a lock while they fill. What is not open can be read, and reads as zero. The kernel counts a private
// page as data of the process, and as a commitment where it does not overcommit, only once it can be written. So a table
// costs address space, and as much data as it has open chunks.
//
// open() makes a system call for each run of chunks that it opens, close() one for each chunk. One thread at a time calls
// them; reads and writes of open entries may run meanwhile.
//
// Invariants:
//   an entry is written only after open() has returned true for it;
//   bit i of chunks_ is set  =>  chunk i of the array can be written.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "slabpool/base/assert.hpp"

namespace slabpool {

template <typename T>
class VirtualArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  // Throws std::bad_alloc if the system refuses the address space.
  explicit VirtualArray(std::size_t count) : VirtualArray(count, nullptr) {}
  // Over `borrowed` (zeroed, writable, aligned to a page, kept alive by the caller); null: the array maps its own memory.
  VirtualArray(std::size_t count, T* borrowed)
      : data_(borrowed),
        count_(count),
        chunks_(new std::uint64_t[(count * sizeof(T) / kChunkBytes) / 64 + 1]{}),
        own_(borrowed == nullptr) {
    if (!own_) return;
    void* mapping =
        mmap(nullptr, bytes(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(mapping);
  }
  VirtualArray(const VirtualArray&) = delete;
  VirtualArray& operator=(const VirtualArray&) = delete;
  ~VirtualArray() {
    if (own_) (void)munmap(data_, bytes());
  }

  T& operator[](std::size_t index) noexcept {
    SLABPOOL_ASSERT(index < count_, "an index lies in the array", index, count_);
    return data_[index];
  }
  const T& operator[](std::size_t index) const noexcept {
    SLABPOOL_ASSERT(index < count_, "an index lies in the array", index, count_);
    return data_[index];
  }
  std::size_t size() const noexcept { return count_; }
  // Bytes that are open. A figure for reports: any thread may ask.
  std::size_t open_bytes() const noexcept { return open_bytes_.load(std::memory_order_relaxed); }

  // For assertions.
  bool is_writable(std::size_t index) const noexcept {
    return !own_ || is_open(index * sizeof(T) / kChunkBytes);
  }

  // Makes entries [first, end) writable. False, with errno set, if the system refuses; chunks that were opened before the
  // refusal stay open, which no entry shows.
  bool open(std::size_t first, std::size_t end) noexcept {
    SLABPOOL_ASSERT(first < end && end <= count_, "entries that are opened lie in the array", first, end,
                    count_);
    const std::size_t last = (end * sizeof(T) - 1) / kChunkBytes;
    for (std::size_t chunk = first * sizeof(T) / kChunkBytes; chunk <= last; ++chunk) {
      if (is_open(chunk)) continue;
      std::size_t run = chunk + 1;
      while (run <= last && !is_open(run)) ++run;
      if (!open_chunks(chunk, run)) return false;
      open_bytes_.fetch_add((run - chunk) * kChunkBytes, std::memory_order_relaxed);
      for (; chunk < run; ++chunk) chunks_[chunk / 64] |= std::uint64_t{1} << (chunk % 64);
    }
    return true;
  }

  // Takes pages of the entries [first, end) back: they read as zero, and are not open. Only the chunks that lie in them whole.
  void close(std::size_t first, std::size_t end) noexcept {
    SLABPOOL_ASSERT(first <= end && end <= count_, "entries that are closed lie in the array", first,
                    end, count_);
    const std::size_t last = end * sizeof(T) / kChunkBytes;
    for (std::size_t chunk = (first * sizeof(T) + kChunkBytes - 1) / kChunkBytes; chunk < last;
         ++chunk) {
      if (!is_open(chunk)) continue;
      auto* at = reinterpret_cast<std::byte*>(data_) + chunk * kChunkBytes;
      if (madvise(at, kChunkBytes, own_ ? MADV_DONTNEED : MADV_REMOVE) != 0) continue;
      open_bytes_.fetch_sub(kChunkBytes, std::memory_order_relaxed);
      chunks_[chunk / 64] &= ~(std::uint64_t{1} << (chunk % 64));
    }
  }

 private:
  // A multiple of every system page up to kMostSystemPage, and 1 % of the limit that a small container has.
  static constexpr std::size_t kChunkBytes = std::size_t{64} << 10;
  static constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14

  std::size_t bytes() const noexcept { return count_ * sizeof(T); }
  bool is_open(std::size_t chunk) const noexcept {
    return (chunks_[chunk / 64] >> (chunk % 64) & 1) != 0;
  }
  bool open_chunks(std::size_t first, std::size_t end) noexcept {
    auto* at = reinterpret_cast<std::byte*>(data_) + first * kChunkBytes;
    const std::size_t length = std::min(end * kChunkBytes, bytes()) - first * kChunkBytes;
    if (own_) return mprotect(at, length, PROT_READ | PROT_WRITE) == 0;
    // Borrowed memory is a file's. Where the system has no page for it, this call says so, while a first touch is a
    // signal. Kernels without the call (EINVAL) have the signal only.
    return madvise(at, length, kPopulateWrite) == 0 || errno == EINVAL;
  }

  T* data_ = nullptr;
  std::size_t count_;
  std::unique_ptr<std::uint64_t[]> chunks_;  // a bit for each
  bool own_;
  std::atomic<std::size_t> open_bytes_{0};
};

}  // namespace slabpool
