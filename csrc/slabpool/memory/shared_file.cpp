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
  Descriptor fd(memfd_create("slabpool", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0 || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    error.fail_errno();
    return nullptr;
  }
  return std::unique_ptr<SharedFile>(new SharedFile(std::move(fd), bytes));
}

bool SharedFile::open_read_only(Error& error) noexcept {
  SLABPOOL_ASSERT(read_only_.get() < 0, "a file is opened for reading once", read_only_.get());
  if (fchmod(fd(), S_IRUSR) != 0) return error.fail_errno();
  char path[32];
  (void)std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd());
  read_only_ = Descriptor(open(path, O_RDONLY | O_CLOEXEC));
  return read_only_.get() >= 0 || error.fail_errno();
}

bool SharedFile::seal(bool future_write, Error& error) noexcept {
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (future_write ? F_SEAL_FUTURE_WRITE : 0);
  return fcntl(fd(), F_ADD_SEALS, seals) == 0 || error.fail_errno();
}

}  // namespace slabpool
