// Device memory that is mapped piece by piece: one reserved range of addresses, and physical memory only where
// it is committed.
//
// Each granule has a handle of its own, because parts of what was committed together are decommitted apart and
// the driver unmaps only what was mapped as one. The handle stays until its granule is decommitted: it is what
// lets a decommit that fails half way be undone without asking for memory. What must stay true: a granule has a
// handle exactly while it is mapped.
#pragma once

#include <memory>
#include <string>

#include "slabpool/cuda/cuda_memory.hpp"
#include "slabpool/cuda/site.hpp"
#include "slabpool/memory/virtual_array.hpp"

namespace slabpool::cuda {

// Memory of a device, and how it is set from the host.
class DeviceBytes : public MemoryResource {
 public:
  ~DeviceBytes() override;
  // On a stream of its own that waits for no other and holds none back: nobody uses these bytes meanwhile.
  bool fill(std::byte* at, std::size_t bytes, unsigned char value) noexcept override;
  std::string refusal() const override { return site_.explain(refusal_); }
  const Site& site() const noexcept { return site_; }

 protected:
  // False, and in `why` what failed.
  bool start(int device, std::string& why);
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
  static std::unique_ptr<MappedMemory> create(const CudaMemoryOptions& options, std::string& why);
  ~MappedMemory() override;

  bool commit(std::size_t offset, std::size_t bytes) noexcept override;
  bool decommit(std::size_t offset, std::size_t bytes) noexcept override;

 private:
  MappedMemory() = default;
  Result map(std::size_t granule) noexcept;  // with the physical memory it has a handle of
  bool allow(std::size_t offset, std::size_t bytes) noexcept;
  // What of these granules has memory; false if the driver would not unmap some.
  bool drop(std::size_t first, std::size_t end) noexcept;

  MemAllocationProp property_;
  std::unique_ptr<VirtualArray<MemoryHandle>> handles_;  // 0: not committed
  std::size_t reached_ = 0;                              // no granule from here on ever had memory
};

// Whether the driver and the device map memory piece by piece.
bool maps_memory(const Site& site) noexcept;
// What device memory of `site` is made of; false and `why` if the driver does not say its granularity.
bool physical_property(const Site& site, bool exportable, MemAllocationProp& property,
                       std::size_t& granule, std::string& why);

}  // namespace slabpool::cuda
