// The part of the CUDA driver's binary interface that slabpool uses: types, constants, and functions with their
// signatures. Declared here, so that neither building nor installing needs a CUDA toolkit.
//
// Source: the CUDA driver API reference (12.9). Each function has the version that is passed to cuGetProcAddress, the
// lowest that suffices, and whether slabpool needs it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace slabpool::cuda {

using Result = int;
using Device = int;
using DevicePointer = std::uint64_t;
using Context = void*;
using Stream = void*;
using Event = void*;
using MemoryHandle = std::uint64_t;  // of physical memory

inline constexpr Result kSuccess = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotInitialized = 3;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kInvalidContext = 201;
inline constexpr Result kInvalidHandle = 400;
inline constexpr Result kNotReady = 600;
inline constexpr Result kIllegalAddress = 700;
inline constexpr Result kAlreadyRegistered = 712;
inline constexpr Result kNotPermitted = 800;
inline constexpr Result kNotSupported = 801;
// Errors of graph capture: from this one to kCaptureLast.
inline constexpr Result kCaptureUnsupported = 900;
inline constexpr Result kCaptureLast = 908;
inline constexpr Result kUnknown = 999;

// Handles of the default streams of a context.
inline const Stream kLegacyStream = reinterpret_cast<Stream>(std::uintptr_t{1});
inline const Stream kPerThreadStream = reinterpret_cast<Stream>(std::uintptr_t{2});

// Device attributes.
inline constexpr int kAttributePciBus = 33;
inline constexpr int kAttributePciDevice = 34;
inline constexpr int kAttributePciDomain = 50;
inline constexpr int kAttributeManagedMemory = 83;
inline constexpr int kAttributeConcurrentManagedAccess = 89;
inline constexpr int kAttributeVirtualMemory = 102;
inline constexpr int kAttributeHandleTypePosixFd = 103;
inline constexpr int kAttributeHostNumaId = 134;

inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr int kCaptureNone = 0;  // status of a stream
inline constexpr int kCaptureModeRelaxed =
    2;  // of a thread: its calls invalidate no capture of another thread
inline constexpr unsigned kHostRegisterPortable = 1;
inline constexpr unsigned kHostRegisterDeviceMap = 2;
inline constexpr unsigned kMemAttachGlobal = 1;
inline constexpr int kHandleTypeNone = 0;
inline constexpr int kHandleTypePosixFd = 1;
inline constexpr int kMemAllocationPinned = 1;
inline constexpr int kMemLocationDevice = 1;
inline constexpr int kMemAccessReadWrite = 3;
inline constexpr int kGranularityMinimum = 0;

struct MemLocation {
  int type = kMemLocationDevice;
  int id = 0;
};
struct MemAllocationProp {
  int type = kMemAllocationPinned;
  int requested_handle_types = kHandleTypeNone;
  MemLocation location;
  void* win32_handle_meta_data = nullptr;
  struct {
    unsigned char compression_type = 0;
    unsigned char gpu_direct_rdma_capable = 0;
    unsigned short usage = 0;
    unsigned char reserved[4] = {};
  } alloc_flags;
};
struct MemAccessDesc {
  MemLocation location;
  int flags = kMemAccessReadWrite;
};
static_assert(sizeof(MemAllocationProp) == 32 && sizeof(MemAccessDesc) == 12);

