// Copies from and to devices, ordering of streams, and events that mark a point on a stream. Used by the bindings for
// DeviceArray.
//
// Nothing here owns memory: the caller of copy() keeps both sides until the mark has passed. Each call makes the
// context current that it needs and restores the caller's. When a call returns a failure, the work it had queued is
// finished.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/api.hpp"

namespace slabpool::cuda {

// Which elements are copied, between two addresses of any kind that the device can access. The three spans have one
// entry for each dimension, at most kMostDimensions. Strides are in bytes and may be 0 or negative.
struct CopySpec {
  DevicePointer to = 0;  // of the first element
  DevicePointer from = 0;
  std::size_t itemsize = 0;
  std::span<const std::int64_t> shape;
  std::span<const std::int64_t> to_strides;
  std::span<const std::int64_t> from_strides;
};
inline constexpr std::size_t kMostDimensions = 64;

// Queues the copy on `stream`: one call of the driver for each run of bytes that is contiguous on both sides. The
// default streams kLegacyStream and kPerThreadStream are those of `device`. Without `mark` it returns when the copy is
// finished; with `mark` it returns at once, and passed() says when the copy is finished.
SLABPOOL_API Result copy(int device, Stream stream, const CopySpec& spec, Event* mark = nullptr);
// Fills `bytes` bytes at `to` with repetitions of the first `period` of them, or with `value` if `period` is 0.
// Returns when that is finished.
SLABPOOL_API Result repeat(int device, Stream stream, DevicePointer to, std::size_t bytes,
                           std::size_t period, unsigned char value = 0);

// Whether the stream has reached the mark. Also true once the device has failed, because it then accesses no memory.
// One thread at a time may use a mark; forget() destroys it.
SLABPOOL_API bool passed(int device, Event mark) noexcept;
SLABPOOL_API void forget(int device, Event mark) noexcept;

// Work queued on `after` from now on waits for the work that is on `before` now. The default streams are those of
// `device`.
SLABPOOL_API Result order(int device, Stream before, Stream after);

// The device's address of host memory that is registered for it.
SLABPOOL_API Result device_address(int device, const void* host, DevicePointer& address);

// For messages: the driver's name and text of an error, and whether it means that the device is lost.
SLABPOOL_API std::string describe(Result result, bool& lost);

}  // namespace slabpool::cuda
