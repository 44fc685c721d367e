// Device memory that is one allocation: where the driver has no virtual memory management, and where other processes
// map the memory too.
//
// All of it is committed from the start until the resource ends: a part of one allocation cannot be freed, and
// memory that another process has mapped cannot be taken from it.
//
// Invariants:
//   allocated_ = 0 or handle_ = 0;   mapped_ => handle_ != 0
#pragma once

#include <memory>

#include "slabpool/cuda/mapped_memory.hpp"

namespace slabpool::cuda {

class WholeMemory final : public DeviceBytes {
 public:
  // One cuMemAlloc.
  static std::unique_ptr<WholeMemory> allocate(const CudaMemoryOptions& options, Error& error);
  // Physical memory that export_fd() exports.
  static std::unique_ptr<WholeMemory> create_shared(const CudaMemoryOptions& options, Error& error);
  // Physical memory that another process exported as `fd`.
  static std::unique_ptr<WholeMemory> open(int fd, std::size_t bytes, int device, Error& error);
  ~WholeMemory() override;

  bool commit(std::size_t, std::size_t) noexcept override { return true; }
  bool decommit(std::size_t, std::size_t) noexcept override { return false; }

  // A new descriptor, or -1 on failure.
  int export_fd(Error& error) const;

 private:
  WholeMemory() { always_committed_ = true; }
  // Takes over the handle and maps it; after a failure the destructor releases it.
  bool map(MemoryHandle handle, std::size_t bytes, Error& error);

  DevicePointer allocated_ = 0;  // from cuMemAlloc
  MemoryHandle handle_ = 0;
  bool mapped_ = false;
};

}  // namespace slabpool::cuda
