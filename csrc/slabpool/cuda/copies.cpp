#include "slabpool/cuda/copies.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <optional>

#include "slabpool/cuda/driver.hpp"

namespace slabpool::cuda {
namespace {

// The driver with a device's primary context current.
class Here {
 public:
  explicit Here(int device) : driver_(Driver::get()) {
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

// Whether the stream is being captured into a graph. Then nothing is done by it now, and what is queued is done
// again and again when nobody keeps its memory any more.
Result check_not_captured(const Driver& driver, Stream stream) noexcept {
  int status = kCaptureNone;
  if (!is_handle(stream) || driver.cuStreamIsCapturing == nullptr) return kSuccess;
  const Result result = driver.cuStreamIsCapturing(stream, &status);
  if (result != kSuccess) return result;
  return status == kCaptureNone ? kSuccess : kCaptureUnsupported;
}

// A new event after what is queued on the stream. An event can only be recorded on streams of the context that it
// was made in, and a stream that somebody else made may be of another than the device's primary one.
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

// A copy's dimensions that take a call each, outermost first, and the bytes of one call.
struct Runs {
  struct Dimension {
    std::int64_t count, to, from;
  };
  std::array<Dimension, kMostDimensions> dimensions;
  std::size_t count = 0;
  std::int64_t bytes = 0;
};

Runs runs_of(const CopySpec& spec) {
  Runs runs;
  runs.bytes = static_cast<std::int64_t>(spec.itemsize);
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    if (spec.shape[i] == 0) runs.bytes = 0;
    if (spec.shape[i] != 1)
      runs.dimensions[runs.count++] = {spec.shape[i], spec.to_strides[i], spec.from_strides[i]};
  }
  // The order of the dimensions is free as long as both sides have the same: by the destination's strides,
  // so that what lies side by side there comes to lie last.
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
  std::int64_t to = 0, from = 0;  // from the first elements
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

// Whatever was queued before a failure is over when the caller hears of it.
Result settle(const Driver& driver, Stream stream, Result result) {
  const Result waited = driver.cuStreamSynchronize(stream);
  return result != kSuccess ? result : waited;
}

}  // namespace

Result copy(int device, Stream stream, const CopySpec& spec, Event* mark) {
  const Here here(device);
  if (here.result() != kSuccess) return here.result();
  Result result = check_not_captured(here.driver(), stream);
  if (result != kSuccess) return result;
  result = queue(here.driver(), stream, spec);
  if (result == kSuccess && mark != nullptr) {
    result = record(here.driver(), stream, *mark);
    if (result == kSuccess) return result;
  }
  return settle(here.driver(), stream, result);
}

Result repeat(int device, Stream stream, DevicePointer to, std::size_t bytes, std::size_t period,
              unsigned char value) {
  const Here here(device);
  if (here.result() != kSuccess) return here.result();
  Result result = kSuccess;
  if (period == 0) result = here.driver().cuMemsetD8Async(to, value, bytes, stream);
  // What there is, doubled: each copy reads what those before it on the same stream have written.
  for (std::size_t done = period; period != 0 && done < bytes && result == kSuccess; done *= 2)
    result = here.driver().cuMemcpyAsync(to + done, to, std::min(done, bytes - done), stream);
  return settle(here.driver(), stream, result);
}

bool passed(int device, Event mark) noexcept {
  try {
    const Here here(device);
    // Where nobody can tell (a fork's child has no driver), what the mark keeps stays.
    if (here.result() != kSuccess) return Driver::is_sticky(here.result());
    const RelaxedCapture relaxed(here.driver());
    const Result result = here.driver().cuEventQuery(mark);
    // An event that is none any more was taken down with its context, and the context's work with it.
    return result == kSuccess || result == kInvalidHandle || Driver::is_sticky(result);
  } catch (const std::exception&) {
    return false;
  }
}

void forget(int device, Event mark) noexcept {
  try {
    const Here here(device);
    if (here.result() == kSuccess) (void)here.driver().cuEventDestroy(mark);
  } catch (const std::exception&) {  // the event is lost, and nothing else
  }
}

Result order(int device, Stream before, Stream after) {
  if (before == after) return kSuccess;
  const Here here(device);
  if (here.result() != kSuccess) return here.result();
  Event event = nullptr;
  Result result = record(here.driver(), before, event);
  if (result != kSuccess) return result;
  result = here.driver().cuStreamWaitEvent(after, event, 0);
  // The driver keeps what it still needs of an event that is destroyed.
  (void)here.driver().cuEventDestroy(event);
  return result;
}

Result device_address(int device, const void* host, DevicePointer& address) {
  const Here here(device);
  if (here.result() != kSuccess) return here.result();
  return here.driver().cuMemHostGetDevicePointer(&address, const_cast<void*>(host), 0);
}

std::string describe(Result result, bool& lost) {
  lost = Driver::is_sticky(result);
  std::string why;
  const Driver* driver = Driver::get(&why);
  return driver != nullptr ? driver->describe(result) : why;
}

}  // namespace slabpool::cuda
