// What the driver says of one device. Asking makes no context: a process that only looks at a machine's GPUs
// takes none of their memory.
#pragma once

#include <cstdint>
#include <string>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/driver.hpp"

namespace slabpool::cuda {

struct DeviceInfo {
  std::string name;
  std::uint64_t total_bytes = 0;
  std::string pci;              // "0000:17:00.0"
  int numa_node = -1;           // of the host's memory that is nearest; -1: not known
  bool virtual_memory = false;  // memory is mapped and unmapped piece by piece
  bool exportable = false;      // other processes can map it
  bool managed = false;         // and the host may touch it while the device works
};

// False, and in `why` what failed.
SLABPOOL_API bool describe_device(const Driver& driver, int device, DeviceInfo& info, std::string& why);

// Bytes of the device's memory that nobody has taken, in any process. Makes the device's primary context.
SLABPOOL_API bool free_memory(const Driver& driver, int device, std::uint64_t& bytes, std::string& why);

// An attribute, or `otherwise` where the driver is too old to know it.
int attribute_of(const Driver& driver, int attribute, int device, int otherwise) noexcept;

// The NUMA node nearest to a device, -1 if neither the driver nor the system tells.
int nearest_node(const Driver& driver, int device) noexcept;

}  // namespace slabpool::cuda
