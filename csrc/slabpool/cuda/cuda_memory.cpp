#include "slabpool/cuda/cuda_memory.hpp"

#include "slabpool/cuda/host_side_memory.hpp"
#include "slabpool/cuda/mapped_memory.hpp"
#include "slabpool/cuda/whole_memory.hpp"

namespace slabpool::cuda {

std::unique_ptr<MemoryResource> create_device_memory(const CudaMemoryOptions& options, Error& error) {
  if (options.shared) return WholeMemory::create_shared(options, error);
  Site site;
  if (!site.find(options.device, error)) return nullptr;
  // A pool larger than the device's memory could never be filled. How much is free changes, so that is left to
  // commit().
  std::size_t total = 0;
  if (site.driver().cuDeviceTotalMem(&total, options.device) == kSuccess && options.capacity > total) {
    error.fail(Status::system_refused, "CUDA device " + std::to_string(options.device) + " has " +
                                           show_bytes(total) + " of memory, and the pool asks for " +
                                           show_bytes(options.capacity));
    return nullptr;
  }
  if (maps_memory(site)) return MappedMemory::create(options, error);
  return WholeMemory::allocate(options, error);
}

std::unique_ptr<MemoryResource> create_pinned_memory(const CudaMemoryOptions& options, Error& error) {
  return PinnedMemory::create(options, error);
}

std::unique_ptr<MemoryResource> create_managed_memory(const CudaMemoryOptions& options, Error& error) {
  return ManagedMemory::create(options, error);
}

int shareable_fd(const MemoryResource& memory, Error& error) {
  const auto* whole = dynamic_cast<const WholeMemory*>(&memory);
  if (whole != nullptr) return whole->export_fd(error);
  error.fail(Status::invalid_argument, "this memory was not made to be shared between processes");
  return -1;
}

std::unique_ptr<MemoryResource> open_device_memory(int fd, std::size_t bytes, int device, Error& error) {
  return WholeMemory::open(fd, bytes, device, error);
}

}  // namespace slabpool::cuda
