#include "slabpool/cuda/copies.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <optional>

#include "slabpool/base/assert.hpp"
#include "slabpool/cuda/driver.hpp"

namespace slabpool::cuda {
namespace {

// The driver with a device's primary context current.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : driver_(Driver::get()) {
    if (driver_ == nullptr) {
      result_ = kNotInitialized;
      return;
    }
    const Context context = driver_->context(device, result_);
    if (result_ == kSuccess && !current_.emplace(*driver_, context).ok()) result_ = kInvalidContext;
  }
  Result result() const noexcept { return result_; }
  const Driver& driver() const noexcept { return *driver_; }

 private:
  const Driver* driver_;
  Result result_ = kSuccess;
  std::optional<CurrentContext> current_;
};

bool is_handle(Stream stream) noexcept {
  return stream != nullptr && stream != kLegacyStream && stream != kPerThreadStream;
}

// Refuses a stream that is being captured into a graph: the queued work would not run now, and each launch of the graph
// would repeat it after its memory was returned.
Result check_not_captured(const Driver& driver, Stream stream) noexcept {
  int status = kCaptureNone;
  if (!is_handle(stream) || driver.cuStreamIsCapturing == nullptr) return kSuccess;
  const Result result = driver.cuStreamIsCapturing(stream, &status);
  if (result != kSuccess) return result;
  return status == kCaptureNone ? kSuccess : kCaptureUnsupported;
}

// A new event behind the work that is queued on the stream. An event can only be recorded on streams of the context it
// was created in, and a stream from another library may belong to a context other than the primary one.
Result record(const Driver& driver, Stream stream, Event& event) {
  std::optional<CurrentContext> current;
  if (is_handle(stream)) {
    Context context = nullptr;
    if (const Result result = driver.cuStreamGetCtx(stream, &context); result != kSuccess) return result;
    if (!current.emplace(driver, context).ok()) return kInvalidContext;
  }
  Event made = nullptr;
  Result result = driver.cuEventCreate(&made, kEventDisableTiming);
  if (result != kSuccess) return result;
  result = driver.cuEventRecord(made, stream);
  if (result != kSuccess) {
    (void)driver.cuEventDestroy(made);
    return result;
  }
  event = made;
  return kSuccess;
}

// The dimensions of a copy whose steps each take a call, outermost first, and the bytes of one call.
struct Runs {
  struct Dimension {
    std::int64_t count, to, from;
  };
  std::array<Dimension, kMostDimensions> dimensions;
  std::size_t count = 0;
  std::int64_t bytes = 0;
};

Runs runs_of(const CopySpec& spec) {
  SLABPOOL_ASSERT(spec.shape.size() <= kMostDimensions && spec.to_strides.size() == spec.shape.size() &&
                      spec.from_strides.size() == spec.shape.size(),
                  "one stride for each dimension", spec.shape.size(), spec.to_strides.size(),
                  spec.from_strides.size());
  Runs runs;
  runs.bytes = static_cast<std::int64_t>(spec.itemsize);
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    if (spec.shape[i] == 0) runs.bytes = 0;
    if (spec.shape[i] != 1)
      runs.dimensions[runs.count++] = {spec.shape[i], spec.to_strides[i], spec.from_strides[i]};
  }
  // Both sides must visit the dimensions in the same order, and any order will do. Sorting by the destination's strides
  // puts the contiguous dimensions last.
  const auto end = runs.dimensions.begin() + static_cast<std::ptrdiff_t>(runs.count);
  std::stable_sort(runs.dimensions.begin(), end,
                   [](const auto& a, const auto& b) { return std::abs(a.to) > std::abs(b.to); });
  while (runs.count > 0) {
    const auto& last = runs.dimensions[runs.count - 1];
    if (last.to != runs.bytes || last.from != runs.bytes) break;
    runs.bytes *= last.count;
    --runs.count;
  }
  return runs;
}

