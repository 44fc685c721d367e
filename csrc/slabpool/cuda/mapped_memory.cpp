#include "slabpool/cuda/mapped_memory.hpp"

#include <algorithm>
#include <bit>

#include "slabpool/cuda/device_info.hpp"

namespace slabpool::cuda {

bool maps_memory(const Site& site) noexcept {
  return site.driver().maps_memory() &&
         attribute_of(site.driver(), kAttributeVirtualMemory, site.device(), 0) != 0;
}

bool physical_property(const Site& site, bool exportable, MemAllocationProp& property,
                       std::size_t& granule, std::string& why) {
  property = {};
  property.location.id = site.device();
  property.requested_handle_types = exportable ? kHandleTypePosixFd : kHandleTypeNone;
  const CurrentContext current(site.driver(), site.context());
  const Result result = current.ok() ? site.driver().cuMemGetAllocationGranularity(&granule, &property,
                                                                                   kGranularityMinimum)
                                     : kInvalidContext;
  if (result != kSuccess) {
    why = site.explain("cuMemGetAllocationGranularity", result, 0);
    return false;
  }
  // A page heap counts in powers of two that are whole pages.
  granule = std::bit_ceil(std::max(granule, kPageSize));
  return true;
}

// ---- DeviceBytes

bool DeviceBytes::start(int device, std::string& why) {
  kind_ = MemoryKind::device;
  commits_zero_ = false;  // whatever was there before
  if (!site_.find(device, why)) return false;
  const CurrentContext current(site_.driver(), site_.context());
  const Result result =
      current.ok() ? site_.driver().cuStreamCreate(&stream_, kStreamNonBlocking) : kInvalidContext;
  if (result == kSuccess) return true;
  stream_ = nullptr;
  why = site_.explain("cuStreamCreate", result, 0);
  return false;
}

DeviceBytes::~DeviceBytes() {
  if (stream_ == nullptr || !site_.here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  if (current.ok()) (void)site_.driver().cuStreamDestroy(stream_);
}

bool DeviceBytes::fill(std::byte* at, std::size_t bytes, unsigned char value) noexcept {
  if (bytes == 0) return true;
  if (!site_.here()) return false;
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  const char* call = "cuMemsetD8Async";
  Result result =
      site_.driver().cuMemsetD8Async(reinterpret_cast<DevicePointer>(at), value, bytes, stream_);
  if (result == kSuccess) {
    call = "cuStreamSynchronize";
    result = site_.driver().cuStreamSynchronize(stream_);
  }
  if (result != kSuccess) refusal_.note(call, result, bytes);
  return result == kSuccess;
}

// ---- MappedMemory

std::unique_ptr<MappedMemory> MappedMemory::create(const CudaMemoryOptions& options, std::string& why) {
  std::unique_ptr<MappedMemory> memory(new MappedMemory());
  if (!memory->start(options.device, why)) return nullptr;
  const Driver& driver = memory->site_.driver();
  if (!physical_property(memory->site_, false, memory->property_, memory->granule_, why)) return nullptr;
  const auto whole = [&](std::size_t bytes) {
    return (bytes + memory->granule_ - 1) & ~(memory->granule_ - 1);
  };
  const CurrentContext current(driver, memory->site_.context());
  Result result = current.ok() ? kOutOfMemory : kInvalidContext;
  DevicePointer found = 0;
  const std::size_t least = whole(std::max(options.minimum, options.capacity));
  for (std::size_t bytes = std::max(whole(options.reserve), least); current.ok();
       bytes = std::max(whole(bytes / 2), least)) {
    result = driver.cuMemAddressReserve(&found, bytes, kAlignment, 0, 0);
    if (result == kSuccess) memory->reserved_ = bytes;
    if (result == kSuccess || bytes == least) break;
  }
  if (result != kSuccess) {
    why = memory->site_.explain("cuMemAddressReserve", result, least);
    return nullptr;
  }
  memory->base_ = reinterpret_cast<std::byte*>(found);
  memory->handles_ = std::make_unique<VirtualArray<MemoryHandle>>(memory->reserved_ / memory->granule_);
  return memory;
}

MappedMemory::~MappedMemory() {
  if (base_ == nullptr || !site_.here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return;
  if (drop(0, reached_)) (void)site_.driver().cuMemAddressFree(address(0), reserved_);
}

// Left alone where the driver will not unmap: the handle then says that the granule still has memory.
bool MappedMemory::drop(std::size_t first, std::size_t end) noexcept {
  bool all = true;
  for (std::size_t i = first; i < end; ++i) {
    MemoryHandle& handle = (*handles_)[i];
    if (handle == 0) continue;
    if (site_.driver().cuMemUnmap(address(i * granule_), granule_) != kSuccess) {
      all = false;
      continue;
    }
    (void)site_.driver().cuMemRelease(handle);
    handle = 0;
  }
  return all;
}

Result MappedMemory::map(std::size_t granule) noexcept {
  return site_.driver().cuMemMap(address(granule * granule_), granule_, 0, (*handles_)[granule], 0);
}

bool MappedMemory::allow(std::size_t offset, std::size_t bytes) noexcept {
  MemAccessDesc access;
  access.location.id = site_.device();
  const Result result = site_.driver().cuMemSetAccess(address(offset), bytes, &access, 1);
  if (result != kSuccess) refusal_.note("cuMemSetAccess", result, bytes);
  return result == kSuccess;
}

bool MappedMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  if (!site_.here()) return false;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  reached_ = std::max(reached_, end);
  for (std::size_t i = first; i < end; ++i) {
    MemoryHandle& handle = (*handles_)[i];
    if (handle != 0) continue;  // could not be unmapped once: it has memory, and gets access below
    const char* call = "cuMemCreate";
    MemoryHandle made = 0;
    Result result = driver.cuMemCreate(&made, granule_, &property_, 0);
    if (result == kSuccess) {
      handle = made;
      call = "cuMemMap";
      result = map(i);
      if (result != kSuccess) {
        (void)driver.cuMemRelease(made);
        handle = 0;
      }
    }
    if (result != kSuccess) {
      refusal_.note(call, result, bytes);
      (void)drop(first, i);
      return false;
    }
  }
  // Once for the whole run: this is what makes the device's page tables change.
  if (allow(offset, bytes)) return true;
  (void)drop(first, end);
  return false;
}

bool MappedMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  if (!site_.here()) return false;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  for (std::size_t i = first; i < end; ++i) {
    const Result result = driver.cuMemUnmap(address(i * granule_), granule_);
    if (result == kSuccess) continue;
    refusal_.note("cuMemUnmap", result, granule_);
    // Mapped again from the handles, which takes no memory. Should even that fail the device is lost.
    for (std::size_t back = first; back < i; ++back) (void)map(back);
    if (i != first) (void)allow(offset, (i - first) * granule_);
    return false;
  }
  for (std::size_t i = first; i < end; ++i) {
    (void)driver.cuMemRelease((*handles_)[i]);
    (*handles_)[i] = 0;
  }
  return true;
}

}  // namespace slabpool::cuda
