// malloc, calloc, realloc and free over a pool, for libraries whose allocator can be replaced and which pass only an
// address to free.
//
// While the heap is on, in the process that made the pool, all memory is the pool's, and running out is null. Once it is
// off, and in a fork's child, new memory is the system's. Invariant: the address says which of the two it is, because the
// pool's memory lies in the pool's range. The owner of a heap keeps its pool alive; memory may be freed whether the heap is
// on or off, the pool closed or not.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "slabpool/base/export.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

// Block::tag of memory that raw heaps hand out.
inline constexpr std::uint8_t kRawTag = 1;

class SLABPOOL_API RawHeap {
 public:
  explicit RawHeap(Pool& pool) noexcept : pool_(pool) {}
  RawHeap(const RawHeap&) = delete;
  RawHeap& operator=(const RawHeap&) = delete;

  // Null: there is no room, and nothing has changed. Size 0 is served as 1.
  void* allocate(std::size_t nbytes) noexcept { return take(nbytes, false); }
  void* allocate_zeroed(std::size_t count, std::size_t size) noexcept;
  void* resize(void* address, std::size_t nbytes) noexcept;
  void release(void* address) noexcept;

  // Turns the heap off; it cannot be turned on again.
  void turn_off() noexcept { on_.store(false, std::memory_order_relaxed); }
  bool on() const noexcept { return on_.load(std::memory_order_relaxed); }

 private:
  // Relaxed: a thread that allocates while another turns the heap off may come in any order.
  bool serves() const noexcept { return on() && pool_.usable_here(); }
  void* take(std::size_t nbytes, bool zero) noexcept;

  Pool& pool_;
  std::atomic<bool> on_{true};
};

}  // namespace slabpool
