#include "slabpool/cuda/whole_memory.hpp"

#include <cstring>

#include "slabpool/cuda/device_info.hpp"

namespace slabpool::cuda {

std::unique_ptr<WholeMemory> WholeMemory::allocate(const CudaMemoryOptions& options, Error& error) {
  std::unique_ptr<WholeMemory> memory(new WholeMemory());
  if (!memory->start(options.device, error)) return nullptr;
  const Driver& driver = memory->site_.driver();
  const CurrentContext current(driver, memory->site_.context());
  memory->address_space_ = options.capacity & ~(kPageSize - 1);
  // cuMemAlloc aligns to 256 bytes, a pool's range is aligned to 2 MiB.
  const std::size_t bytes = memory->address_space_ + kRangeAlign - 256;
  const Result result = current.ok() ? driver.cuMemAlloc(&memory->allocated_, bytes) : kInvalidContext;
  if (result != kSuccess) {
    memory->allocated_ = 0;
    memory->site_.fail(error, "cuMemAlloc", result, bytes);
    return nullptr;
  }
  memory->base_ = reinterpret_cast<std::byte*>((memory->allocated_ + kRangeAlign - 1) &
                                               ~DevicePointer{kRangeAlign - 1});
  memory->assert_valid();
  return memory;
}

std::unique_ptr<WholeMemory> WholeMemory::create_shared(const CudaMemoryOptions& options, Error& error) {
  std::unique_ptr<WholeMemory> memory(new WholeMemory());
  if (!memory->start(options.device, error)) return nullptr;
  const Site& site = memory->site_;
  DeviceInfo info;
  if (!describe_device(site.driver(), options.device, info, error)) return nullptr;
  if (!info.exportable) {
    error.fail(Status::system_refused,
               "memory of CUDA device " + std::to_string(options.device) + " (" + info.name +
                   ") cannot be shared between processes: the driver or the device does not export it "
                   "as a file descriptor. Use a private pool (memory=\"cuda:" +
                   std::to_string(options.device) + "\"), or share pinned or host memory");
    return nullptr;
  }
  MemAllocationProp property;
  if (!physical_property(site, true, property, memory->granule_, error)) return nullptr;
  const std::size_t bytes = (options.capacity + memory->granule_ - 1) & ~(memory->granule_ - 1);
  const CurrentContext current(site.driver(), site.context());
  MemoryHandle handle = 0;
  const Result result =
      current.ok() ? site.driver().cuMemCreate(&handle, bytes, &property, 0) : kInvalidContext;
  if (result != kSuccess) {
    site.fail(error, "cuMemCreate", result, bytes);
    return nullptr;
  }
  return memory->map(handle, bytes, error) ? std::move(memory) : nullptr;
}

std::unique_ptr<WholeMemory> WholeMemory::open(int fd, std::size_t bytes, int device, Error& error) {
  std::unique_ptr<WholeMemory> memory(new WholeMemory());
  if (!memory->start(device, error)) return nullptr;
  const Site& site = memory->site_;
  if (!maps_memory(site) || site.driver().cuMemImportFromShareableHandle == nullptr) {
    error.fail(Status::system_refused, "CUDA device " + std::to_string(device) +
                                           " cannot map memory of another process: the driver (" +
                                           site.driver().library() +
                                           ") or the device lacks virtual memory management");
    return nullptr;
  }
  MemAllocationProp property;
  if (!physical_property(site, true, property, memory->granule_, error)) return nullptr;
  bytes = (bytes + memory->granule_ - 1) & ~(memory->granule_ - 1);
  const CurrentContext current(site.driver(), site.context());
  MemoryHandle handle = 0;
  // The driver takes the descriptor as the pointer's value.
  void* given = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd));
  const Result result =
      current.ok() ? site.driver().cuMemImportFromShareableHandle(&handle, given, kHandleTypePosixFd)
                   : kInvalidContext;
  if (result != kSuccess) {
    site.fail(error, "cuMemImportFromShareableHandle", result, 0);
    return nullptr;
  }
  return memory->map(handle, bytes, error) ? std::move(memory) : nullptr;
}

bool WholeMemory::map(MemoryHandle handle, std::size_t bytes, Error& error) {
  SLABPOOL_ASSERT(handle != 0 && handle_ == 0 && allocated_ == 0, "one allocation of one kind", handle,
                  handle_, allocated_);
  handle_ = handle;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  DevicePointer found = 0;
  const char* call = "cuMemAddressReserve";
  Result result =
      current.ok() ? driver.cuMemAddressReserve(&found, bytes, kRangeAlign, 0, 0) : kInvalidContext;
  if (result == kSuccess) {
    base_ = reinterpret_cast<std::byte*>(found);
    address_space_ = bytes;
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
  if (result != kSuccess) return site_.fail(error, call, result, bytes);
  assert_valid();
  return true;
}

WholeMemory::~WholeMemory() {
  if (!site_.usable_here()) return;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  if (!current.ok()) return;
  if (allocated_ != 0) (void)driver.cuMemFree(allocated_);
  if (handle_ == 0) return;
  const bool unmapped = !mapped_ || driver.cuMemUnmap(address(0), address_space_) == kSuccess;
  if (base_ != nullptr && unmapped) (void)driver.cuMemAddressFree(address(0), address_space_);
  (void)driver.cuMemRelease(handle_);
}

int WholeMemory::export_fd(Error& error) const {
  int fd = -1;
  if (handle_ == 0) {
    error.fail(Status::invalid_argument, "this memory was not made to be shared between processes");
    return -1;
  }
  if (!site_.usable_here()) {
    error.fail(Status::forked,
               "the memory is the parent process's, and a driver does not survive a fork");
    return -1;
  }
  const CurrentContext current(site_.driver(), site_.context());
  const Result result =
      current.ok() ? site_.driver().cuMemExportToShareableHandle(&fd, handle_, kHandleTypePosixFd, 0)
                   : kInvalidContext;
  if (result == kSuccess) return fd;
  site_.fail(error, "cuMemExportToShareableHandle", result, 0);
  return -1;
}

}  // namespace slabpool::cuda
