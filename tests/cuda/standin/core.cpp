// The stand-in driver: initialization, devices, contexts, and the lookup of functions.
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <type_traits>

#include "internal.hpp"
#include "standin.h"

namespace standin {
namespace {

constexpr Result kNotFound = 500;

// The first driver version in which each function has the signature that slabpool/cuda/api.hpp declares. From
// cudaTypedefs.h of CUDA 12.9, independent of the versions in api.hpp.
struct Known {
  const char* name;
  int since;
};
constexpr Known kKnown[] = {
    {"cuInit", 2000},
    {"cuDriverGetVersion", 2020},
    {"cuGetErrorName", 6000},
    {"cuGetErrorString", 6000},
    {"cuDeviceGetCount", 2000},
    {"cuDeviceGet", 2000},
    {"cuDeviceGetName", 2000},
    {"cuDeviceGetAttribute", 2000},
    {"cuDeviceTotalMem", 3020},
    {"cuDevicePrimaryCtxRetain", 7000},
    {"cuDevicePrimaryCtxRelease", 11000},
    {"cuCtxGetCurrent", 4000},
    {"cuCtxPushCurrent", 4000},
    {"cuCtxPopCurrent", 4000},
    {"cuCtxSynchronize", 2000},
    {"cuMemGetInfo", 3020},
    {"cuMemAlloc", 3020},
    {"cuMemFree", 3020},
    {"cuMemHostRegister", 6050},
    {"cuMemHostUnregister", 4000},
    {"cuMemHostGetDevicePointer", 3020},
    {"cuMemAllocManaged", 6000},
    {"cuMemcpyAsync", 4000},
    {"cuMemsetD8Async", 3020},
    {"cuStreamSynchronize", 2000},
    {"cuStreamGetCtx", 9020},
    {"cuStreamWaitEvent", 3020},
    {"cuStreamIsCapturing", 10000},
    {"cuThreadExchangeStreamCaptureMode", 10010},
    {"cuStreamCreate", 2000},
    {"cuStreamDestroy", 4000},
    {"cuEventCreate", 2000},
    {"cuEventDestroy", 4000},
    {"cuEventRecord", 2000},
    {"cuEventQuery", 2000},
    {"cuEventSynchronize", 2000},
    {"cuMemAddressReserve", 10020},
    {"cuMemAddressFree", 10020},
    {"cuMemCreate", 10020},
    {"cuMemRelease", 10020},
    {"cuMemMap", 10020},
    {"cuMemUnmap", 10020},
    {"cuMemSetAccess", 10020},
    {"cuMemGetAllocationGranularity", 10020},
    {"cuMemExportToShareableHandle", 10020},
    {"cuMemImportFromShareableHandle", 10020},
};

struct ErrorText {
  Result result;
  const char* name;
  const char* text;
};
constexpr ErrorText kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is "
     "already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory "
     "region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {907, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorText* text_of(Result result) {
  for (const ErrorText& known : kErrors) {
    if (known.result == result) return &known;
  }
  return nullptr;
}

std::int64_t number_of(const char* variable, std::int64_t otherwise) {
  const char* text = std::getenv(variable);
  return text != nullptr && *text != '\0' ? std::atoll(text) : otherwise;
}

DeviceRecord fresh_device(int number) {
  DeviceRecord device;
  device.total = static_cast<std::size_t>(number_of("SLABPOOL_STANDIN_MEMORY", std::int64_t{1} << 30));
  device.attributes = {{kAttributePciBus, 0x10 + number},
                       {kAttributePciDevice, 0},
                       {kAttributePciDomain, 0},
                       {kAttributeManagedMemory, 1},
                       {kAttributeConcurrentManagedAccess, 1},
                       {kAttributeVirtualMemory, 1},
                       {kAttributeHandleTypePosixFd, 1},
                       {kAttributeHostNumaId, -1}};
  device.primary.device = number;
  return device;
}

// The process that loaded the library. A fork's child has no driver, and must not wait for the lock.
const pid_t owner = getpid();
std::atomic<std::uint64_t> calls_after_fork{0};

// The context stack of this thread; the last is current.
thread_local std::vector<ContextRecord*> current;

// "*" excludes these: errors are described after another call has failed, and a caller cannot recover from a failure to
// restore its context.
bool may_fail(const char* name) {
  return std::strcmp(name, "cuGetErrorName") != 0 && std::strcmp(name, "cuGetErrorString") != 0 &&
         std::strcmp(name, "cuCtxPopCurrent") != 0;
}

Result fault_of(const char* name) {
  Result result = kSuccess;
  for (Fault& fault : state().faults) {
    const bool all = fault.name == "*" && may_fail(name);
    if (!all && fault.name != name) continue;
    if (fault.skip > 0) {
      --fault.skip;
    } else if (fault.times != 0) {
      if (fault.times > 0) --fault.times;
      if (result == kSuccess) result = fault.result;
    }
  }
  return result;
}

DeviceRecord* device_of(Device device) {
  State& all = state();
  if (device < 0 || static_cast<std::size_t>(device) >= all.devices.size()) return nullptr;
  return &all.devices[static_cast<std::size_t>(device)];
}

const char* keep(std::string text) {
  thread_local std::string kept;
  kept = std::move(text);
  return kept.c_str();
}

}  // namespace

