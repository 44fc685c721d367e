// The CUDA driver, loaded when it is first needed: one table of its functions for the whole process.
//
// A machine without a GPU is no error here: Driver::get() then returns null and says what was tried. The library is
// libcuda.so.1, or the one that SLABPOOL_CUDA_DRIVER names.
//
// Invariants:
//   The table is constant once get() has returned it, and the library is never unloaded.
//   get() returns null in a fork's child of a process that had loaded the driver.
#pragma once

#include <string>

#include "slabpool/base/error.hpp"
#include "slabpool/base/export.hpp"
#include "slabpool/cuda/api.hpp"

namespace slabpool::cuda {

class SLABPOOL_API Driver {
 public:
  // Null if there is no usable driver; `error` then says what was tried. Thread-safe.
  static const Driver* get(Error& error) noexcept;
  static const Driver* get() noexcept;

  // The functions; those that are optional may be null.
#define SLABPOOL_CUDA_MEMBER(name, version, need, ...) \
  using name##_t = __VA_ARGS__;                        \
  name##_t* name = nullptr;
  SLABPOOL_CUDA_FUNCTIONS(SLABPOOL_CUDA_MEMBER)
#undef SLABPOOL_CUDA_MEMBER

  int version() const noexcept { return version_; }  // 12040 is 12.4
  int devices() const noexcept { return devices_; }
  const std::string& library() const noexcept { return library_; }

  // Whether the driver has every function of virtual memory management.
  bool maps_memory() const noexcept;

  // The primary context of a device, retained once for the process and never released; null if the driver
  // refuses, and then `result` says why. Thread-safe.
  Context context(int device, Result& result) const noexcept;

  // "CUDA_ERROR_OUT_OF_MEMORY 2 (out of memory)", for messages.
  std::string describe(Result result) const;

  // Whether the device has failed for good: after such a result it does no more work for this process.
  static bool is_sticky(Result result) noexcept;

 private:
  Driver() = default;
  bool load(Error& error);

  int version_ = 0;
  int devices_ = 0;
  std::string library_;
};

// Makes a context current in its scope, and restores the previous one.
class SLABPOOL_API CurrentContext {
 public:
  CurrentContext(const Driver& driver, Context context) noexcept;
  ~CurrentContext();
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
  bool ok() const noexcept { return ok_; }

 private:
  const Driver& driver_;
  bool pushed_ = false;
  bool ok_ = false;
};

// In its scope, calls of this thread neither invalidate a graph capture of another thread nor are refused because
// of one. For calls that must stay out of every capture: querying events, taking memory.
class SLABPOOL_API RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) noexcept;
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  int previous_ = kCaptureModeRelaxed;
};

}  // namespace slabpool::cuda
