// Where memory of CUDA is: a driver, a device, and its context. And what a refusal by the driver says.
//
// Every call of a resource makes the context current for itself, and leaves the thread's own as it was. In a
// fork's child there is no driver: here() says so, and nothing is given back there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "slabpool/base/fork.hpp"
#include "slabpool/cuda/driver.hpp"

namespace slabpool::cuda {

inline constexpr std::size_t kAlignment = std::size_t{2} << 20;  // of a resource's first byte

// Which call failed, and how. Written by whoever commits, read by whoever reports.
class Refusal {
 public:
  void note(const char* call, Result result, std::size_t bytes) noexcept {
    // Relaxed: a report that mixes two failures is still about failures.
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
  // False, and in `why` what is missing. `device` must be one that the driver shows.
  bool find(int device, std::string& why);

  const Driver& driver() const noexcept { return *driver_; }
  int device() const noexcept { return device_; }
  bool here() const noexcept { return epoch_ == fork_epoch(); }  // not in a fork's child

  // The context, for a CurrentContext around calls. Not to be used where here() is false.
  Context context() const noexcept { return context_; }

  // "cuMemCreate of 2 MiB on CUDA device 0: CUDA_ERROR_OUT_OF_MEMORY 2 (out of memory); ...", with what the
  // device has free and what to do.
  std::string explain(const char* call, Result result, std::size_t bytes) const;
  // The same of what was noted, "" if nothing was.
  std::string explain(const Refusal& refusal) const;

 private:
  const Driver* driver_ = nullptr;
  Context context_ = nullptr;
  int device_ = 0;
  std::uint32_t epoch_ = 0;
};

// "2 MiB", "1.5 GiB".
std::string show_bytes(std::uint64_t bytes);

}  // namespace slabpool::cuda
