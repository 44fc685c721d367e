#include <algorithm>
#include <cerrno>
#include <cstring>

#include "slabpool/cuda/device_info.hpp"
#include "slabpool/cuda/host_side_memory.hpp"

namespace slabpool::cuda {
namespace {

// Registering takes a system call and a lock of the driver each time, so large pieces are better; a piece that
// is in use anywhere stays, so not too large.
constexpr std::size_t kMostGranule = std::size_t{32} << 20;

// The largest piece that the capacity is a multiple of, or that is at most a 64th of it: a pool has whole
// pieces, and its capacity is rounded up to them.
std::size_t granule_for(std::size_t capacity) {
  std::size_t granule = kMostGranule;
  while (granule > kPageSize && capacity % granule != 0 && granule > capacity / 64) granule /= 2;
  return granule;
}

}  // namespace

std::unique_ptr<PinnedMemory> PinnedMemory::create(const CudaMemoryOptions& options, std::string& why) {
  std::unique_ptr<PinnedMemory> memory(new PinnedMemory());
  memory->kind_ = MemoryKind::pinned;
  // Registered for all devices in any case. Some context has to do it, and there is always a first device.
  if (!memory->site_.find(std::max(options.device, 0), why)) return nullptr;
  HostMemoryOptions host;
  host.reserve = options.reserve;
  host.minimum = std::max(options.minimum, options.capacity);
  if (options.device >= 0) host.near_node = nearest_node(memory->site_.driver(), options.device);
  memory->host_ = HostMemory::create(host);
  if (memory->host_ == nullptr) {
    why = "the system does not reserve " + show_bytes(host.minimum) +
          " of addresses: " + std::strerror(errno);
    return nullptr;
  }
  memory->granule_ = granule_for(options.capacity);
  memory->base_ = memory->host_->base();
  memory->reserved_ = memory->host_->reserved() & ~(memory->granule_ - 1);
  return memory;
}

PinnedMemory::~PinnedMemory() {
  if (host_ == nullptr || !site_.here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  for (std::size_t i = 0; current.ok() && i < pinned_.size(); ++i) {
    if (pinned_[i]) (void)unpin(i);
  }
}

Result PinnedMemory::pin(std::size_t granule) noexcept {
  const Result result = site_.driver().cuMemHostRegister(base_ + granule * granule_, granule_,
                                                         kHostRegisterPortable | kHostRegisterDeviceMap);
  if (result == kSuccess) pinned_[granule] = true;
  return result;
}

Result PinnedMemory::unpin(std::size_t granule) noexcept {
  const Result result = site_.driver().cuMemHostUnregister(base_ + granule * granule_);
  if (result == kSuccess) pinned_[granule] = false;
  return result;
}

bool PinnedMemory::pin_all(std::size_t first, std::size_t end) noexcept {
  for (std::size_t i = first; i < end; ++i) {
    if (pinned_[i]) continue;
    const Result result = pin(i);
    if (result == kSuccess) continue;
    refusal_.note("cuMemHostRegister", result, granule_);
    return false;
  }
  return true;
}

// Pages that the driver will not let go of stay as they are: the device would go on using the old ones while
// the host gets new ones.
void PinnedMemory::give_back(std::size_t first, std::size_t end) noexcept {
  for (std::size_t i = first; i < end; ++i) {
    if (!pinned_[i] || unpin(i) == kSuccess) (void)host_->decommit(i * granule_, granule_);
  }
}

bool PinnedMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  if (!site_.here()) return false;
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  try {
    if (pinned_.size() < end) pinned_.resize(end);
  } catch (const std::bad_alloc&) {
    errno = ENOMEM;
    return false;
  }
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  if (!host_->commit(offset, bytes)) return false;
  for (std::size_t i = first; i < end; ++i) {
    if (pinned_[i])
      std::memset(base_ + i * granule_, 0, granule_);  // stayed once, and must read as zero
  }
  if (pin_all(first, end)) return true;
  give_back(first, end);
  return false;
}

bool PinnedMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  if (!site_.here()) return false;
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return refusal_.no_context(bytes);
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  Result result = kSuccess;
  for (std::size_t i = first; i < end && result == kSuccess; ++i) {
    if (pinned_[i]) result = unpin(i);
  }
  if (result != kSuccess) refusal_.note("cuMemHostUnregister", result, granule_);
  if (result == kSuccess && host_->decommit(offset, bytes)) return true;
  // As it was, as far as the driver lets us; without, copies still work, but not beside the host.
  (void)pin_all(first, end);
  return false;
}

}  // namespace slabpool::cuda
