#include "slabpool/adapters/stream_heap_c.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <vector>

#include "slabpool/adapters/stream_heap.hpp"

using slabpool::cuda::StreamHeap;

namespace {

constexpr int kDevices = 64;

// The heap in force, by device. Acquire and release: a thread that finds a heap sees it constructed.
std::atomic<StreamHeap*> in_force[kDevices];

// Every heap that was in force, for memory that is freed after another one replaced it.
// used_mutex is held while a heap takes memory back, also over calls of the driver: before a heap's mutex, and those of
// its marks and of the pool, in the order of locks.
std::mutex used_mutex;
std::vector<StreamHeap*>& used() {
  static auto& heaps =
      *new std::vector<StreamHeap*>;  // never destroyed: libraries free at the process' end
  return heaps;
}

StreamHeap* of(int device) {
  return device >= 0 && device < kDevices ? in_force[device].load(std::memory_order_acquire) : nullptr;
}

bool owns(const StreamHeap& heap, const void* address) {
  return heap.pool().find_held(address) != nullptr;
}

template <typename F>
void with_owner(StreamHeap* first, const void* address, F&& f) {
  if (first != nullptr && owns(*first, address)) return f(*first);
  const std::lock_guard lock(used_mutex);
  for (StreamHeap* heap : used()) {
    if (owns(*heap, address)) return f(*heap);
  }
}

}  // namespace

void* slabpool_stream_use(int device, void* heap, int* ok) {
  if (ok != nullptr) *ok = 0;
  if (device < 0 || device >= kDevices) return nullptr;
  auto* given = static_cast<StreamHeap*>(heap);
  try {
    const std::lock_guard lock(used_mutex);
    if (given != nullptr && std::find(used().begin(), used().end(), given) == used().end())
      used().push_back(given);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  if (ok != nullptr) *ok = 1;
  return in_force[device].exchange(given, std::memory_order_acq_rel);
}

void slabpool_stream_retire(void* heap) {
  auto* given = static_cast<StreamHeap*>(heap);
  for (auto& one : in_force) {
    StreamHeap* expected = given;
    (void)one.compare_exchange_strong(expected, nullptr, std::memory_order_acq_rel);
  }
  const std::lock_guard lock(used_mutex);
  std::erase(used(), given);
}

void* slabpool_stream_alloc(size_t size, int device, void* stream) {
  StreamHeap* heap = of(device);
  return heap != nullptr ? heap->allocate(size, stream, true) : nullptr;
}

void slabpool_stream_free(void* address, size_t, int device, void* stream) {
  if (address == nullptr) return;
  with_owner(of(device), address, [&](StreamHeap& heap) { (void)heap.release(address, stream); });
}

void slabpool_stream_record(void* address, void* stream) {
  with_owner(nullptr, address, [&](StreamHeap& heap) { (void)heap.record(address, stream); });
}

void* slabpool_cupy_malloc(void* heap, size_t size, int) {
  return static_cast<StreamHeap*>(heap)->allocate(size, StreamHeap::stream());
}

void slabpool_cupy_free(void* heap, void* address, int) {
  if (address != nullptr) (void)static_cast<StreamHeap*>(heap)->release(address);
}
