// The memory resources of CUDA: device, pinned and managed memory.
#pragma once

#include <memory>

#include "slabpool/base/error.hpp"
#include "slabpool/base/export.hpp"
#include "slabpool/cuda/driver.hpp"
#include "slabpool/memory/memory_resource.hpp"

namespace slabpool::cuda {

struct CudaMemoryOptions {
  int device = 0;           // -1: pinned memory without a nearest device
  std::size_t reserve = 0;  // bytes of addresses wanted; halved until granted
  std::size_t minimum = 0;  // bytes below which creation fails
  std::size_t capacity = 0;
  // Device memory that other processes map: all of `capacity` is one piece of physical memory from the start
  // (reserve and minimum are not used), and shareable_fd() exports it.
  bool shared = false;
};

// A resource, or null; error.text then names the driver's call and its error.
SLABPOOL_API std::unique_ptr<MemoryResource> create_device_memory(const CudaMemoryOptions& options,
                                                                  Error& error);
SLABPOOL_API std::unique_ptr<MemoryResource> create_pinned_memory(const CudaMemoryOptions& options,
                                                                  Error& error);
SLABPOOL_API std::unique_ptr<MemoryResource> create_managed_memory(const CudaMemoryOptions& options,
                                                                   Error& error);

// A new descriptor of memory that create_device_memory() made shared, which the caller closes; -1 on failure.
SLABPOOL_API int shareable_fd(const MemoryResource& memory, Error& error);
// The same physical memory in another process, mapped for reading and writing. The caller still owns the descriptor.
SLABPOOL_API std::unique_ptr<MemoryResource> open_device_memory(int fd, std::size_t bytes, int device,
                                                                Error& error);

}  // namespace slabpool::cuda
