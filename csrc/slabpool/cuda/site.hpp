// Where CUDA memory is: a driver, a device and its primary context; and the messages for a refusal by the driver.
//
// Each call of a memory resource makes the context current for its own duration and restores the thread's. A fork's
// child has no driver: usable_here() is false there, and the resource releases nothing.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/error.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/cuda/driver.hpp"
#include "slabpool/memory/system_files.hpp"

namespace slabpool::cuda {

// Which call failed, and how. Written by the thread that commits, read by threads that report.
class Refusal {
 public:
  void note(const char* call, Result result, std::size_t bytes) noexcept {
    // Relaxed: a report that mixes two failures still reports failures.
    call_.store(call, std::memory_order_relaxed);
    result_.store(result, std::memory_order_relaxed);
    bytes_.store(bytes, std::memory_order_relaxed);
  }
  bool no_context(std::size_t bytes) noexcept {
    note("cuCtxPushCurrent", kInvalidContext, bytes);
    return false;
  }
  const char* call() const noexcept { return call_.load(std::memory_order_relaxed); }
  Result result() const noexcept { return result_.load(std::memory_order_relaxed); }
  std::size_t bytes() const noexcept { return bytes_.load(std::memory_order_relaxed); }

 private:
  std::atomic<const char*> call_{nullptr};  // null: nothing was refused
  std::atomic<Result> result_{kSuccess};
  std::atomic<std::size_t> bytes_{0};
};

class Site {
 public:
  // False if there is no driver, or no such device.
  bool find(int device, Error& error);

  const Driver& driver() const noexcept { return *driver_; }
  int device() const noexcept { return device_; }
  bool usable_here() const noexcept { return epoch_ == fork_epoch(); }  // false in a fork's child

  // For a CurrentContext around calls. Only where usable_here().
  Context context() const noexcept {
    SLABPOOL_ASSERT(usable_here(), "a fork's child does not call the parent's driver", device_);
    return context_;
  }

  // "cuMemCreate of 2 MiB on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY 2 (out of memory); ...", with the free memory of
  // the device and what to do.
  std::string explain(const char* call, Result result, std::size_t bytes) const;
  // The same as an Error; returns false.
  bool fail(Error& error, const char* call, Result result, std::size_t bytes) const {
    return error.fail(Status::system_refused, explain(call, result, bytes));
  }
  // The refusal as an Error; status ok if nothing was noted.
  Error error_of(const Refusal& refusal) const;

 private:
  const Driver* driver_ = nullptr;
  Context context_ = nullptr;
  int device_ = 0;
  std::uint32_t epoch_ = 0;
};

}  // namespace slabpool::cuda
