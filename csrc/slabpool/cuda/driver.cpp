#include "slabpool/cuda/driver.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "slabpool/base/fork.hpp"

namespace slabpool::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr const char* kVariable = "SLABPOOL_CUDA_DRIVER";

// Drivers from CUDA 11.3 on look up their functions by version.
using GetProcAddress = Result(const char*, void**, int, std::uint64_t);

enum Need { optional, required };

// Leaves of the lock order: only the driver is called with them held.
std::mutex load_mutex;
std::mutex context_mutex;

}  // namespace

const Driver* Driver::get(Error& error) noexcept {
  // A loaded driver stays. A failure is tried again, because the next call may find another library named.
  static const Driver* loaded = nullptr;
  static std::uint32_t epoch = 0;
  try {
    const std::lock_guard lock(load_mutex);
    if (loaded == nullptr) {
      static Driver driver;
      if (!driver.load(error)) return nullptr;
      epoch = fork_epoch();
      loaded = &driver;
    }
    if (epoch != fork_epoch()) {
      error.fail(Status::system_refused,
                 "CUDA was used before this process was forked, and a driver does not survive a fork");
      return nullptr;
    }
    return loaded;
  } catch (const std::exception&) {
    error.fail(Status::system_refused);
    return nullptr;
  }
}

const Driver* Driver::get() noexcept {
  Error ignored;
  return get(ignored);
}

bool Driver::load(Error& error) {
  const char* named = std::getenv(kVariable);
  const bool by_name = named != nullptr && *named != '\0';
  library_ = by_name ? named : kLibrary;
  void* library = dlopen(library_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    return error.fail(Status::system_refused,
                      "no CUDA driver: " + std::string(reason != nullptr ? reason : library_.c_str()) +
                          (by_name ? std::string(" (named by ") + kVariable + ")" : ""));
  }
  auto* find = reinterpret_cast<GetProcAddress*>(dlsym(library, "cuGetProcAddress"));
  if (find == nullptr)
    return error.fail(Status::system_refused,
                      library_ + " has no cuGetProcAddress: the driver is older than CUDA 11.3");
#define SLABPOOL_CUDA_LOAD(name, version, need, ...)                                                \
  {                                                                                                 \
    void* found = nullptr;                                                                          \
    if (find(#name, &found, version, 0) != kSuccess) found = nullptr;                               \
    name = reinterpret_cast<name##_t*>(found);                                                      \
    if (found == nullptr && need == required)                                                       \
      return error.fail(Status::system_refused, library_ + " has no " #name " of version " #version \
                                                           ", which slabpool cannot do without");   \
  }
  SLABPOOL_CUDA_FUNCTIONS(SLABPOOL_CUDA_LOAD)
#undef SLABPOOL_CUDA_LOAD
  Result result = cuInit(0);
  if (result == kSuccess) result = cuDriverGetVersion(&version_);
  if (result == kSuccess) result = cuDeviceGetCount(&devices_);
  if (result != kSuccess)
    return error.fail(Status::system_refused, library_ + " does not start: " + describe(result));
  return devices_ != 0 || error.fail(Status::system_refused, library_ + " sees no GPU");
}

bool Driver::maps_memory() const noexcept {
  return cuMemAddressReserve != nullptr && cuMemAddressFree != nullptr && cuMemCreate != nullptr &&
         cuMemRelease != nullptr && cuMemMap != nullptr && cuMemUnmap != nullptr &&
         cuMemSetAccess != nullptr && cuMemGetAllocationGranularity != nullptr;
}

Context Driver::context(int device, Result& result) const noexcept {
  static std::map<int, Context> retained;
  try {
    const std::lock_guard lock(context_mutex);
    result = kSuccess;
    if (const auto found = retained.find(device); found != retained.end()) return found->second;
    Device handle = 0;
    Context context = nullptr;
    result = cuDeviceGet(&handle, device);
    if (result == kSuccess) result = cuDevicePrimaryCtxRetain(&context, handle);
    if (result != kSuccess) return nullptr;
    retained.emplace(device, context);
    return context;
  } catch (const std::exception&) {
    result = kOutOfMemory;
    return nullptr;
  }
}

std::string Driver::describe(Result result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  if (cuGetErrorName(result, &name) != kSuccess || name == nullptr) name = "CUDA error";
  if (cuGetErrorString(result, &text) != kSuccess || text == nullptr) text = "unknown to this driver";
  return std::string(name) + " " + std::to_string(result) + " (" + text + ")";
}

// Errors of a kernel or of the hardware: the driver's reference says that the process must be restarted to go on
// using CUDA.
bool Driver::is_sticky(Result result) noexcept {
  switch (result) {
    case 4:    // deinitialized
    case 214:  // uncorrectable ECC error
    case 700:  // illegal address
    case 702:  // launch timeout
    case 709:  // context is destroyed
    case 710:  // assert
    case 714:  // hardware stack error
    case 715:  // illegal instruction
    case 716:  // misaligned address
    case 717:  // invalid address space
    case 718:  // invalid program counter
    case 719:  // launch failed
    case 999:  // unknown
      return true;
    default:
      return false;
  }
}

CurrentContext::CurrentContext(const Driver& driver, Context context) noexcept : driver_(driver) {
  Context now = nullptr;
  if (driver.cuCtxGetCurrent(&now) == kSuccess && now == context) {
    ok_ = context != nullptr;
    return;
  }
  pushed_ = ok_ = driver.cuCtxPushCurrent(context) == kSuccess;
}

CurrentContext::~CurrentContext() {
  Context gone = nullptr;
  if (pushed_) (void)driver_.cuCtxPopCurrent(&gone);
}

RelaxedCapture::RelaxedCapture(const Driver& driver) noexcept : driver_(driver) {
  // The call swaps: it returns the thread's previous mode in its argument.
  if (driver.cuThreadExchangeStreamCaptureMode != nullptr &&
      driver.cuThreadExchangeStreamCaptureMode(&previous_) != kSuccess)
    previous_ = kCaptureModeRelaxed;
}

RelaxedCapture::~RelaxedCapture() {
  if (previous_ != kCaptureModeRelaxed) (void)driver_.cuThreadExchangeStreamCaptureMode(&previous_);
}

}  // namespace slabpool::cuda
