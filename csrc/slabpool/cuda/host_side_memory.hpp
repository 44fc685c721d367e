// Memory that the host and a device both reach: pinned pages of the host, and managed pages.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/site.hpp"
#include "slabpool/memory/host_memory.hpp"

namespace slabpool::cuda {

// Pages of the host that are registered with the driver as they are committed: pinned, and mapped for every
// device. A granule is one registration, because it goes as it came: what must stay true is that a granule is
// registered exactly while it is committed.
class PinnedMemory final : public MemoryResource {
 public:
  static std::unique_ptr<PinnedMemory> create(const CudaMemoryOptions& options, std::string& why);
  ~PinnedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;
  std::string refusal() const override { return site_.explain(refusal_); }

 private:
  PinnedMemory() = default;
  Result pin(std::size_t granule) noexcept;
  Result unpin(std::size_t granule) noexcept;
  bool pin_all(std::size_t first, std::size_t end) noexcept;  // those that are not yet
  void give_back(std::size_t first, std::size_t end) noexcept;

  Site site_;
  Refusal refusal_;
  std::unique_ptr<HostMemory> host_;
  std::vector<bool> pinned_;  // of each granule that was ever committed
};

// Pages that the driver moves between the host and the device. All of them are there from the start.
class ManagedMemory final : public MemoryResource {
 public:
  static std::unique_ptr<ManagedMemory> create(const CudaMemoryOptions& options, std::string& why);
  ~ManagedMemory() override;

  bool commit(std::size_t, std::size_t) noexcept override { return true; }
  bool decommit(std::size_t, std::size_t) noexcept override { return false; }

 private:
  ManagedMemory() = default;

  Site site_;
  DevicePointer allocated_ = 0;
};

}  // namespace slabpool::cuda
