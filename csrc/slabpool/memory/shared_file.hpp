// An anonymous file of fixed size that other processes map: a memfd, sealed so that no process can shrink it while
// another one has it mapped. It has no name in any directory, so it ends with its last descriptor and map.
#pragma once

#include <cstddef>
#include <memory>

#include "slabpool/base/descriptor.hpp"
#include "slabpool/base/error.hpp"

namespace slabpool {

class SharedFile {
 public:
  // Null if the system refuses. Throws std::bad_alloc. Sparse: a page costs memory once it is touched.
  static std::unique_ptr<SharedFile> create(std::size_t bytes, Error& error);
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  int fd() const noexcept { return fd_.get(); }
  // A descriptor that maps for reading only; -1 before open_read_only().
  int read_only_fd() const noexcept { return read_only_.get(); }
  std::size_t bytes() const noexcept { return bytes_; }

  // Opens the file once more, for reading only. Its mode is set to 0400 first, so that a process that receives this
  // descriptor cannot open a writable one from it, unless it has the privilege to override modes.
  bool open_read_only(Error& error) noexcept;
  // Forbids further seals and changes of size. With `future_write`, also forbids new writable maps, whatever
  // descriptor a process holds; existing writable maps go on (Linux 5.1).
  bool seal(bool future_write, Error& error) noexcept;

 private:
  SharedFile(Descriptor fd, std::size_t bytes) noexcept : fd_(std::move(fd)), bytes_(bytes) {}

  Descriptor fd_;
  Descriptor read_only_;
  std::size_t bytes_ = 0;
};

}  // namespace slabpool
