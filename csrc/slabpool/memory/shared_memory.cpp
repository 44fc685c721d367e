#include "slabpool/memory/shared_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

namespace slabpool {

#if defined(__linux__)

namespace {

constexpr std::size_t kAlign = std::size_t{2} << 20;

// A signal interrupts fallocate and undoes it, so that a program with many signals could try a large
// range for ever: it is done in steps.
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

std::unique_ptr<SharedMemory> SharedMemory::create(std::size_t reserve, std::size_t minimum) {
  if (sysconf(_SC_PAGESIZE) > static_cast<long>(kPageSize)) {
    errno = ENOTSUP;
    return nullptr;
  }
  std::unique_ptr<SharedMemory> memory(new SharedMemory());
  memory->kind_ = MemoryKind::shared;
  for (std::size_t bytes = reserve; bytes >= minimum; bytes /= 2) {
    bytes &= ~(kPageSize - 1);
    // Address space first, so that the file can be laid on an aligned part of it.
    void* mapping =
        mmap(nullptr, bytes + kAlign, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) continue;
    memory->mapping_ = mapping;
    memory->mapping_bytes_ = bytes + kAlign;
    memory->file_ = SharedFile::create(bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(mapping);
    const auto aligned = (address + kAlign - 1) & ~(std::uintptr_t{kAlign} - 1);
    memory->base_ = static_cast<std::byte*>(mapping) + (aligned - address);
    if (memory->file_ != nullptr &&
        mmap(memory->base_, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
             memory->file_->fd(), 0) != MAP_FAILED) {
      memory->reserved_ = bytes;
      break;
    }
    const int error = errno;
    (void)munmap(mapping, bytes + kAlign);
    memory->mapping_ = nullptr;
    errno = error;
  }
  if (memory->mapping_ == nullptr) return nullptr;
  if (!memory->file_->open_read_only() || !memory->file_->seal(false)) return nullptr;
  return memory;
}

SharedMemory::~SharedMemory() {
  if (mapping_ != nullptr) (void)munmap(mapping_, mapping_bytes_);
}

bool SharedMemory::commit(std::size_t offset, std::size_t bytes) noexcept {
  for (std::size_t done = 0; done < bytes;) {
    const std::size_t step = std::min(kStep, bytes - done);
    if (fallocate(file_->fd(), 0, static_cast<off_t>(offset + done), static_cast<off_t>(step)) == 0) {
      done += step;
    } else if (errno != EINTR) {
      const int error = errno;
      if (done != 0) (void)punch(file_->fd(), offset, done);
      errno = error;
      return false;
    }
  }
  if (mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) == 0) return true;
  const int error = errno;
  (void)punch(file_->fd(), offset, bytes);
  errno = error;
  return false;
}

bool SharedMemory::decommit(std::size_t offset, std::size_t bytes) noexcept {
  return punch(file_->fd(), offset, bytes) && mprotect(base_ + offset, bytes, PROT_NONE) == 0;
}

#else

std::unique_ptr<SharedMemory> SharedMemory::create(std::size_t, std::size_t) {
  errno = ENOTSUP;
  return nullptr;
}
SharedMemory::~SharedMemory() = default;
bool SharedMemory::commit(std::size_t, std::size_t) noexcept { return false; }
bool SharedMemory::decommit(std::size_t, std::size_t) noexcept { return false; }

#endif

}  // namespace slabpool