Result queue(const Driver& driver, Stream stream, const CopySpec& spec) {
  const Runs runs = runs_of(spec);
  if (runs.bytes == 0) return kSuccess;
  std::array<std::int64_t, kMostDimensions> at{};
  std::int64_t to = 0, from = 0;  // offsets from the first elements
  for (;;) {
    const Result result = driver.cuMemcpyAsync(spec.to + static_cast<DevicePointer>(to),
                                               spec.from + static_cast<DevicePointer>(from),
                                               static_cast<std::size_t>(runs.bytes), stream);
    if (result != kSuccess) return result;
    std::size_t i = runs.count;
    for (; i > 0; --i) {
      const auto& dimension = runs.dimensions[i - 1];
      to += dimension.to;
      from += dimension.from;
      if (++at[i - 1] < dimension.count) break;
      at[i - 1] = 0;
      to -= dimension.to * dimension.count;
      from -= dimension.from * dimension.count;
    }
    if (i == 0) return kSuccess;
  }
}

// Waits for the work that was queued before a failure.
Result settle(const Driver& driver, Stream stream, Result result) {
  const Result waited = driver.cuStreamSynchronize(stream);
  return result != kSuccess ? result : waited;
}

}  // namespace

Result copy(int device, Stream stream, const CopySpec& spec, Event* mark) {
  const CurrentDevice current(device);
  if (current.result() != kSuccess) return current.result();
  Result result = check_not_captured(current.driver(), stream);
  if (result != kSuccess) return result;
  result = queue(current.driver(), stream, spec);
  if (result == kSuccess && mark != nullptr) {
    result = record(current.driver(), stream, *mark);
    if (result == kSuccess) return result;
  }
  return settle(current.driver(), stream, result);
}

Result repeat(int device, Stream stream, DevicePointer to, std::size_t bytes, std::size_t period,
              unsigned char value) {
  const CurrentDevice current(device);
  if (current.result() != kSuccess) return current.result();
  Result result = kSuccess;
  if (period == 0) result = current.driver().cuMemsetD8Async(to, value, bytes, stream);
  // Doubles the filled part: each copy reads what the copies before it on the same stream have written.
  for (std::size_t done = period; period != 0 && done < bytes && result == kSuccess; done *= 2)
    result = current.driver().cuMemcpyAsync(to + done, to, std::min(done, bytes - done), stream);
  return settle(current.driver(), stream, result);
}

bool passed(int device, Event mark) noexcept {
  try {
    const CurrentDevice current(device);
    // Without a driver (in a fork's child) the answer is no, so that the caller keeps its memory.
    if (current.result() != kSuccess) return Driver::is_sticky(current.result());
    const RelaxedCapture relaxed(current.driver());
    const Result result = current.driver().cuEventQuery(mark);
    // kInvalidHandle: the event was destroyed together with its context, and the context's work with it.
    return result == kSuccess || result == kInvalidHandle || Driver::is_sticky(result);
  } catch (const std::exception&) {
    return false;
  }
}

void forget(int device, Event mark) noexcept {
  try {
    const CurrentDevice current(device);
    if (current.result() == kSuccess) (void)current.driver().cuEventDestroy(mark);
  } catch (const std::exception&) {  // only the event leaks
  }
}

Result order(int device, Stream before, Stream after) {
  if (before == after) return kSuccess;
  const CurrentDevice current(device);
  if (current.result() != kSuccess) return current.result();
  Event event = nullptr;
  Result result = record(current.driver(), before, event);
  if (result != kSuccess) return result;
  result = current.driver().cuStreamWaitEvent(after, event, 0);
  // The driver frees a destroyed event once no stream waits for it.
  (void)current.driver().cuEventDestroy(event);
  return result;
}

Result device_address(int device, const void* host, DevicePointer& address) {
  const CurrentDevice current(device);
  if (current.result() != kSuccess) return current.result();
  return current.driver().cuMemHostGetDevicePointer(&address, const_cast<void*>(host), 0);
}

std::string describe(Result result, bool& lost) {
  lost = Driver::is_sticky(result);
  Error error;
  const Driver* driver = Driver::get(error);
  return driver != nullptr ? driver->describe(result) : error.text;
}

}  // namespace slabpool::cuda
