// Memory that the host and a device both access: pinned host pages, and managed pages.
#pragma once

#include <memory>
#include <vector>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/site.hpp"
#include "slabpool/memory/host_memory.hpp"

namespace slabpool::cuda {

// Host pages that are registered with the driver as they are committed: pinned, and mapped for every device. Each
// granule is a registration of its own, because the driver unregisters only what was registered as one.
//
// Invariants:
//   granule i is committed  =>  pinned_[i]
//   pinned_[i]  =>  granule i is readable and writable: its pages are never decommitted while they are registered.
class PinnedMemory final : public MemoryResource {
 public:
  static std::unique_ptr<PinnedMemory> create(const CudaMemoryOptions& options, Error& error);
  ~PinnedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;
  Error refusal() const override;

 private:
  PinnedMemory() = default;
  bool driver_refused(const char* call, Result result, std::size_t bytes) noexcept;
  Result pin(std::size_t granule) noexcept;
  Result unpin(std::size_t granule) noexcept;
  bool pin_all(std::size_t first, std::size_t end) noexcept;  // granules that are not pinned yet
  void undo_commit(std::size_t first, std::size_t end) noexcept;

  Site site_;
  Refusal refusal_;
  std::unique_ptr<HostMemory> host_;
  std::vector<bool> pinned_;  // one entry for each granule up to the last that was ever committed
};

// Pages that the driver migrates between the host and the device. All of them are committed from the start.
class ManagedMemory final : public MemoryResource {
 public:
  static std::unique_ptr<ManagedMemory> create(const CudaMemoryOptions& options, Error& error);
  ~ManagedMemory() override;

  bool commit(std::size_t, std::size_t) noexcept override { return true; }
  bool decommit(std::size_t, std::size_t) noexcept override { return false; }

 private:
  ManagedMemory() = default;

  Site site_;
  DevicePointer allocated_ = 0;
};

}  // namespace slabpool::cuda
