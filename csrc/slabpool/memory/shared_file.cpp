#include "slabpool/memory/shared_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "slabpool/base/assert.hpp"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace slabpool {

std::unique_ptr<SharedFile> SharedFile::create(std::size_t bytes, Error& error) {
  const int fd = memfd_create("slabpool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    error.fail_errno();
    return nullptr;
  }
  std::unique_ptr<SharedFile> file(new SharedFile(fd, bytes));
  if (ftruncate(fd, static_cast<off_t>(bytes)) == 0) return file;
  error.fail_errno();
  return nullptr;
}

bool SharedFile::open_read_only(Error& error) noexcept {
  SLABPOOL_ASSERT(read_only_ < 0, "a file is opened for reading once", read_only_);
  if (fchmod(fd_, S_IRUSR) != 0) return error.fail_errno();
  char path[32];
  (void)std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd_);
  read_only_ = open(path, O_RDONLY | O_CLOEXEC);
  return read_only_ >= 0 || error.fail_errno();
}

bool SharedFile::seal(bool future_write, Error& error) noexcept {
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (future_write ? F_SEAL_FUTURE_WRITE : 0);
  return fcntl(fd_, F_ADD_SEALS, seals) == 0 || error.fail_errno();
}

SharedFile::~SharedFile() {
  if (read_only_ >= 0) (void)close(read_only_);
  if (fd_ >= 0) (void)close(fd_);
}

}  // namespace slabpool
