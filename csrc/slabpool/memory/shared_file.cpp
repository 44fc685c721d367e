#include "slabpool/memory/shared_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace slabpool {

#if defined(__linux__)

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

std::unique_ptr<SharedFile> SharedFile::create(std::size_t bytes) {
  const int fd = memfd_create("slabpool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return nullptr;
  std::unique_ptr<SharedFile> file(new SharedFile(fd, bytes));
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) return nullptr;
  return file;
}

bool SharedFile::open_read_only() noexcept {
  if (fchmod(fd_, S_IRUSR) != 0) return false;
  char path[32] = "/proc/self/fd/";
  std::size_t at = 14;
  char digits[12];
  std::size_t count = 0;
  for (int left = fd_; left > 0 || count == 0; left /= 10)
    digits[count++] = static_cast<char>('0' + left % 10);
  while (count > 0) path[at++] = digits[--count];
  path[at] = '\0';
  read_only_ = open(path, O_RDONLY | O_CLOEXEC);
  return read_only_ >= 0;
}

bool SharedFile::seal(bool future_write) noexcept {
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (future_write ? F_SEAL_FUTURE_WRITE : 0);
  return fcntl(fd_, F_ADD_SEALS, seals) == 0;
}

#else

std::unique_ptr<SharedFile> SharedFile::create(std::size_t) {
  errno = ENOTSUP;
  return nullptr;
}
bool SharedFile::open_read_only() noexcept { return false; }
bool SharedFile::seal(bool) noexcept { return false; }

#endif

SharedFile::~SharedFile() {
  if (read_only_ >= 0) (void)close(read_only_);
  if (fd_ >= 0) (void)close(fd_);
}

}  // namespace slabpool
