// Copies that involve a device, the order of streams, and marks that say how far a stream has come.
//
// For bindings: what Python's DeviceArray stands on. Nothing here owns memory: whoever queues a copy keeps both
// sides until its mark is passed. Every call makes the context current that it needs, and leaves the caller's
// as it was. A call that fails has nothing under way any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/api.hpp"

namespace slabpool::cuda {

// Elements from one place to another, each anywhere that a device or the host can reach. All three spans have
// one entry a dimension, at most kMostDimensions; strides are in bytes, and may be 0 or negative.
struct CopySpec {
  DevicePointer to = 0;  // of the first element
  DevicePointer from = 0;
  std::size_t itemsize = 0;
  std::span<const std::int64_t> shape;
  std::span<const std::int64_t> to_strides;
  std::span<const std::int64_t> from_strides;
};
inline constexpr std::size_t kMostDimensions = 64;

// One call of the driver for each run of bytes that is contiguous on both sides, queued on `stream`; kLegacyStream
// and kPerThreadStream are those of `device`. Returns when it is done, or with `mark` at once: see passed().
SLABPOOL_API Result copy(int device, Stream stream, const CopySpec& spec, Event* mark = nullptr);
// `bytes` at `to` become repetitions of the first `period` of them, and the call returns when they are. With a
// `period` of 0 they become `value`.
SLABPOOL_API Result repeat(int device, Stream stream, DevicePointer to, std::size_t bytes,
                           std::size_t period, unsigned char value = 0);

// Whether a mark's stream has come past it. True too once the device has failed: it touches nothing any more.
// A mark is one thread's at a time; when it is passed, it is given to forget().
SLABPOOL_API bool passed(int device, Event mark) noexcept;
SLABPOOL_API void forget(int device, Event mark) noexcept;

// What is queued on `after` from now on waits for what is queued on `before` until now. Handles such as
// kLegacyStream are those of `device`.
SLABPOOL_API Result order(int device, Stream before, Stream after);

// Where a device finds memory of this process that is registered for it.
SLABPOOL_API Result device_address(int device, const void* host, DevicePointer& address);

// For messages: the driver's name of an error and what it says, and whether the device is lost by it.
SLABPOOL_API std::string describe(Result result, bool& lost);

}  // namespace slabpool::cuda
