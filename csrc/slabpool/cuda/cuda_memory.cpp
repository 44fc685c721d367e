#include "slabpool/cuda/cuda_memory.hpp"

namespace slabpool::cuda {

std::unique_ptr<MemoryResource> create_device_memory(const CudaMemoryOptions&, std::string& why) {
  why = "not built yet";
  return nullptr;
}
std::unique_ptr<MemoryResource> create_pinned_memory(const CudaMemoryOptions&, std::string& why) {
  why = "not built yet";
  return nullptr;
}
std::unique_ptr<MemoryResource> create_managed_memory(const CudaMemoryOptions&, std::string& why) {
  why = "not built yet";
  return nullptr;
}

}  // namespace slabpool::cuda
