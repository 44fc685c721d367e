#include "slabpool/cuda/site.hpp"

#include "slabpool/cuda/device_info.hpp"

namespace slabpool::cuda {

bool Site::find(int device, Error& error) {
  driver_ = Driver::get(error);
  if (driver_ == nullptr) return false;
  if (device < 0 || device >= driver_->devices())
    return error.fail(Status::system_refused,
                      "there is no CUDA device " + std::to_string(device) + ": " + driver_->library() +
                          " shows " + std::to_string(driver_->devices()) + ", numbered from 0");
  device_ = device;
  epoch_ = fork_epoch();
  Result result = kSuccess;
  context_ = driver_->context(device, result);
  return context_ != nullptr || fail(error, "cuDevicePrimaryCtxRetain", result, 0);
}

std::string Site::explain(const char* call, Result result, std::size_t bytes) const {
  std::string text = call;
  if (bytes != 0) text += " of " + show_bytes(bytes);
  text += " on CUDA device " + std::to_string(device_) + ": ";
  if (!usable_here()) return text + "CUDA error " + std::to_string(result);
  text += driver_->describe(result);
  if (Driver::is_sticky(result)) {
    return text + "; the device has failed, and this process cannot use it again: start another";
  }
  std::uint64_t free = 0;
  Error ignored;
  std::size_t total = 0;
  if (bytes == 0 || !free_memory(*driver_, device_, free, ignored) ||
      driver_->cuDeviceTotalMem(&total, device_) != kSuccess) {
    return text;
  }
  text += "; " + show_bytes(free) + " of its " + show_bytes(total) + " are free";
  if (result == kOutOfMemory)
    text += ". Other pools, libraries or processes hold the rest: close or trim those, or ask for less";
  return text;
}

Error Site::error_of(const Refusal& refusal) const {
  Error error;
  if (const char* call = refusal.call()) (void)fail(error, call, refusal.result(), refusal.bytes());
  return error;
}

}  // namespace slabpool::cuda
