// The stand-in driver: device memory of cuMemAlloc, registered host memory, managed memory, and the lookup of addresses.
//
// Device memory has two mappings. The address that the program gets permits no access, so that a program that touches it
// crashes as with a real device. The bytes are in the other mapping.
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <fstream>

#include "internal.hpp"
#include "standin.h"

namespace standin {
namespace {

constexpr Result kNotRegistered = 713;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
// cuMemAlloc promises an alignment of 256 bytes. The stand-in gives no more, so that no program can rely on more.
constexpr std::size_t kOffset = 512;

struct Allocation {
  std::size_t bytes = 0;
  std::byte* at = nullptr;  // the mapping with the bytes; of managed memory the address itself
  int device = 0;
  bool managed = false;
};
struct Registration {
  std::size_t bytes = 0;
  unsigned flags = 0;
};

// By address. Guarded by the one lock. Never destroyed, because pools may be destroyed after static objects.
auto& allocations = *new std::map<DevicePointer, Allocation>;
auto& registrations = *new std::map<DevicePointer, Registration>;

// The range of `ranges` that contains the address, or the end iterator.
template <typename Ranges>
auto range_at(Ranges& ranges, DevicePointer address) {
  auto next = ranges.upper_bound(address);
  if (next == ranges.begin()) return ranges.end();
  --next;
  return address - next->first < next->second.bytes ? next : ranges.end();
}

template <typename Ranges>
bool overlaps(const Ranges& ranges, DevicePointer address, std::size_t bytes) {
  const auto next = ranges.lower_bound(address);
  if (next != ranges.end() && next->first - address < bytes) return true;
  return range_at(ranges, address) != ranges.end();
}

// Whether the host may write there. A driver would find that out by pinning the pages.
bool writable(DevicePointer address, std::size_t bytes) {
  std::ifstream maps("/proc/self/maps");
  DevicePointer known = address;  // writable up to here
  for (std::string line; known < address + bytes && std::getline(maps, line);) {
    DevicePointer first = 0, end = 0;
    char rights[5] = {};
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s", &first, &end, rights) != 3)
      return false;
    if (first <= known && known < end && rights[0] == 'r' && rights[1] == 'w') known = end;
  }
  return known >= address + bytes;
}

// Whether the host may read there, found without touching the bytes.
bool readable(DevicePointer address, std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  char byte = 0;
  const iovec to{&byte, 1};
  for (DevicePointer at = address; at < address + bytes; at = (at / kPage + 1) * kPage) {
    const iovec from{reinterpret_cast<void*>(at), 1};
    if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) < 0) return errno != EFAULT;
  }
  return true;
}

void release(DevicePointer address, const Allocation& allocation) {
  if (!allocation.managed) {
    state().devices[static_cast<std::size_t>(allocation.device)].used -= allocation.bytes;
    unmap(allocation.at, allocation.bytes);
  }
  unmap(reinterpret_cast<void*>(address - kOffset), allocation.bytes + kOffset);
}

}  // namespace

std::byte* map_backing(std::size_t bytes, int fd) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED, fd, 0);
  return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
}

