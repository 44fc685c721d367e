// The stand-in driver in the form that cuda.bindings loads: libcuda.so.1 with cuGetProcAddress_v2.
//
// Calls that slabpool makes are forwarded to the stand-in that SLABPOOL_CUDA_DRIVER names, which
// slabpool itself uses too. The few functions that cuda.core and Numba call before a memory manager are
// here. There are no kernels and no copies: tests of these need a GPU.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "slabpool/cuda/api.hpp"

using namespace slabpool::cuda;

namespace {

using Find = Result(const char*, void**, int, std::uint64_t);

Find* standin() {
  static Find* const found = [] {
    const char* path = std::getenv("SLABPOOL_CUDA_DRIVER");
    void* library = path == nullptr ? nullptr : dlopen(path, RTLD_NOW);
    return library == nullptr ? nullptr : reinterpret_cast<Find*>(dlsym(library, "cuGetProcAddress"));
  }();
  return found;
}

template <typename Function>
Function* function(const char* name) {
  void* found = nullptr;
  if (standin() == nullptr || standin()(name, &found, 12000, 0) != kSuccess) std::abort();
  return reinterpret_cast<Function*>(found);
}

Result set_current(Context context) {
  Context now = nullptr;
  if (const Result result = function<Result(Context*)>("cuCtxGetCurrent")(&now); result != kSuccess)
    return result;
  if (now != nullptr) function<Result(Context*)>("cuCtxPopCurrent")(&now);
  return context == nullptr ? kSuccess : function<Result(Context)>("cuCtxPushCurrent")(context);
}

Result context_device(
    Device* device) {  // the first device that has the current context as its primary one
  Context now = nullptr;
  if (function<Result(Context*)>("cuCtxGetCurrent")(&now) != kSuccess || now == nullptr)
    return kInvalidContext;
  int count = 0;
  function<Result(int*)>("cuDeviceGetCount")(&count);
  for (int i = 0; i < count; ++i) {
    Context primary = nullptr;
    function<Result(Context*, Device)>("cuDevicePrimaryCtxRetain")(&primary, i);
    function<Result(Device)>("cuDevicePrimaryCtxRelease")(i);
    if (primary == now) {
      *device = i;
      return kSuccess;
    }
  }
  return kInvalidContext;
}

Result uuid(unsigned char* bytes, Device device) {
  std::memset(bytes, 0, 16);
  bytes[15] = static_cast<unsigned char>(device + 1);
  return kSuccess;
}

Result attribute(int* value, int which, Device device) {
  if (which == 75 || which == 76) {  // compute capability: one that Numba supports
    *value = which == 75 ? 9 : 0;
    return kSuccess;
  }
  return function<Result(int*, int, Device)>("cuDeviceGetAttribute")(value, which, device);
}

Result stream_with_priority(Stream* stream, unsigned flags, int) {
  return function<Result(Stream*, unsigned)>("cuStreamCreate")(stream, flags);
}

Result priority_range(int* least, int* greatest) {
  *least = *greatest = 0;
  return kSuccess;
}

// A pool's range begins at a multiple of 2 MiB, which is used as the beginning of the allocation.
Result address_range(DevicePointer* base, std::size_t* bytes, DevicePointer address) {
  constexpr DevicePointer kGranule = 2 << 20;
  *base = address / kGranule * kGranule;
  *bytes = kGranule;
  return kSuccess;
}

// Answers as a driver does for memory of cuMemMap, unless a test wants a handle.
Result ipc_handle(void* handle, DevicePointer) {
  if (std::getenv("STANDIN_IPC") == nullptr) return kInvalidValue;
  std::memset(handle, 7, 64);
  return kSuccess;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Result cuGetProcAddress_v2(const char* name, void** to,
                                                                             int version,
                                                                             std::uint64_t flags,
                                                                             int* status) {
  const struct {
    const char* name;
    void* at;
  } ours[] = {
      {"cuGetProcAddress", reinterpret_cast<void*>(cuGetProcAddress_v2)},
      {"cuCtxSetCurrent", reinterpret_cast<void*>(set_current)},
      {"cuCtxGetDevice", reinterpret_cast<void*>(context_device)},
      {"cuDeviceGetAttribute", reinterpret_cast<void*>(attribute)},
      {"cuDeviceGetUuid", reinterpret_cast<void*>(uuid)},
      {"cuMemGetAddressRange", reinterpret_cast<void*>(address_range)},
      {"cuIpcGetMemHandle", reinterpret_cast<void*>(ipc_handle)},
      {"cuStreamCreateWithPriority", reinterpret_cast<void*>(stream_with_priority)},
      {"cuCtxGetStreamPriorityRange", reinterpret_cast<void*>(priority_range)},
  };
  if (standin() == nullptr) return kNotInitialized;
  *to = nullptr;
  Result result = kSuccess;
  for (const auto& one : ours) {
    if (std::strcmp(one.name, name) == 0) *to = one.at;
  }
  if (*to == nullptr) result = standin()(name, to, version, flags);
  if (status != nullptr) *status = result == kSuccess ? 0 : 1;
  if (result != kSuccess) *to = nullptr;
  return result;
}