State& state() {
  static State& all = [&]() -> State& {
    State* made = new State;
    made->version = static_cast<int>(number_of("SLABPOOL_STANDIN_VERSION", 12040));
    const int devices = static_cast<int>(number_of("SLABPOOL_STANDIN_DEVICES", 2));
    for (int i = 0; i < devices; ++i) made->devices.push_back(fresh_device(i));
    if (const char* names = std::getenv("SLABPOOL_STANDIN_HIDE"); names != nullptr) {
      std::stringstream list(names);
      for (std::string name; std::getline(list, name, ',');) made->hidden.push_back(name);
    }
    return *made;
  }();
  return all;
}

Call::Call(const char* name, bool needs_context) {
  if (getpid() != owner) {
    calls_after_fork.fetch_add(1, std::memory_order_relaxed);
    result = kNotInitialized;
    return;
  }
  State& all = state();
  lock = std::unique_lock(all.mutex);
  ++all.calls[name];
  if (may_fail(name)) ++all.calls["*"];
  result = fault_of(name);
  if (result != kSuccess) return;
  if (!all.started && std::strcmp(name, "cuInit") != 0 && std::strcmp(name, "cuDriverGetVersion") != 0 &&
      may_fail(name)) {
    result = kNotInitialized;
    return;
  }
  context = current.empty() ? nullptr : current.back();
  if (!needs_context) return;
  if (context == nullptr) {
    (void)complain("%s without a current context", name);
    result = kInvalidContext;
    return;
  }
  result = all.devices[static_cast<std::size_t>(context->device)].lost;
}

Result complain(const char* format, ...) {
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  state().complaints.emplace_back(text);
  return kInvalidValue;
}

ContextRecord* context_of(Context context) {
  for (DeviceRecord& device : state().devices) {
    if (context == handle_of(&device.primary)) return &device.primary;
  }
  return nullptr;
}

}  // namespace standin

using namespace standin;

// ---- the driver

STANDIN_DRIVER cuInit(unsigned flags) {
  STANDIN_CALL(cuInit);
  if (flags != 0) return complain("cuInit with flags %u", flags);
  if (state().devices.empty()) return kNoDevice;
  state().started = true;
  return kSuccess;
}

STANDIN_DRIVER cuDriverGetVersion(int* version) {
  STANDIN_CALL(cuDriverGetVersion);
  *version = state().version;
  return kSuccess;
}

STANDIN_DRIVER cuGetErrorName(Result result, const char** name) {
  STANDIN_CALL(cuGetErrorName);
  const ErrorText* known = text_of(result);
  *name = known != nullptr ? known->name : nullptr;
  return known != nullptr ? kSuccess : kInvalidValue;
}