std::byte* map_forbidden(std::size_t bytes, std::size_t alignment, std::size_t offset) {
  const std::size_t wanted = (bytes + offset + 4095) / 4096 * 4096;
  void* at =
      mmap(nullptr, wanted + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  // Unmaps the excess on both sides.
  auto* first = static_cast<std::byte*>(at);
  const std::size_t head = (alignment - reinterpret_cast<std::uintptr_t>(first) % alignment) % alignment;
  unmap(first, head);
  unmap(first + head + wanted, alignment - head);
  return first + head + offset;
}

void unmap(void* at, std::size_t bytes) {
  if (bytes != 0) (void)munmap(at, bytes);
}

Place place_of(DevicePointer address) {
  if (const auto found = range_at(allocations, address); found != allocations.end())
    return found->second.managed ? Place::managed : Place::device;
  if (range_at(registrations, address) != registrations.end()) return Place::registered;
  Piece piece;
  bool failed = false;
  return resolve_virtual(address, 1, -1, piece, failed) || failed ? Place::device : Place::pageable;
}

bool resolve(DevicePointer address, std::size_t bytes, int device, std::vector<Piece>& pieces) {
  Place first = Place::pageable;
  for (bool begun = false; bytes != 0; begun = true) {
    Piece piece;
    bool failed = false;
    Place place = Place::device;
    if (const auto found = range_at(allocations, address); found != allocations.end()) {
      const std::size_t offset = address - found->first;
      piece = {found->second.at + offset, std::min(bytes, found->second.bytes - offset)};
      if (found->second.managed) place = Place::managed;
    } else if (const auto pinned = range_at(registrations, address); pinned != registrations.end()) {
      piece = {reinterpret_cast<std::byte*>(address),
               std::min(bytes, pinned->second.bytes - (address - pinned->first))};
      place = Place::registered;
    } else if (!resolve_virtual(address, bytes, device, piece, failed)) {
      if (failed) return false;
      piece = {reinterpret_cast<std::byte*>(address), bytes};
      place = Place::pageable;
      if (overlaps(registrations, address, bytes) || overlaps(allocations, address, bytes) ||
          !readable(address, bytes)) {
        (void)complain("%zu bytes at 0x%" PRIx64 " are not all there: freed, or partly registered",
                       bytes, address);
        return false;
      }
    }
    if (begun && place != first) {
      (void)complain("0x%" PRIx64 " is the end of one kind of memory, and a range goes on beyond it",
                     address);
      return false;
    }
    first = place;
    pieces.push_back(piece);
    address += piece.bytes;
    bytes -= piece.bytes;
  }
  return true;
}

void reset_memory() {
  for (const auto& [address, allocation] : allocations) release(address, allocation);
  allocations.clear();
  registrations.clear();
}

void list_memory(std::string& out) {
  char line[128];
  for (const auto& [address, allocation] : allocations) {
    std::snprintf(line, sizeof line, "%s 0x%" PRIx64 ", %zu bytes\n",
                  allocation.managed ? "cuMemAllocManaged" : "cuMemAlloc", address, allocation.bytes);
    out += line;
  }
  for (const auto& [address, registration] : registrations) {
    std::snprintf(line, sizeof line, "cuMemHostRegister 0x%" PRIx64 ", %zu bytes\n", address,
                  registration.bytes);
    out += line;
  }
}

}  // namespace standin

using namespace standin;

STANDIN_DRIVER cuMemGetInfo(std::size_t* free, std::size_t* total) {
  STANDIN_CONTEXT_CALL(cuMemGetInfo);
  const DeviceRecord& device = state().devices[static_cast<std::size_t>(call.device())];
  *total = device.total;
  *free = device.total - std::min(device.used, device.total);
  return kSuccess;
}

STANDIN_DRIVER cuMemAlloc(DevicePointer* address, std::size_t bytes) {
  STANDIN_CONTEXT_CALL(cuMemAlloc);
  if (bytes == 0) return complain("cuMemAlloc of no bytes");
  DeviceRecord& device = state().devices[static_cast<std::size_t>(call.device())];
  if (bytes > device.total || device.used > device.total - bytes) return kOutOfMemory;
  std::byte* shown = map_forbidden(bytes, kHugePage, kOffset);
  std::byte* at = shown != nullptr ? map_backing(bytes, -1) : nullptr;
  if (at == nullptr) {
    if (shown != nullptr) unmap(shown - kOffset, bytes + kOffset);
    return kOutOfMemory;
  }
  device.used += bytes;
  *address = reinterpret_cast<DevicePointer>(shown);
  allocations[*address] = {bytes, at, call.device(), false};
  // Not zero: device memory has the bytes of its previous user.
  std::memset(at, 0xA5, std::min<std::size_t>(bytes, 4096));
  return kSuccess;
}

