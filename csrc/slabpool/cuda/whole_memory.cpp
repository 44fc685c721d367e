#include "slabpool/cuda/whole_memory.hpp"

#include <cstring>

#include "slabpool/cuda/device_info.hpp"

namespace slabpool::cuda {

std::unique_ptr<WholeMemory> WholeMemory::allocate(const CudaMemoryOptions& options, std::string& why) {
  std::unique_ptr<WholeMemory> memory(new WholeMemory());
  if (!memory->start(options.device, why)) return nullptr;
  const Driver& driver = memory->site_.driver();
  const CurrentContext current(driver, memory->site_.context());
  memory->reserved_ = options.capacity & ~(kPageSize - 1);
  // The driver promises an alignment of 256 bytes, a pool one of 2 MiB.
  const std::size_t bytes = memory->reserved_ + kAlignment - 256;
  const Result result = current.ok() ? driver.cuMemAlloc(&memory->allocated_, bytes) : kInvalidContext;
  if (result != kSuccess) {
    memory->allocated_ = 0;
    why = memory->site_.explain("cuMemAlloc", result, bytes);
    return nullptr;
  }
  memory->base_ = reinterpret_cast<std::byte*>((memory->allocated_ + kAlignment - 1) &
                                               ~DevicePointer{kAlignment - 1});
  return memory;
}

std::unique_ptr<WholeMemory> WholeMemory::create_shared(const CudaMemoryOptions& options,
                                                        std::string& why) {
  std::unique_ptr<WholeMemory> memory(new WholeMemory());
  if (!memory->start(options.device, why)) return nullptr;
  const Site& site = memory->site_;
  DeviceInfo info;
  if (!describe_device(site.driver(), options.device, info, why)) return nullptr;
  if (!info.exportable) {
    why = "memory of CUDA device " + std::to_string(options.device) + " (" + info.name +
          ") cannot be shared between processes: the driver or the device does not export it as a file "
          "descriptor. Use a private pool (memory=\"cuda:" +
          std::to_string(options.device) + "\"), or share pinned or host memory";
    return nullptr;
  }
  MemAllocationProp property;
  if (!physical_property(site, true, property, memory->granule_, why)) return nullptr;
  const std::size_t bytes = (options.capacity + memory->granule_ - 1) & ~(memory->granule_ - 1);
  const CurrentContext current(site.driver(), site.context());
  MemoryHandle handle = 0;
  const Result result =
      current.ok() ? site.driver().cuMemCreate(&handle, bytes, &property, 0) : kInvalidContext;
  if (result != kSuccess) {
    why = site.explain("cuMemCreate", result, bytes);
    return nullptr;
  }
  return memory->show(handle, bytes, why) ? std::move(memory) : nullptr;
}

std::unique_ptr<WholeMemory> WholeMemory::open(int fd, std::size_t bytes, int device, std::string& why) {
  std::unique_ptr<WholeMemory> memory(new WholeMemory());
  if (!memory->start(device, why)) return nullptr;
  const Site& site = memory->site_;
  if (!maps_memory(site) || site.driver().cuMemImportFromShareableHandle == nullptr) {
    why = "CUDA device " + std::to_string(device) +
          " cannot map memory of another process: the driver (" + site.driver().library() +
          ") or the device lacks virtual memory management";
    return nullptr;
  }
  MemAllocationProp property;
  if (!physical_property(site, true, property, memory->granule_, why)) return nullptr;
  bytes = (bytes + memory->granule_ - 1) & ~(memory->granule_ - 1);
  const CurrentContext current(site.driver(), site.context());
  MemoryHandle handle = 0;
  // The reference has it that a descriptor is passed in the pointer itself.
  void* given = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd));
  const Result result =
      current.ok() ? site.driver().cuMemImportFromShareableHandle(&handle, given, kHandleTypePosixFd)
                   : kInvalidContext;
  if (result != kSuccess) {
    why = site.explain("cuMemImportFromShareableHandle", result, 0);
    return nullptr;
  }
  return memory->show(handle, bytes, why) ? std::move(memory) : nullptr;
}

bool WholeMemory::show(MemoryHandle handle, std::size_t bytes, std::string& why) {
  handle_ = handle;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  DevicePointer found = 0;
  const char* call = "cuMemAddressReserve";
  Result result =
      current.ok() ? driver.cuMemAddressReserve(&found, bytes, kAlignment, 0, 0) : kInvalidContext;
  if (result == kSuccess) {
    base_ = reinterpret_cast<std::byte*>(found);
    reserved_ = bytes;
    call = "cuMemMap";
    result = driver.cuMemMap(found, bytes, 0, handle, 0);
  }
  if (result == kSuccess) {
    mapped_ = true;
    call = "cuMemSetAccess";
    MemAccessDesc access;
    access.location.id = site_.device();
    result = driver.cuMemSetAccess(found, bytes, &access, 1);
  }
  if (result != kSuccess) why = site_.explain(call, result, bytes);
  return result == kSuccess;  // else the destructor gives back what there is
}

WholeMemory::~WholeMemory() {
  if (!site_.here()) return;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  if (!current.ok()) return;
  if (allocated_ != 0) (void)driver.cuMemFree(allocated_);
  if (handle_ == 0) return;
  const bool unmapped = !mapped_ || driver.cuMemUnmap(address(0), reserved_) == kSuccess;
  if (base_ != nullptr && unmapped) (void)driver.cuMemAddressFree(address(0), reserved_);
  (void)driver.cuMemRelease(handle_);
}

int WholeMemory::export_fd(std::string& why) const {
  int fd = -1;
  if (handle_ == 0) {
    why = "this memory was not made to be shared between processes";
    return -1;
  }
  if (!site_.here()) {
    why = "the memory is the parent process's, and a driver does not survive a fork";
    return -1;
  }
  const CurrentContext current(site_.driver(), site_.context());
  const Result result =
      current.ok() ? site_.driver().cuMemExportToShareableHandle(&fd, handle_, kHandleTypePosixFd, 0)
                   : kInvalidContext;
  if (result == kSuccess) return fd;
  why = site_.explain("cuMemExportToShareableHandle", result, 0);
  return -1;
}

}  // namespace slabpool::cuda
