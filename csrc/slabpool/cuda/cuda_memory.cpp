#include "slabpool/cuda/cuda_memory.hpp"

#include "slabpool/cuda/host_side_memory.hpp"
#include "slabpool/cuda/mapped_memory.hpp"
#include "slabpool/cuda/whole_memory.hpp"

namespace slabpool::cuda {

std::unique_ptr<MemoryResource> create_device_memory(const CudaMemoryOptions& options,
                                                     std::string& why) {
  if (options.shared) return WholeMemory::create_shared(options, why);
  Site site;
  if (!site.find(options.device, why)) return nullptr;
  // More than there is can never be had. What is free may change, and is asked for as it is committed.
  std::size_t total = 0;
  if (site.driver().cuDeviceTotalMem(&total, options.device) == kSuccess && options.capacity > total) {
    why = "CUDA device " + std::to_string(options.device) + " has " + show_bytes(total) +
          " of memory, and the pool asks for " + show_bytes(options.capacity);
    return nullptr;
  }
  if (maps_memory(site)) return MappedMemory::create(options, why);
  return WholeMemory::allocate(options, why);
}

std::unique_ptr<MemoryResource> create_pinned_memory(const CudaMemoryOptions& options,
                                                     std::string& why) {
  return PinnedMemory::create(options, why);
}

std::unique_ptr<MemoryResource> create_managed_memory(const CudaMemoryOptions& options,
                                                      std::string& why) {
  return ManagedMemory::create(options, why);
}

int shareable_fd(const MemoryResource& memory, std::string& why) {
  const auto* whole = dynamic_cast<const WholeMemory*>(&memory);
  if (whole != nullptr) return whole->export_fd(why);
  why = "this memory was not made to be shared between processes";
  return -1;
}

std::unique_ptr<MemoryResource> open_device_memory(int fd, std::size_t bytes, int device,
                                                   std::string& why) {
  return WholeMemory::open(fd, bytes, device, why);
}

}  // namespace slabpool::cuda
