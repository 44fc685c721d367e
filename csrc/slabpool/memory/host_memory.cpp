#include "slabpool/memory/host_memory.hpp"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

namespace slabpool {
namespace {

constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

// Takes pages that are touched from now on from the node: only from it with `bind`, else as long as it has some.
bool place_on_node(void* address, std::size_t bytes, int node, bool bind) {
  if (node < 0 || node >= 1024) {
    errno = EINVAL;
    return false;
  }
  unsigned long mask[1024 / (8 * sizeof(unsigned long))] = {};
  mask[static_cast<unsigned>(node) / (8 * sizeof(unsigned long))] |=
      1UL << (static_cast<unsigned>(node) % (8 * sizeof(unsigned long)));
  return syscall(SYS_mbind, address, bytes, bind ? MPOL_BIND : MPOL_PREFERRED, mask, 1024UL + 1, 0U) ==
         0;
}

}  // namespace

std::unique_ptr<HostMemory> HostMemory::create(const HostMemoryOptions& options, Error& error) {
  if (sysconf(_SC_PAGESIZE) > static_cast<long>(kMostSystemPage)) {
    error.fail_errno({}, ENOTSUP);
    return nullptr;
  }
  std::unique_ptr<HostMemory> memory(new HostMemory());
  void* mapping = MAP_FAILED;
  std::size_t bytes = options.reserve;
  errno = ENOMEM;  // where not even `reserve` is as much as `minimum`
  for (; bytes >= options.minimum; bytes /= 2) {
    mapping = mmap(nullptr, bytes + kRangeAlign, PROT_NONE, kReserveFlags, -1, 0);
    if (mapping != MAP_FAILED) break;
  }
  if (mapping == MAP_FAILED) {
    error.fail_errno();
    return nullptr;
  }
  memory->mapping_ = mapping;
  memory->mapping_bytes_ = bytes + kRangeAlign;
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  const auto aligned = (address + kRangeAlign - 1) & ~(std::uintptr_t{kRangeAlign} - 1);
  memory->base_ = static_cast<std::byte*>(mapping) + (aligned - address);
  memory->granule_ = std::max(kPageSize, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  memory->has_holes_ = true;
  memory->address_space_ = bytes & ~(memory->granule_ - 1);
  // Once for the whole range, not for each large span: mappings with different advice do not merge, and the kernel
  // limits their number. A huge page never extends beyond committed memory, because the kernel builds none across
  // a change of protection.
  (void)madvise(memory->base_, memory->address_space_,
                options.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  if (options.numa_node >= 0 &&
      !place_on_node(memory->base_, memory->address_space_, options.numa_node, true)) {
    error.fail_errno();
    return nullptr;
  }
  if (options.preferred_node >= 0)
    (void)place_on_node(memory->base_, memory->address_space_, options.preferred_node, false);
  memory->assert_valid();
  return memory;
}

HostMemory::~HostMemory() {
  if (mapping_ != nullptr) (void)munmap(mapping_, mapping_bytes_);
}

bool HostMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  return mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0 || note_refusal();
}

bool HostMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  // Two calls, not one mmap over the range: that would lose the advice given at creation.
  return (madvise(base_ + offset, bytes, MADV_DONTNEED) == 0 &&
          mprotect(base_ + offset, bytes, PROT_NONE) == 0) ||
         note_refusal();
}

bool HostMemory::punch_hole(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  return madvise(base_ + offset, bytes, MADV_DONTNEED) == 0 || note_refusal();
}

// The kernel gives a page at the first touch, as for every committed page.
bool HostMemory::fill_hole([[maybe_unused]] std::size_t offset,
                           [[maybe_unused]] std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  return true;
}

// A refusal leaves pages that can be accessed, which the next commit() makes all of them.
void HostMemory::discard(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  (void)mprotect(base_ + offset, bytes, PROT_NONE);
}

}  // namespace slabpool
