// The stand-in driver: virtual memory management, that is address ranges, physical memory, and its mappings.
//
// Rules from the driver's reference: sizes and addresses are whole granules, an allocation is mapped as a whole and
// unmapped as it was mapped, there is no access before cuMemSetAccess, and physical memory is freed with its last handle
// and mapping. Exported memory is a file; its last page identifies it to the process that imports it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <memory>

#include "internal.hpp"

namespace standin {
namespace {

constexpr std::size_t kGranule = std::size_t{2} << 20;
constexpr std::size_t kPage = 4096;
constexpr char kMagic[] = "slabpool stand-in device memory";

struct Physical {
  std::byte* at = nullptr;
  std::size_t bytes = 0;
  int device = 0;
  int fd = -1;            // of exportable memory
  bool imported = false;  // the exporting process counts its bytes
  unsigned handles = 0;
  unsigned mappings = 0;

  Physical() = default;
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;
  ~Physical() {
    unmap(at, bytes);
    if (fd >= 0) (void)close(fd);
    if (!imported) state().devices[static_cast<std::size_t>(device)].used -= bytes;
  }
};
struct Mapping {
  std::size_t bytes = 0;
  MemoryHandle physical = 0;
  std::vector<bool> access;  // for each device
};

// Guarded by the one lock. Never destroyed, because pools may be destroyed after static objects.
auto& ranges = *new std::map<DevicePointer, std::size_t>;
auto& mappings = *new std::map<DevicePointer, Mapping>;
auto& memory = *new std::map<MemoryHandle, std::unique_ptr<Physical>>;
MemoryHandle next_handle = 0x5a0000000001;

bool whole(std::uint64_t value) { return value % kGranule == 0; }

// The range that contains all these bytes.
bool in_a_range(DevicePointer address, std::size_t bytes) {
  auto next = ranges.upper_bound(address);
  if (next == ranges.begin()) return false;
  --next;
  const std::size_t offset = address - next->first;
  return offset < next->second && bytes <= next->second - offset;
}

bool anything_mapped(DevicePointer address, std::size_t bytes) {
  auto next = mappings.lower_bound(address);
  if (next != mappings.end() && next->first - address < bytes) return true;
  if (next == mappings.begin()) return false;
  --next;
  return address - next->first < next->second.bytes;
}

// Only values that the stand-in has returned are handles.
Physical* physical_of(MemoryHandle handle) {
  const auto found = memory.find(handle);
  return found != memory.end() && found->second->handles > 0 ? found->second.get() : nullptr;
}

void drop(MemoryHandle handle) {
  const auto found = memory.find(handle);
  if (found->second->handles == 0 && found->second->mappings == 0) memory.erase(found);
}

void unmap_one(std::map<DevicePointer, Mapping>::iterator mapping) {
  const MemoryHandle handle = mapping->second.physical;
  mappings.erase(mapping);
  --memory.at(handle)->mappings;
  drop(handle);
}

bool supports(int device, int attribute) {
  const auto& attributes = state().devices[static_cast<std::size_t>(device)].attributes;
  const auto found = attributes.find(attribute);
  return found != attributes.end() && found->second != 0;
}

struct Footer {
  char magic[sizeof kMagic] = {};
  int device = 0;
};

int shared_file(std::size_t bytes, int device) {
  const int fd = memfd_create("slabpool-standin", MFD_CLOEXEC);
  Footer footer;
  std::memcpy(footer.magic, kMagic, sizeof kMagic);
  footer.device = device;
  if (fd >= 0 && (ftruncate(fd, static_cast<off_t>(bytes + kPage)) != 0 ||
                  pwrite(fd, &footer, sizeof footer, static_cast<off_t>(bytes)) != sizeof footer)) {
    (void)close(fd);
    return -1;
  }
  return fd;
}

}  // namespace

bool resolve_virtual(DevicePointer address, std::size_t bytes, int device, Piece& piece, bool& failed) {
  if (!in_a_range(address, 1)) return false;
  auto next = mappings.upper_bound(address);
  if (next != mappings.begin()) {
    --next;
    const std::size_t offset = address - next->first;
    if (offset < next->second.bytes) {
      if (device < 0 || next->second.access[static_cast<std::size_t>(device)]) {
        piece = {memory.at(next->second.physical)->at + offset,
                 std::min(bytes, next->second.bytes - offset)};
        return true;
      }
      (void)complain("device %d has no access to 0x%" PRIx64, device, address);
      failed = true;
      return false;
    }
  }
  (void)complain("nothing is mapped at 0x%" PRIx64, address);
  failed = true;
  return false;
}

void reset_virtual_memory() {
  mappings.clear();
  memory.clear();
  for (const auto& [address, bytes] : ranges) unmap(reinterpret_cast<void*>(address), bytes);
  ranges.clear();
}

void list_virtual_memory(std::string& out) {
  char line[128];
  for (const auto& [address, bytes] : ranges) {
    std::snprintf(line, sizeof line, "cuMemAddressReserve 0x%" PRIx64 ", %zu bytes\n", address, bytes);
    out += line;
  }
  for (const auto& [address, mapping] : mappings) {
    std::snprintf(line, sizeof line, "cuMemMap 0x%" PRIx64 ", %zu bytes\n", address, mapping.bytes);
    out += line;
  }
  for (const auto& [handle, physical] : memory) {
    std::snprintf(line, sizeof line, "%s 0x%" PRIx64 ", %zu bytes, %u handles\n",
                  physical->imported ? "cuMemImportFromShareableHandle" : "cuMemCreate", handle,
                  physical->bytes, physical->handles);
    out += line;
  }
}

}  // namespace standin

