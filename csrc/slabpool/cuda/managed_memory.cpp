#include "slabpool/cuda/device_info.hpp"
#include "slabpool/cuda/host_side_memory.hpp"

namespace slabpool::cuda {

std::unique_ptr<ManagedMemory> ManagedMemory::create(const CudaMemoryOptions& options,
                                                     std::string& why) {
  std::unique_ptr<ManagedMemory> memory(new ManagedMemory());
  memory->kind_ = MemoryKind::managed;
  memory->whole_ = true;
  memory->commits_zero_ = false;  // the reference promises nothing
  if (!memory->site_.find(options.device, why)) return nullptr;
  const Driver& driver = memory->site_.driver();
  DeviceInfo info;
  std::uint64_t free = 0;
  if (!describe_device(driver, options.device, info, why) ||
      !free_memory(driver, options.device, free, why))
    return nullptr;
  const std::string device = "CUDA device " + std::to_string(options.device) + " (" + info.name + ")";
  if (!info.managed) {
    // Without concurrent access the host must not touch any page while the device does anything at all.
    why = device +
          " has no managed memory that the host may touch while the device works. Use pinned memory "
          "(memory=\"pinned:" +
          std::to_string(options.device) + "\")";
    return nullptr;
  }
  // The driver would take more, and move pages to and fro for ever.
  if (options.capacity > free) {
    why = "managed memory of " + show_bytes(options.capacity) + " does not fit on " + device + ": " +
          show_bytes(free) + " of its " + show_bytes(info.total_bytes) +
          " are free. Make the pool smaller, or "
          "close what holds the rest";
    return nullptr;
  }
  memory->reserved_ = options.capacity & ~(kPageSize - 1);
  const std::size_t bytes = memory->reserved_ + kAlignment;
  const CurrentContext current(driver, memory->site_.context());
  const Result result = current.ok()
                            ? driver.cuMemAllocManaged(&memory->allocated_, bytes, kMemAttachGlobal)
                            : kInvalidContext;
  if (result != kSuccess) {
    memory->allocated_ = 0;
    why = memory->site_.explain("cuMemAllocManaged", result, bytes);
    return nullptr;
  }
  memory->base_ = reinterpret_cast<std::byte*>((memory->allocated_ + kAlignment - 1) &
                                               ~DevicePointer{kAlignment - 1});
  return memory;
}

ManagedMemory::~ManagedMemory() {
  if (allocated_ == 0 || !site_.here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  if (current.ok()) (void)site_.driver().cuMemFree(allocated_);
}

}  // namespace slabpool::cuda
