#include "slabpool/memory/shared_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

namespace slabpool {
namespace {

// A signal interrupts fallocate and undoes its work, so a program with many signals might never finish one call for
// a large range. It is done in steps of this many bytes.
constexpr std::size_t kStep = std::size_t{16} << 20;

bool punch(int fd, std::size_t offset, std::size_t bytes) noexcept {
  for (;;) {
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(bytes)) == 0)
      return true;
    if (errno != EINTR) return false;
  }
}

}  // namespace

// Reserves `bytes` of addresses with a file of that length behind them. After a failure nothing is mapped.
bool SharedMemory::map(std::size_t bytes, Error& error) {
  // Address space first, so that the file can be laid on an aligned part of it.
  void* mapping =
      mmap(nullptr, bytes + kRangeAlign, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return error.fail_errno();
  // From here on the destructor or the next attempt unmaps it, also after an exception.
  mapping_ = mapping;
  mapping_bytes_ = bytes + kRangeAlign;
  const auto address = reinterpret_cast<std::uintptr_t>(mapping);
  const auto aligned = (address + kRangeAlign - 1) & ~(std::uintptr_t{kRangeAlign} - 1);
  base_ = static_cast<std::byte*>(mapping) + (aligned - address);
  file_ = SharedFile::create(bytes, error);
  if (file_ == nullptr || mmap(base_, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
                               file_->fd(), 0) == MAP_FAILED) {
    if (file_ != nullptr) error.fail_errno();
    unmap();
    return false;
  }
  address_space_ = bytes;
  return true;
}

std::unique_ptr<SharedMemory> SharedMemory::create(std::size_t reserve, std::size_t minimum,
                                                   Error& error, MemoryGroups groups) {
  if (sysconf(_SC_PAGESIZE) > static_cast<long>(kMostSystemPage)) {
    error.fail_errno({}, ENOTSUP);
    return nullptr;
  }
  std::unique_ptr<SharedMemory> memory(new SharedMemory());
  memory->kind_ = MemoryKind::shared;
  memory->granule_ = std::max(kPageSize, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  memory->has_holes_ = true;
  memory->groups_ = std::move(groups);
  Error refused;
  (void)refused.fail_errno({}, ENOMEM);  // where not even `reserve` is as much as `minimum`
  bool mapped = false;
  for (std::size_t bytes = reserve; !mapped && bytes >= minimum; bytes /= 2) {
    bytes &= ~(memory->granule_ - 1);
    mapped = memory->map(bytes, refused);
  }
  if (!mapped) {
    error = std::move(refused);
    return nullptr;
  }
  if (!memory->file_->open_read_only(error) || !memory->file_->seal(false, error)) return nullptr;
  memory->assert_valid();
  SLABPOOL_ASSERT(memory->file_->bytes() == memory->address_space_, "the file is as long as the range",
                  memory->file_->bytes(), memory->address_space_);
  return memory;
}

SharedMemory::~SharedMemory() { unmap(); }

void SharedMemory::unmap() noexcept {
  if (mapping_ != nullptr) (void)munmap(mapping_, mapping_bytes_);
  mapping_ = nullptr;
}

// Whether the control groups have room for these pages. One reads two small files for each limited group.
bool SharedMemory::has_room(std::size_t bytes) noexcept {
  const MemoryGroup* full = groups_.full_for(bytes);
  full_.store(full, std::memory_order_relaxed);
  errno = ENOMEM;
  return full == nullptr;
}

Error SharedMemory::refusal() const {
  Error error = MemoryResource::refusal();
  if (const MemoryGroup* full = full_.load(std::memory_order_relaxed))
    error.text = groups_.describe(*full) + ", and the kernel would end a process of the group";
  return error;
}

// Allocates pages of the file: all, or none.
bool SharedMemory::take_pages(std::size_t offset, std::size_t bytes) noexcept {
  if (!has_room(bytes)) return note_refusal();
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t step = std::min(kStep, bytes - done);
    // Again for each further step, because other processes of the group allocate meanwhile.
    if ((done == 0 || has_room(bytes - done)) &&
        fallocate(file_->fd(), 0, static_cast<off_t>(offset + done), static_cast<off_t>(step)) == 0) {
      done += step;
    } else if (errno != EINTR) {
      (void)note_refusal();
      if (done != 0) (void)punch(file_->fd(), offset, done);
      return false;
    }
  }
  return true;
}

bool SharedMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  if (!take_pages(offset, bytes)) return false;
  if (mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0) return true;
  (void)note_refusal();
  (void)punch(file_->fd(), offset, bytes);
  return false;
}

bool SharedMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  return (punch(file_->fd(), offset, bytes) && mprotect(base_ + offset, bytes, PROT_NONE) == 0) ||
         note_refusal();
}

std::uint64_t SharedMemory::held_bytes() const noexcept {
  struct stat about {};
  if (fstat(file_->fd(), &about) != 0) return 0;
  constexpr std::uint64_t kUnit = 512;  // of st_blocks, whatever st_blksize is
  return static_cast<std::uint64_t>(about.st_blocks) * kUnit;
}

bool SharedMemory::punch_hole(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  return punch(file_->fd(), offset, bytes) || note_refusal();
}

bool SharedMemory::fill_hole(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  return take_pages(offset, bytes);
}

void SharedMemory::discard(std::size_t offset, std::size_t bytes) noexcept {
  assert_granules(offset, bytes);
  (void)punch(file_->fd(), offset, bytes);
  (void)mprotect(base_ + offset, bytes, PROT_NONE);
}

}  // namespace slabpool