using namespace standin;

STANDIN_DRIVER cuMemGetAllocationGranularity(std::size_t* bytes, const MemAllocationProp* wanted,
                                             int kind) {
  STANDIN_CONTEXT_CALL(cuMemGetAllocationGranularity);
  if (wanted->type != kMemAllocationPinned || wanted->location.type != kMemLocationDevice ||
      wanted->location.id < 0 ||
      static_cast<std::size_t>(wanted->location.id) >= state().devices.size() ||
      kind != kGranularityMinimum)
    return complain("cuMemGetAllocationGranularity of kind %d for device %d", kind, wanted->location.id);
  if (!supports(wanted->location.id, kAttributeVirtualMemory)) return kNotSupported;
  *bytes = kGranule;
  return kSuccess;
}

STANDIN_DRIVER cuMemAddressReserve(DevicePointer* address, std::size_t bytes, std::size_t alignment,
                                   DevicePointer, unsigned long long flags) {
  STANDIN_CONTEXT_CALL(cuMemAddressReserve);
  if (!supports(call.device(), kAttributeVirtualMemory)) return kNotSupported;
  if (bytes == 0 || !whole(bytes) || (alignment & (alignment - 1)) != 0 || flags != 0)
    return complain("cuMemAddressReserve of %zu bytes, aligned to %zu, flags %llu", bytes, alignment,
                    flags);
  std::byte* at = map_forbidden(bytes, std::max(alignment, kGranule), 0);
  if (at == nullptr) return kOutOfMemory;
  *address = reinterpret_cast<DevicePointer>(at);
  ranges[*address] = bytes;
  return kSuccess;
}

STANDIN_DRIVER cuMemAddressFree(DevicePointer address, std::size_t bytes) {
  STANDIN_CONTEXT_CALL(cuMemAddressFree);
  const auto found = ranges.find(address);
  if (found == ranges.end() || found->second != bytes)
    return complain("cuMemAddressFree of %zu bytes at 0x%" PRIx64 ", not reserved so", bytes, address);
  if (anything_mapped(address, bytes))
    return complain("cuMemAddressFree of 0x%" PRIx64 ", where something is mapped", address);
  unmap(reinterpret_cast<void*>(address), bytes);
  ranges.erase(found);
  return kSuccess;
}

STANDIN_DRIVER cuMemCreate(MemoryHandle* handle, std::size_t bytes, const MemAllocationProp* wanted,
                           unsigned long long flags) {
  STANDIN_CONTEXT_CALL(cuMemCreate);
  const int device = wanted->location.id;
  if (bytes == 0 || !whole(bytes) || flags != 0 || wanted->type != kMemAllocationPinned ||
      wanted->location.type != kMemLocationDevice || device < 0 ||
      static_cast<std::size_t>(device) >= state().devices.size() ||
      wanted->win32_handle_meta_data != nullptr || wanted->alloc_flags.compression_type != 0 ||
      wanted->alloc_flags.usage != 0)
    return complain("cuMemCreate of %zu bytes on device %d, flags %llu", bytes, device, flags);
  const bool shared = wanted->requested_handle_types == kHandleTypePosixFd;
  if (!shared && wanted->requested_handle_types != kHandleTypeNone)
    return complain("cuMemCreate for handles of type %d", wanted->requested_handle_types);
  if (!supports(device, kAttributeVirtualMemory) ||
      (shared && !supports(device, kAttributeHandleTypePosixFd)))
    return kNotSupported;
  DeviceRecord& record = state().devices[static_cast<std::size_t>(device)];
  if (bytes > record.total || record.used > record.total - bytes) return kOutOfMemory;
  auto made = std::make_unique<Physical>();
  made->device = device;
  if (shared) made->fd = shared_file(bytes, device);
  if (!shared || made->fd >= 0) made->at = map_backing(bytes, made->fd);
  made->imported = true;  // not counted yet
  if (made->at == nullptr) return kOutOfMemory;
  made->bytes = bytes;
  made->imported = false;
  made->handles = 1;
  record.used += bytes;
  // Not zero: device memory has the bytes of its previous user.
  std::memset(made->at, 0xA5, kPage);
  *handle = next_handle++;
  memory[*handle] = std::move(made);
  return kSuccess;
}

STANDIN_DRIVER cuMemRelease(MemoryHandle handle) {
  STANDIN_CONTEXT_CALL(cuMemRelease);
  Physical* physical = physical_of(handle);
  if (physical == nullptr) return complain("cuMemRelease of 0x%" PRIx64 ", which is no handle", handle);
  --physical->handles;
  drop(handle);
  return kSuccess;
}

