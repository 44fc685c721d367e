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
                       std::size_t& granule, Error& error) {
  property = {};
  property.location.id = site.device();
  property.requested_handle_types = exportable ? kHandleTypePosixFd : kHandleTypeNone;
  const CurrentContext current(site.driver(), site.context());
  const Result result = current.ok() ? site.driver().cuMemGetAllocationGranularity(&granule, &property,
                                                                                   kGranularityMinimum)
                                     : kInvalidContext;
  if (result != kSuccess) return site.fail(error, "cuMemGetAllocationGranularity", result, 0);
  // The page heap needs a power of two that is whole pages.
  granule = std::bit_ceil(std::max(granule, kPageSize));
  return true;
}

// ---- DeviceBytes

bool DeviceBytes::start(int device, Error& error) {
  kind_ = MemoryKind::device;
  commits_zero_ = false;  // a page has what its previous user left
  if (!site_.find(device, error)) return false;
  const CurrentContext current(site_.driver(), site_.context());
  const Result result =
      current.ok() ? site_.driver().cuStreamCreate(&stream_, kStreamNonBlocking) : kInvalidContext;
  if (result == kSuccess) return true;
  stream_ = nullptr;
  return site_.fail(error, "cuStreamCreate", result, 0);
}

DeviceBytes::~DeviceBytes() {
  if (stream_ == nullptr || !site_.usable_here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  if (current.ok()) (void)site_.driver().cuStreamDestroy(stream_);
}

bool DeviceBytes::fill(std::byte* at, std::size_t bytes, unsigned char value) noexcept {
  if (bytes == 0) return true;
  if (!site_.usable_here()) return false;
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

std::unique_ptr<MappedMemory> MappedMemory::create(const CudaMemoryOptions& options, Error& error) {
  std::unique_ptr<MappedMemory> memory(new MappedMemory());
  if (!memory->start(options.device, error)) return nullptr;
  const Driver& driver = memory->site_.driver();
  if (!physical_property(memory->site_, false, memory->property_, memory->granule_, error))
    return nullptr;
  const auto whole = [&](std::size_t bytes) {
    return (bytes + memory->granule_ - 1) & ~(memory->granule_ - 1);
  };
  const CurrentContext current(driver, memory->site_.context());
  Result result = current.ok() ? kOutOfMemory : kInvalidContext;
  DevicePointer found = 0;
  const std::size_t least = whole(std::max(options.minimum, options.capacity));
  for (std::size_t bytes = std::max(whole(options.reserve), least); current.ok();
       bytes = std::max(whole(bytes / 2), least)) {
    result = driver.cuMemAddressReserve(&found, bytes, kRangeAlign, 0, 0);
    if (result == kSuccess) memory->address_space_ = bytes;
    if (result == kSuccess || bytes == least) break;
  }
  if (result != kSuccess) {
    memory->site_.fail(error, "cuMemAddressReserve", result, least);
    return nullptr;
  }
  memory->base_ = reinterpret_cast<std::byte*>(found);
  memory->handles_ =
      std::make_unique<VirtualArray<MemoryHandle>>(memory->address_space_ / memory->granule_);
  memory->assert_valid();
  return memory;
}

MappedMemory::~MappedMemory() {
  if (base_ == nullptr || !site_.usable_here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return;
  if (release(0, handles_end_)) (void)site_.driver().cuMemAddressFree(address(0), address_space_);
}

// Where the driver refuses to unmap, the granule keeps its handle.
bool MappedMemory::release(std::size_t first, std::size_t end) noexcept {
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
  SLABPOOL_ASSERT((*handles_)[granule] != 0, "a mapped granule has a handle", granule);
  return site_.driver().cuMemMap(address(granule * granule_), granule_, 0, (*handles_)[granule], 0);
}

bool MappedMemory::set_access(std::size_t offset, std::size_t bytes) noexcept {
  MemAccessDesc access;
  access.location.id = site_.device();
  const Result result = site_.driver().cuMemSetAccess(address(offset), bytes, &access, 1);
  if (result != kSuccess) refusal_.note("cuMemSetAccess", result, bytes);
  return result == kSuccess;
}

void MappedMemory::assert_mapped([[maybe_unused]] std::size_t first,
                                 [[maybe_unused]] std::size_t end) const noexcept {
#if SLABPOOL_ASSERT_LEVEL >= 1
  for (std::size_t i = first; i < end; ++i)
    SLABPOOL_ASSERT((*handles_)[i] != 0, "a committed granule has a handle", i, first, end);
  SLABPOOL_ASSERT(end <= handles_end_, "handles lie below handles_end_", end, handles_end_);
#endif
}

bool MappedMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  if (!site_.usable_here()) return false;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  if (!handles_->open(first, end)) {
    refusal_.note("mprotect of the table of handles", kOutOfMemory, bytes);
    return false;
  }
  handles_end_ = std::max(handles_end_, end);
  for (std::size_t i = first; i < end; ++i) {
    MemoryHandle& handle = (*handles_)[i];
    if (handle != 0) continue;  // undefined: mapped by an earlier call; gets access below
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
      (void)release(first, i);
      return false;
    }
  }
  // Once for all granules, because each call changes the device's page tables.
  if (set_access(offset, bytes)) {
    assert_mapped(first, end);
    return true;
  }
  (void)release(first, end);
  return false;
}

bool MappedMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  if (!site_.usable_here()) return false;
  const Driver& driver = site_.driver();
  const CurrentContext current(driver, site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  for (std::size_t i = first; i < end; ++i) {
    if ((*handles_)[i] == 0) continue;  // undefined: an earlier call did not map it, or unmapped it
    const Result result = driver.cuMemUnmap(address(i * granule_), granule_);
    if (result == kSuccess) continue;
    refusal_.note("cuMemUnmap", result, granule_);
    // Maps them again from their handles, which allocates no memory. A granule that the driver does not map again loses
    // its memory, so that a later commit() allocates it anew.
    for (std::size_t back = first; back < i; ++back) {
      MemoryHandle& handle = (*handles_)[back];
      if (handle == 0) continue;
      if (map(back) != kSuccess) {
        (void)driver.cuMemRelease(handle);
        handle = 0;
      } else {
        (void)set_access(back * granule_, granule_);
      }
    }
    return false;
  }
  for (std::size_t i = first; i < end; ++i) {
    MemoryHandle& handle = (*handles_)[i];
    if (handle == 0) continue;  // also where the table is not open for writing
    (void)driver.cuMemRelease(handle);
    handle = 0;
  }
  return true;
}

}  // namespace slabpool::cuda