// X(name, version, need, signature). `required`: slabpool refuses a driver without it.
#define SLABPOOL_CUDA_FUNCTIONS(X)                                                              \
  X(cuInit, 2000, required, Result(unsigned))                                                   \
  X(cuDriverGetVersion, 2020, required, Result(int*))                                           \
  X(cuGetErrorName, 6000, required, Result(Result, const char**))                               \
  X(cuGetErrorString, 6000, required, Result(Result, const char**))                             \
  X(cuDeviceGetCount, 2000, required, Result(int*))                                             \
  X(cuDeviceGet, 2000, required, Result(Device*, int))                                          \
  X(cuDeviceGetName, 2000, required, Result(char*, int, Device))                                \
  X(cuDeviceGetAttribute, 2000, required, Result(int*, int, Device))                            \
  X(cuDeviceTotalMem, 3020, required, Result(std::size_t*, Device))                             \
  X(cuDevicePrimaryCtxRetain, 7000, required, Result(Context*, Device))                         \
  X(cuCtxGetCurrent, 4000, required, Result(Context*))                                          \
  X(cuCtxPushCurrent, 4000, required, Result(Context))                                          \
  X(cuCtxPopCurrent, 4000, required, Result(Context*))                                          \
  X(cuCtxSynchronize, 2000, required, Result())                                                 \
  X(cuMemGetInfo, 3020, required, Result(std::size_t*, std::size_t*))                           \
  X(cuMemAlloc, 3020, required, Result(DevicePointer*, std::size_t))                            \
  X(cuMemFree, 3020, required, Result(DevicePointer))                                           \
  X(cuMemHostRegister, 6050, required, Result(void*, std::size_t, unsigned))                    \
  X(cuMemHostUnregister, 4000, required, Result(void*))                                         \
  X(cuMemHostGetDevicePointer, 3020, required, Result(DevicePointer*, void*, unsigned))         \
  X(cuMemAllocManaged, 6000, required, Result(DevicePointer*, std::size_t, unsigned))           \
  X(cuMemcpyAsync, 4000, required, Result(DevicePointer, DevicePointer, std::size_t, Stream))   \
  X(cuMemsetD8Async, 3020, required, Result(DevicePointer, unsigned char, std::size_t, Stream)) \
  X(cuStreamSynchronize, 2000, required, Result(Stream))                                        \
  X(cuStreamGetCtx, 9020, required, Result(Stream, Context*))                                   \
  X(cuStreamWaitEvent, 3020, required, Result(Stream, Event, unsigned))                         \
  X(cuStreamCreate, 2000, required, Result(Stream*, unsigned))                                  \
  X(cuStreamDestroy, 4000, required, Result(Stream))                                            \
  X(cuEventCreate, 2000, required, Result(Event*, unsigned))                                    \
  X(cuEventDestroy, 4000, required, Result(Event))                                              \
  X(cuEventRecord, 2000, required, Result(Event, Stream))                                       \
  X(cuEventQuery, 2000, required, Result(Event))                                                \
  X(cuEventSynchronize, 2000, required, Result(Event))                                          \
  X(cuStreamIsCapturing, 10000, optional, Result(Stream, int*))                                 \
  X(cuThreadExchangeStreamCaptureMode, 10010, optional, Result(int*))                           \
  X(cuMemAddressReserve, 10020, optional,                                                       \
    Result(DevicePointer*, std::size_t, std::size_t, DevicePointer, unsigned long long))        \
  X(cuMemAddressFree, 10020, optional, Result(DevicePointer, std::size_t))                      \
  X(cuMemCreate, 10020, optional,                                                               \
    Result(MemoryHandle*, std::size_t, const MemAllocationProp*, unsigned long long))           \
  X(cuMemRelease, 10020, optional, Result(MemoryHandle))                                        \
  X(cuMemMap, 10020, optional,                                                                  \
    Result(DevicePointer, std::size_t, std::size_t, MemoryHandle, unsigned long long))          \
  X(cuMemUnmap, 10020, optional, Result(DevicePointer, std::size_t))                            \
  X(cuMemSetAccess, 10020, optional,                                                            \
    Result(DevicePointer, std::size_t, const MemAccessDesc*, std::size_t))                      \
  X(cuMemGetAllocationGranularity, 10020, optional,                                             \
    Result(std::size_t*, const MemAllocationProp*, int))                                        \
  X(cuMemExportToShareableHandle, 10020, optional,                                              \
    Result(void*, MemoryHandle, int, unsigned long long))                                       \
  X(cuMemImportFromShareableHandle, 10020, optional, Result(MemoryHandle*, void*, int))

}  // namespace slabpool::cuda
