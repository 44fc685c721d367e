// What the driver says about one device. describe_device() creates no context, so a process that only lists the GPUs
// uses none of their memory.
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
  int numa_node = -1;           // the nearest node of host memory; -1: not known
  bool virtual_memory = false;  // memory can be mapped and unmapped in pieces
  bool exportable = false;      // other processes can map its memory
  bool managed = false;  // it has managed memory, which the host may access while the device works
};

// False if the driver refuses.
SLABPOOL_API bool describe_device(const Driver& driver, int device, DeviceInfo& info, Error& error);

// Bytes of the device's memory that no process has allocated. Creates the device's primary context. False if the
// driver refuses.
SLABPOOL_API bool free_memory(const Driver& driver, int device, std::uint64_t& bytes, Error& error);

// An attribute, or `otherwise` if the driver is too old to know it.
int attribute_of(const Driver& driver, int attribute, int device, int otherwise) noexcept;

// The NUMA node nearest to a device, -1 if neither the driver nor the kernel knows it.
int nearest_node(const Driver& driver, int device) noexcept;

}  // namespace slabpool::cuda
