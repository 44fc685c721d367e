#include <algorithm>
#include <cerrno>
#include <cstring>

#include "slabpool/cuda/device_info.hpp"
#include "slabpool/cuda/host_side_memory.hpp"

namespace slabpool::cuda {
namespace {

// Each registration takes a system call and a lock of the driver, which favours large granules. A granule of which any
// page is in use cannot be returned to the system, which favours small ones.
constexpr std::size_t kMostGranule = std::size_t{32} << 20;

// The largest granule that divides the capacity or is at most 1/64 of it: the capacity of a pool is rounded up to
// whole granules.
std::size_t granule_for(std::size_t capacity) {
  std::size_t granule = kMostGranule;
  while (granule > kMostSystemPage && capacity % granule != 0 && granule > capacity / 64) granule /= 2;
  return granule;
}

}  // namespace

std::unique_ptr<PinnedMemory> PinnedMemory::create(const CudaMemoryOptions& options, Error& error) {
  std::unique_ptr<PinnedMemory> memory(new PinnedMemory());
  memory->kind_ = MemoryKind::pinned;
  // The pages are registered for all devices, from the context of any of them: device 0 always exists.
  if (!memory->site_.find(std::max(options.device, 0), error)) return nullptr;
  HostMemoryOptions host;
  host.reserve = options.reserve;
  host.minimum = std::max(options.minimum, options.capacity);
  if (options.device >= 0) host.preferred_node = nearest_node(memory->site_.driver(), options.device);
  memory->host_ = HostMemory::create(host, error);
  if (memory->host_ == nullptr) {
    error.fail_errno("the system does not reserve " + show_bytes(host.minimum) +
                         " of addresses: " + std::strerror(error.system_errno),
                     error.system_errno);
    return nullptr;
  }
  memory->granule_ = granule_for(options.capacity);
  memory->base_ = memory->host_->base();
  memory->address_space_ = memory->host_->address_space() & ~(memory->granule_ - 1);
  memory->assert_valid();
  return memory;
}

PinnedMemory::~PinnedMemory() {
  if (host_ == nullptr || !site_.usable_here()) return;
  const CurrentContext current(site_.driver(), site_.context());
  for (std::size_t i = 0; current.ok() && i < pinned_.size(); ++i) {
    if (pinned_[i]) (void)unpin(i);
  }
}

Error PinnedMemory::refusal() const {
  Error system = MemoryResource::refusal();
  return system.status != Status::ok ? system : site_.error_of(refusal_);
}

bool PinnedMemory::driver_refused(const char* call, Result result, std::size_t bytes) noexcept {
  refused_errno_.store(0, std::memory_order_relaxed);  // only the last refusal is reported
  refusal_.note(call, result, bytes);
  return false;
}

Result PinnedMemory::pin(std::size_t granule) noexcept {
  SLABPOOL_ASSERT(!pinned_[granule], "a granule is registered once", granule);
  const Result result = site_.driver().cuMemHostRegister(base_ + granule * granule_, granule_,
                                                         kHostRegisterPortable | kHostRegisterDeviceMap);
  if (result == kSuccess) pinned_[granule] = true;
  return result;
}

Result PinnedMemory::unpin(std::size_t granule) noexcept {
  SLABPOOL_ASSERT(pinned_[granule], "only a registered granule is unregistered", granule);
  const Result result = site_.driver().cuMemHostUnregister(base_ + granule * granule_);
  if (result == kSuccess) pinned_[granule] = false;
  return result;
}

bool PinnedMemory::pin_all(std::size_t first, std::size_t end) noexcept {
  for (std::size_t i = first; i < end; ++i) {
    if (pinned_[i]) continue;
    const Result result = pin(i);
    if (result == kSuccess) continue;
    return driver_refused("cuMemHostRegister", result, granule_);
  }
  return true;
}

// Pages that the driver refuses to unregister stay committed: after a decommit the device would still use the old
// pages while the host gets new ones.
void PinnedMemory::undo_commit(std::size_t first, std::size_t end) noexcept {
  for (std::size_t i = first; i < end; ++i) {
    if (!pinned_[i] || unpin(i) == kSuccess) (void)host_->decommit(i * granule_, granule_);
  }
}

bool PinnedMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  if (!site_.usable_here()) return false;
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  try {
    if (pinned_.size() < end) pinned_.resize(end);
  } catch (const std::bad_alloc&) {
    errno = ENOMEM;
    return note_refusal();
  }
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return driver_refused("cuCtxPushCurrent", kInvalidContext, bytes);
  if (!host_->commit(offset, bytes)) return note_refusal();
  for (std::size_t i = first; i < end; ++i) {
    // Undefined: stayed registered after an earlier call was refused. Committed bytes must read as zero.
    if (pinned_[i]) std::memset(base_ + i * granule_, 0, granule_);
  }
  if (pin_all(first, end)) return true;
  undo_commit(first, end);
  return false;
}

bool PinnedMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  if (!site_.usable_here()) return false;
  const CurrentContext current(site_.driver(), site_.context());
  if (!current.ok()) return driver_refused("cuCtxPushCurrent", kInvalidContext, bytes);
  const std::size_t first = offset / granule_;
  const std::size_t end = first + bytes / granule_;
  // Shorter if a commit() found no memory for the entries.
  const std::size_t known = std::min(end, pinned_.size());
  Result result = kSuccess;
  for (std::size_t i = first; i < known && result == kSuccess; ++i) {
    if (pinned_[i]) result = unpin(i);
  }
  if (result != kSuccess) (void)driver_refused("cuMemHostUnregister", result, granule_);
  if (result == kSuccess) {
    if (host_->decommit(offset, bytes)) return true;
    (void)note_refusal();
  }
  // Opens the pages again, because the system may have closed some, and registers the granules. Whatever is refused
  // here, the page heap's commit() does again.
  if (known == end && host_->commit(offset, bytes)) (void)pin_all(first, end);
  return false;
}

}  // namespace slabpool::cuda