STANDIN_DRIVER cuMemAllocManaged(DevicePointer* address, std::size_t bytes, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuMemAllocManaged);
  if (bytes == 0) return complain("cuMemAllocManaged of no bytes");
  if (flags != kMemAttachGlobal) return complain("cuMemAllocManaged with flags %u", flags);
  const DeviceRecord& device = state().devices[static_cast<std::size_t>(call.device())];
  const auto managed = device.attributes.find(kAttributeManagedMemory);
  if (managed == device.attributes.end() || managed->second == 0) return kNotSupported;
  std::byte* at = map_forbidden(bytes, kHugePage, kOffset);
  if (at == nullptr) return kOutOfMemory;
  if (mprotect(at - kOffset, bytes + kOffset, PROT_READ | PROT_WRITE) != 0) {
    unmap(at - kOffset, bytes + kOffset);
    return kOutOfMemory;
  }
  *address = reinterpret_cast<DevicePointer>(at);
  allocations[*address] = {bytes, at, call.device(), true};
  return kSuccess;
}

STANDIN_DRIVER cuMemFree(DevicePointer address) {
  STANDIN_CONTEXT_CALL(cuMemFree);
  const auto found = allocations.find(address);
  if (found == allocations.end())
    return complain("cuMemFree of 0x%" PRIx64 ", which is not allocated", address);
  release(address, found->second);
  allocations.erase(found);
  return kSuccess;
}

STANDIN_DRIVER cuMemHostRegister(void* host, std::size_t bytes, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuMemHostRegister);
  const auto address = reinterpret_cast<DevicePointer>(host);
  if (bytes == 0 || (flags & ~(kHostRegisterPortable | kHostRegisterDeviceMap)) != 0)
    return complain("cuMemHostRegister of %zu bytes with flags %u", bytes, flags);
  if (overlaps(registrations, address, bytes)) {
    (void)complain("cuMemHostRegister of 0x%" PRIx64 ", some of which is registered", address);
    return kAlreadyRegistered;
  }
  if (overlaps(allocations, address, bytes) || !writable(address, bytes))
    return complain("cuMemHostRegister of 0x%" PRIx64 ", which the host may not write", address);
    // Makes the pages resident, as pinning does; before Linux 5.14 the first touch does that.
#if defined(MADV_POPULATE_WRITE)
  (void)madvise(host, bytes, MADV_POPULATE_WRITE);
#endif
  registrations[address] = {bytes, flags};
  return kSuccess;
}

STANDIN_DRIVER cuMemHostUnregister(void* host) {
  STANDIN_CONTEXT_CALL(cuMemHostUnregister);
  const auto address = reinterpret_cast<DevicePointer>(host);
  const auto found = registrations.find(address);
  if (found == registrations.end()) {
    (void)complain("cuMemHostUnregister of 0x%" PRIx64 ", which no registration begins at", address);
    return kNotRegistered;
  }
  if (!writable(address, found->second.bytes))
    (void)complain("the memory at 0x%" PRIx64 " went away while it was registered", address);
  registrations.erase(found);
  return kSuccess;
}

STANDIN_DRIVER cuMemHostGetDevicePointer(DevicePointer* address, void* host, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuMemHostGetDevicePointer);
  const auto found = range_at(registrations, reinterpret_cast<DevicePointer>(host));
  if (flags != 0 || found == registrations.end() || (found->second.flags & kHostRegisterDeviceMap) == 0)
    return complain("cuMemHostGetDevicePointer of %p, which is not registered for devices", host);
  *address = reinterpret_cast<DevicePointer>(host);
  return kSuccess;
}

int standin_peek(std::uint64_t address, void* to, std::uint64_t bytes) {
  const std::lock_guard lock(state().mutex);
  std::vector<Piece> pieces;
  if (!resolve(address, bytes, -1, pieces)) return 0;
  auto* at = static_cast<std::byte*>(to);
  for (const Piece& piece : pieces) {
    std::memcpy(at, piece.at, piece.bytes);
    at += piece.bytes;
  }
  return 1;
}

int standin_poke(std::uint64_t address, const void* from, std::uint64_t bytes) {
  const std::lock_guard lock(state().mutex);
  std::vector<Piece> pieces;
  if (!resolve(address, bytes, -1, pieces)) return 0;
  const auto* at = static_cast<const std::byte*>(from);
  for (const Piece& piece : pieces) {
    std::memcpy(piece.at, at, piece.bytes);
    at += piece.bytes;
  }
  return 1;
}