STANDIN_DRIVER cuGetErrorString(Result result, const char** text) {
  STANDIN_CALL(cuGetErrorString);
  const ErrorText* known = text_of(result);
  *text = known != nullptr ? known->text : nullptr;
  return known != nullptr ? kSuccess : kInvalidValue;
}

STANDIN_DRIVER cuDeviceGetCount(int* count) {
  STANDIN_CALL(cuDeviceGetCount);
  *count = static_cast<int>(state().devices.size());
  return kSuccess;
}

STANDIN_DRIVER cuDeviceGet(Device* device, int ordinal) {
  STANDIN_CALL(cuDeviceGet);
  if (device_of(ordinal) == nullptr) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

STANDIN_DRIVER cuDeviceGetName(char* name, int length, Device device) {
  STANDIN_CALL(cuDeviceGetName);
  if (device_of(device) == nullptr) return kInvalidDevice;
  std::snprintf(name, static_cast<std::size_t>(length), "slabpool stand-in %d", device);
  return kSuccess;
}

STANDIN_DRIVER cuDeviceGetAttribute(int* value, int attribute, Device device) {
  STANDIN_CALL(cuDeviceGetAttribute);
  const DeviceRecord* record = device_of(device);
  if (record == nullptr) return kInvalidDevice;
  const auto found = record->attributes.find(attribute);
  if (found == record->attributes.end()) return kInvalidValue;
  *value = found->second;
  return kSuccess;
}

STANDIN_DRIVER cuDeviceTotalMem(std::size_t* bytes, Device device) {
  STANDIN_CALL(cuDeviceTotalMem);
  const DeviceRecord* record = device_of(device);
  if (record == nullptr) return kInvalidDevice;
  *bytes = record->total;
  return kSuccess;
}

STANDIN_DRIVER cuDevicePrimaryCtxRetain(Context* context, Device device) {
  STANDIN_CALL(cuDevicePrimaryCtxRetain);
  DeviceRecord* record = device_of(device);
  if (record == nullptr) return kInvalidDevice;
  if (record->lost != kSuccess) return record->lost;
  ++record->primary.retained;
  *context = handle_of(&record->primary);
  return kSuccess;
}

STANDIN_DRIVER cuDevicePrimaryCtxRelease(Device device) {
  STANDIN_CALL(cuDevicePrimaryCtxRelease);
  DeviceRecord* record = device_of(device);
  if (record == nullptr) return kInvalidDevice;
  if (record->primary.retained == 0) return complain("cuDevicePrimaryCtxRelease of one not retained");
  --record->primary.retained;
  return kSuccess;
}

STANDIN_DRIVER cuCtxGetCurrent(Context* context) {
  STANDIN_CALL(cuCtxGetCurrent);
  *context = handle_of(call.context);
  return kSuccess;
}

STANDIN_DRIVER cuCtxPushCurrent(Context context) {
  STANDIN_CALL(cuCtxPushCurrent);
  ContextRecord* record = context_of(context);
  if (record == nullptr || record->retained == 0) {
    (void)complain("cuCtxPushCurrent of %p, which is no context", context);
    return kInvalidContext;
  }
  current.push_back(record);
  return kSuccess;
}

STANDIN_DRIVER cuCtxPopCurrent(Context* context) {
  STANDIN_CALL(cuCtxPopCurrent);
  if (call.context == nullptr) {
    (void)complain("cuCtxPopCurrent of nothing");
    return kInvalidContext;
  }
  current.pop_back();
  *context = handle_of(call.context);
  return kSuccess;
}

#define STANDIN_DECLARE(name, version, need, ...) extern "C" std::type_identity_t<__VA_ARGS__> name;
SLABPOOL_CUDA_FUNCTIONS(STANDIN_DECLARE)
#undef STANDIN_DECLARE
// slabpool does not call it: it keeps a primary context for the whole process. cuda.core and Numba do.
extern "C" Result cuDevicePrimaryCtxRelease(Device device);

STANDIN_DRIVER cuGetProcAddress(const char* name, void** function, int version, std::uint64_t flags) {
  if (function == nullptr || name == nullptr) return kInvalidValue;
  *function = nullptr;
  if (flags != 0) return kInvalidValue;
  State& all = state();
  const std::lock_guard lock(all.mutex);
  for (const std::string& hidden : all.hidden) {
    if (hidden == name) return kNotFound;
  }
  for (const Known& known : kKnown) {
    // An older version would be another function, and this driver does not have newer ones.
    if (std::strcmp(known.name, name) == 0 && (version < known.since || all.version < known.since))
      return kNotFound;
  }
#define STANDIN_FOUND(symbol, since, need, ...) \
  if (std::strcmp(name, #symbol) == 0) *function = reinterpret_cast<void*>(&::symbol);
  SLABPOOL_CUDA_FUNCTIONS(STANDIN_FOUND)
  STANDIN_FOUND(cuDevicePrimaryCtxRelease, 11000, optional, )
#undef STANDIN_FOUND
  return *function != nullptr ? kSuccess : kNotFound;
}

// ---- control

void standin_reset(void) {
  reset_streams();
  State& all = state();
  const std::lock_guard lock(all.mutex);
  reset_virtual_memory();
  reset_memory();
  for (std::size_t i = 0; i < all.devices.size(); ++i) {
    // The context stays, because programs have its address.
    DeviceRecord fresh = fresh_device(static_cast<int>(i));
    fresh.primary = all.devices[i].primary;
    all.devices[i] = std::move(fresh);
  }
  all.faults.clear();
  all.calls.clear();
  all.complaints.clear();
}

void standin_set_memory(int device, std::uint64_t bytes) {
  const std::lock_guard lock(state().mutex);
  if (DeviceRecord* record = device_of(device); record != nullptr) record->total = bytes;
}

std::uint64_t standin_used(int device) {
  const std::lock_guard lock(state().mutex);
  const DeviceRecord* record = device_of(device);
  return record != nullptr ? record->used : 0;
}

void standin_set_attribute(int device, int attribute, int value) {
  const std::lock_guard lock(state().mutex);
  DeviceRecord* record = device_of(device);
  if (record == nullptr) return;
  if (value == STANDIN_UNKNOWN_ATTRIBUTE) {
    record->attributes.erase(attribute);
  } else {
    record->attributes[attribute] = value;
  }
}

void standin_lose_device(int device, int result) {
  const std::lock_guard lock(state().mutex);
  if (DeviceRecord* record = device_of(device); record != nullptr) record->lost = result;
  state().changed.notify_all();
}

void standin_fail(const char* name, int nth, int result, int times) {
  const std::lock_guard lock(state().mutex);
  state().faults.push_back({name, nth - 1, times, result});
}

void standin_clear_faults(void) {
  const std::lock_guard lock(state().mutex);
  state().faults.clear();
}

std::uint64_t standin_faults_left(void) {
  const std::lock_guard lock(state().mutex);
  std::uint64_t left = 0;
  for (const Fault& fault : state().faults) left += fault.skip > 0 || fault.times != 0 ? 1 : 0;
  return left;
}

std::uint64_t standin_calls(const char* name) {
  const std::lock_guard lock(state().mutex);
  const auto found = state().calls.find(name);
  return found != state().calls.end() ? found->second : 0;
}

std::uint64_t standin_calls_after_fork(void) { return calls_after_fork.load(std::memory_order_relaxed); }

const char* standin_complaints(void) {
  const std::lock_guard lock(state().mutex);
  std::string all;
  for (const std::string& complaint : state().complaints) all += complaint + "\n";
  return keep(std::move(all));
}

void standin_clear_complaints(void) {
  const std::lock_guard lock(state().mutex);
  state().complaints.clear();
}

const char* standin_leaks(void) {
  const std::lock_guard lock(state().mutex);
  std::string all;
  list_memory(all);
  list_virtual_memory(all);
  list_streams(all);
  return keep(std::move(all));
}

std::uint64_t standin_context_depth(void) { return current.size(); }