STANDIN_DRIVER cuMemMap(DevicePointer address, std::size_t bytes, std::size_t offset,
                        MemoryHandle handle, unsigned long long flags) {
  STANDIN_CONTEXT_CALL(cuMemMap);
  Physical* physical = physical_of(handle);
  if (physical == nullptr) return complain("cuMemMap of 0x%" PRIx64 ", which is no handle", handle);
  if (bytes != physical->bytes || offset != 0 || flags != 0 || !whole(address))
    return complain("cuMemMap of %zu bytes at 0x%" PRIx64 " from %zu of %zu bytes, flags %llu", bytes,
                    address, offset, physical->bytes, flags);
  if (!in_a_range(address, bytes))
    return complain("cuMemMap of %zu bytes at 0x%" PRIx64 ", beyond a reserved range", bytes, address);
  if (anything_mapped(address, bytes))
    return complain("cuMemMap at 0x%" PRIx64 ", where something is mapped", address);
  mappings[address] = {bytes, handle, std::vector<bool>(state().devices.size())};
  ++physical->mappings;
  return kSuccess;
}

STANDIN_DRIVER cuMemUnmap(DevicePointer address, std::size_t bytes) {
  STANDIN_CONTEXT_CALL(cuMemUnmap);
  // Exactly one whole mapping: the reference forbids unmapping a part of one, and does not mention several.
  const auto found = mappings.find(address);
  if (found == mappings.end() || found->second.bytes != bytes)
    return complain("cuMemUnmap of %zu bytes at 0x%" PRIx64 ", not mapped so", bytes, address);
  unmap_one(found);
  return kSuccess;
}

STANDIN_DRIVER cuMemSetAccess(DevicePointer address, std::size_t bytes, const MemAccessDesc* access,
                              std::size_t count) {
  STANDIN_CONTEXT_CALL(cuMemSetAccess);
  if (bytes == 0 || !whole(address) || !whole(bytes) || count == 0)
    return complain("cuMemSetAccess to %zu bytes at 0x%" PRIx64 " for %zu devices", bytes, address,
                    count);
  for (std::size_t i = 0; i < count; ++i) {
    const MemAccessDesc& one = access[i];
    if (one.location.type != kMemLocationDevice || one.location.id < 0 ||
        static_cast<std::size_t>(one.location.id) >= state().devices.size() ||
        one.flags != kMemAccessReadWrite)
      return complain("cuMemSetAccess for device %d with flags %d", one.location.id, one.flags);
  }
  for (DevicePointer at = address; at < address + bytes;) {
    const auto found = mappings.find(at);
    if (found == mappings.end() || found->second.bytes > address + bytes - at)
      return complain("cuMemSetAccess to 0x%" PRIx64 ", where no mapping begins or one goes on", at);
    at += found->second.bytes;
  }
  for (DevicePointer at = address; at < address + bytes;) {
    Mapping& mapping = mappings.at(at);
    for (std::size_t i = 0; i < count; ++i)
      mapping.access[static_cast<std::size_t>(access[i].location.id)] = true;
    at += mapping.bytes;
  }
  return kSuccess;
}

STANDIN_DRIVER cuMemExportToShareableHandle(void* out, MemoryHandle handle, int type,
                                            unsigned long long flags) {
  STANDIN_CONTEXT_CALL(cuMemExportToShareableHandle);
  const Physical* physical = physical_of(handle);
  if (physical == nullptr || physical->fd < 0 || type != kHandleTypePosixFd || flags != 0)
    return complain("cuMemExportToShareableHandle of 0x%" PRIx64 " to type %d", handle, type);
  const int fd = fcntl(physical->fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return kUnknown;
  std::memcpy(out, &fd, sizeof fd);
  return kSuccess;
}

STANDIN_DRIVER cuMemImportFromShareableHandle(MemoryHandle* handle, void* shared, int type) {
  STANDIN_CONTEXT_CALL(cuMemImportFromShareableHandle);
  const int given = static_cast<int>(reinterpret_cast<std::intptr_t>(shared));
  struct stat about {};
  Footer footer;
  if (type != kHandleTypePosixFd || fstat(given, &about) != 0 ||
      about.st_size <= static_cast<off_t>(kPage))
    return complain("cuMemImportFromShareableHandle of %d, type %d: no such file", given, type);
  const auto bytes = static_cast<std::size_t>(about.st_size) - kPage;
  if (pread(given, &footer, sizeof footer, static_cast<off_t>(bytes)) != sizeof footer ||
      std::memcmp(footer.magic, kMagic, sizeof kMagic) != 0 || footer.device < 0 ||
      static_cast<std::size_t>(footer.device) >= state().devices.size())
    return complain("cuMemImportFromShareableHandle of %d, which is not exported memory", given);
  auto made = std::make_unique<Physical>();
  made->imported = true;
  made->device = footer.device;
  made->fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
  made->at = made->fd >= 0 ? map_backing(bytes, made->fd) : nullptr;
  if (made->at == nullptr) return kOutOfMemory;
  made->bytes = bytes;
  made->handles = 1;
  *handle = next_handle++;
  memory[*handle] = std::move(made);
  return kSuccess;
}
