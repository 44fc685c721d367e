#include "slabpool/cuda/device_info.hpp"
#include "slabpool/cuda/host_side_memory.hpp"

namespace slabpool::cuda {

std::unique_ptr<ManagedMemory> ManagedMemory::create(const CudaMemoryOptions& options, Error& error) {
  std::unique_ptr<ManagedMemory> memory(new ManagedMemory());
  memory->kind_ = MemoryKind::managed;
  memory->always_committed_ = true;
  memory->commits_zero_ = false;  // the driver's reference does not promise it
  if (!memory->site_.find(options.device, error)) return nullptr;
  const Driver& driver = memory->site_.driver();
  DeviceInfo info;
  std::uint64_t free = 0;
  if (!describe_device(driver, options.device, info, error) ||
      !free_memory(driver, options.device, free, error))
    return nullptr;
  const std::string device = "CUDA device " + std::to_string(options.device) + " (" + info.name + ")";
  if (!info.managed) {
    // Without concurrent access, the host must not touch any managed page while the device runs any work.
    error.fail(Status::system_refused,
               device +
                   " has no managed memory that the host may touch while the device works. Use pinned "
                   "memory (memory=\"pinned:" +
                   std::to_string(options.device) + "\")");
    return nullptr;
  }
  // The driver would accept a larger pool, and then migrate its pages back and forth.
  if (options.capacity > free) {
    error.fail(Status::system_refused, "managed memory of " + show_bytes(options.capacity) +
                                           " does not fit on " + device + ": " + show_bytes(free) +
                                           " of its " + show_bytes(info.total_bytes) +
                                           " are free. Make the pool smaller, or close what holds the "
                                           "rest");
    return nullptr;
  }
  memory->address_space_ = options.capacity & ~(kPageSize - 1);
  const std::size_t bytes = memory->address_space_ + kRangeAlign;
  const CurrentContext current(driver, memory->site_.context());
  const Result result = current.ok()
                            ? driver.cuMemAllocManaged(&memory->allocated_, bytes, kMemAttachGlobal)
                            : kInvalidContext;
  if (result != kSuccess) {
    memory->allocated_ = 0;
    memory->site_.fail(error, "cuMemAllocManaged", result, bytes);
    return nullptr;
  }
  memory->base_ = reinterpret_cast<std::byte*>((memory->allocated_ + kRangeAlign - 1) &
                                               ~DevicePointer{kRangeAlign - 1});
  memory->assert_valid();
  return memory;
}

ManagedMemory::~ManagedMemory() {
  if (allocated_ == 0 || !site_.usable_here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  if (current.ok()) (void)site_.driver().cuMemFree(allocated_);
}

}  // namespace slabpool::cuda
