// The CUDA driver, loaded when it is first asked for: one table of its functions for the whole process.
//
// Nothing here fails because a machine has no GPU: `Driver::get()` is then null, and says what was looked
// for. The library is libcuda.so.1, or what SLABPOOL_CUDA_DRIVER names. What must stay true: the table does
// not change once it is there, and is never unloaded; in a fork's child there is no driver.
#pragma once

#include <string>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/api.hpp"

namespace slabpool::cuda {

class SLABPOOL_API Driver {
 public:
  // Null where it cannot be used, and then `why` (if not null) says what was tried. Thread-safe.
  static const Driver* get(std::string* why = nullptr) noexcept;

  // The functions; those that are optional may be null.
#define SLABPOOL_CUDA_MEMBER(name, version, need, ...) \
  using name##_t = __VA_ARGS__;                        \
  name##_t* name = nullptr;
  SLABPOOL_CUDA_FUNCTIONS(SLABPOOL_CUDA_MEMBER)
#undef SLABPOOL_CUDA_MEMBER

  int version() const noexcept { return version_; }  // 12040 is 12.4
  int devices() const noexcept { return devices_; }
  const std::string& library() const noexcept { return library_; }

  // Whether every function of virtual memory management is there.
  bool maps_memory() const noexcept;

  // The primary context of a device, retained once for the process and never released; null if the driver
  // refuses, and then `result` says why. Thread-safe.
  Context context(int device, Result& result) const noexcept;

  // "CUDA_ERROR_OUT_OF_MEMORY (out of memory)", for messages.
  std::string describe(Result result) const;

  // After which nothing on this device will ever work again in this process.
  static bool is_sticky(Result result) noexcept;

 private:
  Driver() = default;
  bool load(std::string& why);

  int version_ = 0;
  int devices_ = 0;
  std::string library_;
};

// Makes a context current for a block of code, and puts back what was.
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

// While it lives, calls of this thread do not break a capture into a graph that goes on in another one, and are
// not refused because of it. For calls that no capture is to see: looks at events, taking memory.
class SLABPOOL_API RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) noexcept;
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  int before_ = kCaptureModeRelaxed;
};

}  // namespace slabpool::cuda
