// A fixed-capacity array of zero bytes that costs memory only where it is touched.
//
// For the pool's own tables (page map, request slots): they are sized for the largest pool, never move, and are
// readable without a lock while they fill.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>

#include "slabpool/base/assert.hpp"

namespace slabpool {

template <typename T>
class VirtualArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit VirtualArray(std::size_t count) : count_(count) { reserve(); }
  // Over `borrowed` (zeroed, kept alive by the caller); null: the array maps its own memory.
  VirtualArray(std::size_t count, T* borrowed) : data_(borrowed), count_(count) {
    if (borrowed == nullptr) reserve();
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

 private:
  std::size_t bytes() const noexcept { return count_ * sizeof(T); }
  void reserve() {
    void* mapping = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(mapping);
    own_ = true;
  }

  T* data_ = nullptr;
  std::size_t count_;
  bool own_ = false;
};

}  // namespace slabpool
