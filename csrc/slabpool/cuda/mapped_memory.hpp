// Device memory that is mapped in granules: one reserved range of addresses, with physical memory only where it is
// committed.
//
// Each granule has a handle of its own, because granules that were committed together are decommitted apart and the
// driver unmaps only what was mapped as one. The handle is kept until its granule is decommitted, so that a decommit
// which fails half way is undone without allocating memory.
//
// Invariants:
//   handles_[i] != 0  <=>  granule i is mapped        (between calls)
//   granule i is committed  =>  handles_[i] != 0;   handles_[i] != 0  =>  it is committed, or undefined
//   i >= handles_end_  =>  handles_[i] = 0
#pragma once

#include <memory>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/site.hpp"
#include "slabpool/memory/virtual_array.hpp"

namespace slabpool::cuda {

// Device memory, and setting its bytes from the host.
class DeviceBytes : public MemoryResource {
 public:
  ~DeviceBytes() override;
  // On a stream of its own, which does not synchronise with other streams: the caller owns these bytes meanwhile.
  bool fill(std::byte* at, std::size_t bytes, unsigned char value) noexcept override;
  Error refusal() const override { return site_.error_of(refusal_); }
  const Site& site() const noexcept { return site_; }

 protected:
  bool start(int device, Error& error);
  DevicePointer address(std::size_t offset) const noexcept {
    return reinterpret_cast<DevicePointer>(base_) + offset;
  }

  Site site_;
  Refusal refusal_;

 private:
  Stream stream_ = nullptr;
};

class MappedMemory final : public DeviceBytes {
 public:
  static std::unique_ptr<MappedMemory> create(const CudaMemoryOptions& options, Error& error);
  ~MappedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;

 private:
  MappedMemory() = default;
  Result map(std::size_t granule) noexcept;  // the physical memory of its handle
  bool set_access(std::size_t offset, std::size_t bytes) noexcept;
  // Unmaps and frees those of these granules that have memory; false if the driver refused to unmap some.
  bool release(std::size_t first, std::size_t end) noexcept;
  // Checks the first two invariants, one granule at a time.
  void assert_mapped(std::size_t first, std::size_t end) const noexcept;

  MemAllocationProp property_;
  std::unique_ptr<VirtualArray<MemoryHandle>> handles_;  // 0: none
  std::size_t handles_end_ = 0;
};

// Whether the driver and the device have virtual memory management.
bool maps_memory(const Site& site) noexcept;
// The properties of physical memory on the device of `site`, and its granule; false if the driver refuses.
bool physical_property(const Site& site, bool exportable, MemAllocationProp& property,
                       std::size_t& granule, Error& error);

}  // namespace slabpool::cuda
