#include "slabpool/cuda/device_info.hpp"

#include <cstdio>
#include <fstream>

namespace slabpool::cuda {
namespace {

// The device's name in /sys/bus/pci/devices.
std::string pci_of(const Driver& driver, int device) {
  char text[32];
  std::snprintf(text, sizeof text, "%04x:%02x:%02x.0",
                static_cast<unsigned>(attribute_of(driver, kAttributePciDomain, device, 0)),
                static_cast<unsigned>(attribute_of(driver, kAttributePciBus, device, 0)),
                static_cast<unsigned>(attribute_of(driver, kAttributePciDevice, device, 0)));
  return text;
}

}  // namespace

int attribute_of(const Driver& driver, int attribute, int device, int otherwise) noexcept {
  int value = 0;
  return driver.cuDeviceGetAttribute(&value, attribute, device) == kSuccess ? value : otherwise;
}

int nearest_node(const Driver& driver, int device) noexcept {
  // Drivers before 12.2 do not know the attribute; the kernel knows the node of the PCI slot.
  if (const int node = attribute_of(driver, kAttributeHostNumaId, device, -1); node >= 0) return node;
  try {
    std::ifstream file("/sys/bus/pci/devices/" + pci_of(driver, device) + "/numa_node");
    int node = -1;
    return file >> node ? node : -1;
  } catch (const std::exception&) {
    return -1;
  }
}

bool describe_device(const Driver& driver, int device, DeviceInfo& info, Error& error) {
  Device handle = 0;
  char name[256] = {};
  std::size_t bytes = 0;
  const char* call = "cuDeviceGet";
  Result result = driver.cuDeviceGet(&handle, device);
  if (result == kSuccess) {
    call = "cuDeviceGetName";
    result = driver.cuDeviceGetName(name, sizeof name - 1, handle);
  }
  if (result == kSuccess) {
    call = "cuDeviceTotalMem";
    result = driver.cuDeviceTotalMem(&bytes, handle);
  }
  if (result != kSuccess)
    return error.fail(Status::system_refused, std::string(call) + " of CUDA device " +
                                                  std::to_string(device) + ": " +
                                                  driver.describe(result));
  info.name = name;
  info.total_bytes = bytes;
  info.pci = pci_of(driver, handle);
  info.numa_node = nearest_node(driver, handle);
  info.virtual_memory =
      driver.maps_memory() && attribute_of(driver, kAttributeVirtualMemory, handle, 0) != 0;
  info.exportable = info.virtual_memory && driver.cuMemExportToShareableHandle != nullptr &&
                    driver.cuMemImportFromShareableHandle != nullptr &&
                    attribute_of(driver, kAttributeHandleTypePosixFd, handle, 0) != 0;
  info.managed = attribute_of(driver, kAttributeManagedMemory, handle, 0) != 0 &&
                 attribute_of(driver, kAttributeConcurrentManagedAccess, handle, 0) != 0;
  return true;
}

bool free_memory(const Driver& driver, int device, std::uint64_t& bytes, Error& error) {
  Result result = kSuccess;
  const Context context = driver.context(device, result);
  if (context != nullptr) {
    const CurrentContext current(driver, context);
    std::size_t free = 0, total = 0;
    result = current.ok() ? driver.cuMemGetInfo(&free, &total) : kInvalidContext;
    bytes = free;
  }
  return result == kSuccess ||
         error.fail(Status::system_refused, "the free memory of CUDA device " + std::to_string(device) +
                                                ": " + driver.describe(result));
}

}  // namespace slabpool::cuda
