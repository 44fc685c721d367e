#include "slabpool/memory/host_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#if defined(__linux__)
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#endif

namespace slabpool {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(MAP_NORESERVE)
constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else  // macOS: a PROT_NONE mapping is not charged
constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANON;
#endif

// Pages that are touched from now on come from the node: `only`, or as long as it has some.
bool place_on_node(void* address, std::size_t bytes, int node, bool only) {
#if defined(__linux__)
  if (node < 0 || node >= 1024) {
    errno = EINVAL;
    return false;
  }
  unsigned long mask[1024 / (8 * sizeof(unsigned long))] = {};
  mask[static_cast<unsigned>(node) / (8 * sizeof(unsigned long))] |=
      1UL << (static_cast<unsigned>(node) % (8 * sizeof(unsigned long)));
  return syscall(SYS_mbind, address, bytes, only ? MPOL_BIND : MPOL_PREFERRED, mask, 1024UL + 1, 0U) ==
         0;
#else
  (void)address, (void)bytes, (void)node, (void)only;
  errno = ENOTSUP;
  return false;
#endif
}

}  // namespace

std::unique_ptr<HostMemory> HostMemory::create(const HostMemoryOptions& options) {
  if (sysconf(_SC_PAGESIZE) > static_cast<long>(kPageSize)) {
    errno = ENOTSUP;
    return nullptr;
  }
  std::unique_ptr<HostMemory> memory(new HostMemory());
  void* mapping = MAP_FAILED;
  std::size_t bytes = options.reserve;
  for (; bytes >= options.minimum; bytes /= 2) {
    mapping = mmap(nullptr, bytes + kHugePage, PROT_NONE, kReserveFlags, -1, 0);
    if (mapping != MAP_FAILED) break;
  }
  if (mapping == MAP_FAILED) return nullptr;
  memory->mapping_ = mapping;
  memory->mapping_bytes_ = bytes + kHugePage;
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  const auto aligned = (address + kHugePage - 1) & ~(std::uintptr_t{kHugePage} - 1);
  memory->base_ = static_cast<std::byte*>(mapping) + (aligned - address);
  memory->reserved_ = bytes & ~(kPageSize - 1);
#if defined(MADV_HUGEPAGE)
  // Asked for once on the whole range, not on each large span: mappings with different advice do
  // not merge, and the kernel limits their number. A huge page never reaches beyond committed
  // memory, because the kernel does not build one across a change of protection.
  if (options.huge_pages) (void)madvise(memory->base_, memory->reserved_, MADV_HUGEPAGE);
#if defined(MADV_NOHUGEPAGE)
  else
    (void)madvise(memory->base_, memory->reserved_, MADV_NOHUGEPAGE);
#endif
#endif
  if (options.numa_node >= 0 &&
      !place_on_node(memory->base_, memory->reserved_, options.numa_node, true)) {
    return nullptr;
  }
  if (options.near_node >= 0)
    (void)place_on_node(memory->base_, memory->reserved_, options.near_node, false);
  return memory;
}

HostMemory::~HostMemory() {
  if (mapping_ != nullptr) (void)munmap(mapping_, mapping_bytes_);
}

bool HostMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  return mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0;
}

bool HostMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
#if defined(__APPLE__)
  // MADV_FREE keeps the bytes until the system wants them, so they would not read as zero. A fresh
  // mapping over the old one drops them at once.
  return mmap(base_ + offset, bytes, PROT_NONE, kReserveFlags | MAP_FIXED, -1, 0) != MAP_FAILED;
#else
  // Two calls, not one mmap over the range: that would lose the advice given at creation.
  if (madvise(base_ + offset, bytes, MADV_DONTNEED) != 0) return false;
  return mprotect(base_ + offset, bytes, PROT_NONE) == 0;
#endif
}

}  // namespace slabpool
