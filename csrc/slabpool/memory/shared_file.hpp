// An anonymous file of fixed size that other processes map: a memfd, sealed so that nobody can shrink
// it under somebody's map. It has no name in any directory, so nothing of it outlives its last user.
#pragma once

#include <cstddef>
#include <memory>

namespace slabpool {

class SharedFile {
 public:
  // Null where the system refuses; errno says why. Sparse: pages cost memory once they are touched.
  static std::unique_ptr<SharedFile> create(std::size_t bytes);
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;
  ~SharedFile();

  int fd() const noexcept { return fd_; }
  // A descriptor that maps for reading only; -1 before open_read_only().
  int read_only_fd() const noexcept { return read_only_; }
  std::size_t bytes() const noexcept { return bytes_; }

  // Opens it anew for reading only. The mode is taken to 0400 first, so that a process that is handed
  // this descriptor cannot open a writable one from it, unless it may override modes.
  bool open_read_only() noexcept;
  // No more seals, and no change of size. With `future_write` nobody but those that have a writable map
  // already can ever write, whatever descriptor they hold (Linux 5.1).
  bool seal(bool future_write) noexcept;

 private:
  SharedFile(int fd, std::size_t bytes) : fd_(fd), bytes_(bytes) {}

  int fd_ = -1;
  int read_only_ = -1;
  std::size_t bytes_ = 0;
};

}  // namespace slabpool
