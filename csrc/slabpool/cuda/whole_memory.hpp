// Device memory that is one piece from start to end: where the driver cannot map pieces, and where other
// processes map it too.
//
// All of it is committed from the start and nothing goes back before the end: pieces of one allocation cannot
// be freed, and what another process has mapped cannot be taken from it.
#pragma once

#include <memory>
#include <string>

#include "slabpool/cuda/mapped_memory.hpp"

namespace slabpool::cuda {

class WholeMemory final : public DeviceBytes {
 public:
  // One cuMemAlloc.
  static std::unique_ptr<WholeMemory> allocate(const CudaMemoryOptions& options, std::string& why);
  // Physical memory that export_fd() gives away.
  static std::unique_ptr<WholeMemory> create_shared(const CudaMemoryOptions& options, std::string& why);
  // That of another process.
  static std::unique_ptr<WholeMemory> open(int fd, std::size_t bytes, int device, std::string& why);
  ~WholeMemory() override;

  bool commit(std::size_t, std::size_t) noexcept override { return true; }
  bool decommit(std::size_t, std::size_t) noexcept override { return false; }

  // A new descriptor, or -1 and in `why` what failed.
  int export_fd(std::string& why) const;

 private:
  WholeMemory() { whole_ = true; }
  // Maps the handle, which is given up on failure.
  bool show(MemoryHandle handle, std::size_t bytes, std::string& why);

  DevicePointer allocated_ = 0;  // of cuMemAlloc, 0 for the others
  MemoryHandle handle_ = 0;
  bool mapped_ = false;
};

}  // namespace slabpool::cuda
