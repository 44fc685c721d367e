// The memory resources of CUDA: device, pinned and managed memory.
#pragma once

#include <memory>
#include <string>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/driver.hpp"
#include "slabpool/memory/memory_resource.hpp"

namespace slabpool::cuda {

struct CudaMemoryOptions {
  int device = 0;           // -1 for pinned memory that is near no device in particular
  std::size_t reserve = 0;  // bytes of addresses wanted; halved until granted
  std::size_t minimum = 0;  // bytes below which creation fails
  std::size_t capacity = 0;
  // Device memory that other processes map: all of `capacity` is one piece of physical memory from the start
  // (reserve and minimum are not used), and shareable_fd() gives it away.
  bool shared = false;
};

// A resource, or null and in `why` what failed, with the driver's own name of the error.
SLABPOOL_API std::unique_ptr<MemoryResource> create_device_memory(const CudaMemoryOptions& options,
                                                                  std::string& why);
SLABPOOL_API std::unique_ptr<MemoryResource> create_pinned_memory(const CudaMemoryOptions& options,
                                                                  std::string& why);
SLABPOOL_API std::unique_ptr<MemoryResource> create_managed_memory(const CudaMemoryOptions& options,
                                                                   std::string& why);

// Of memory that create_device_memory() made shared: a new descriptor, the caller's; -1 with `why`.
SLABPOOL_API int shareable_fd(const MemoryResource& memory, std::string& why);
// The same physical memory in another process, mapped for reading and writing; the descriptor stays the caller's.
SLABPOOL_API std::unique_ptr<MemoryResource> open_device_memory(int fd, std::size_t bytes, int device,
                                                                std::string& why);

}  // namespace slabpool::cuda
