// The stand-in driver: asynchronous streams, events, and copies queued on streams.
//
// Each stream has a queue and a thread, which does one work after another, with the lock held. A work may begin when its
// stream is not held, the event it waits for is done, and the order of the legacy default stream permits it: work on
// that stream waits for all work that was queued earlier on the blocking streams of its context, and they wait for its
// work. Handles are not used twice, so that the use of a destroyed one is detected.
#include <pthread.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "internal.hpp"
#include "standin.h"

namespace standin {
namespace {

constexpr Result kCapturedEvent = 907;

// One recording of an event.
struct Point {
  bool done = false;
  bool captured = false;
};
struct Work {
  std::uint64_t number = 0;         // position in the order of all queues
  std::function<void()> run;        // called with the lock held
  std::shared_ptr<Point> waits_on;  // null: does not wait
};
// Guarded by the one lock, as everything in this file.
struct Queue {
  ContextRecord* context = nullptr;
  bool legacy = false;
  bool blocking = true;
  bool held = false;
  std::uint64_t steps = 0;  // works that may be done although the stream is held
  bool capturing = false;
  bool destroyed = false;  // removed once it is empty
  std::deque<Work> works;
};
struct Mark {
  ContextRecord* context = nullptr;
  std::shared_ptr<Point> point;  // null: never recorded
};

auto& queues = *new std::map<Stream, std::shared_ptr<Queue>>;
auto& legacy = *new std::map<ContextRecord*, std::shared_ptr<Queue>>;
auto& per_thread = *new std::map<std::pair<ContextRecord*, pthread_t>, std::shared_ptr<Queue>>;
auto& working = *new std::vector<std::shared_ptr<Queue>>;  // queues that have a thread
auto& marks = *new std::map<Event, Mark>;
std::uint64_t next_work = 0;
std::uintptr_t next_handle = 0x57000000;
bool all_held = false;
bool stopping = false;
int captures = 0;
thread_local int capture_mode = 0;

void* new_handle() { return reinterpret_cast<void*>(next_handle += 64); }

bool lost(const Queue& queue) {
  return state().devices[static_cast<std::size_t>(queue.context->device)].lost != kSuccess;
}

// Whether a queue has work that was queued before `number`.
bool has_before(const Queue& queue, std::uint64_t number) {
  return !queue.works.empty() && queue.works.front().number < number;
}

bool may_begin(const Queue& queue) {
  if (queue.works.empty()) return false;
  if ((queue.held || all_held) && queue.steps == 0) return false;
  const Work& first = queue.works.front();
  if (first.waits_on != nullptr && !first.waits_on->done) return false;
  for (const auto& other : working) {
    if (other.get() == &queue || other->context != queue.context) continue;
    const bool ordered = (queue.legacy && other->blocking) || (queue.blocking && other->legacy);
    if (ordered && has_before(*other, first.number)) return false;
  }
  return true;
}

void work_off(std::shared_ptr<Queue> queue) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  for (;;) {
    all.changed.wait(lock, [&] {
      return stopping || lost(*queue) || may_begin(*queue) || (queue->destroyed && queue->works.empty());
    });
    // A lost device does no more work.
    if (stopping || lost(*queue)) queue->works.clear();
    if (stopping || (queue->destroyed && queue->works.empty())) break;
    if (lost(*queue)) {
      all.changed.notify_all();
      all.changed.wait(lock, [&] { return stopping || queue->destroyed || !lost(*queue); });
      continue;
    }
    if (queue->steps > 0) --queue->steps;
    queue->works.front().run();
    queue->works.pop_front();
    all.changed.notify_all();
  }
  std::erase(working, queue);
  all.changed.notify_all();
}

std::shared_ptr<Queue> new_queue(ContextRecord* context) {
  auto queue = std::make_shared<Queue>();
  queue->context = context;
  working.push_back(queue);
  std::thread(work_off, queue).detach();
  return queue;
}

// Null, with a complaint, if there is no such stream.
std::shared_ptr<Queue> queue_of(Stream stream, ContextRecord* context) {
  if (stream == nullptr || stream == kLegacyStream) {
    auto& queue = legacy[context];
    if (queue == nullptr) {
      queue = new_queue(context);
      queue->legacy = true;
    }
    return queue;
  }
  if (stream == kPerThreadStream) {
    auto& queue = per_thread[{context, pthread_self()}];
    if (queue == nullptr) queue = new_queue(context);
    return queue;
  }
  const auto found = queues.find(stream);
  if (found != queues.end()) return found->second;
  (void)complain("%p is no stream, or one that was destroyed", stream);
  return nullptr;
}

Mark* mark_of(Event event) {
  const auto found = marks.find(event);
  if (found != marks.end()) return &found->second;
  (void)complain("%p is no event, or one that was destroyed", event);
  return nullptr;
}

void add(Queue& queue, std::function<void()> run, std::shared_ptr<Point> waits_on = nullptr) {
  queue.works.push_back({++next_work, std::move(run), std::move(waits_on)});
  state().changed.notify_all();
}

Result lost_result(const ContextRecord& context) {
  return state().devices[static_cast<std::size_t>(context.device)].lost;
}

// Waits for one recording, without the lock.
Result wait_for(Call& call, const ContextRecord& context, const std::shared_ptr<Point>& point) {
  state().changed.wait(call.lock,
                       [&] { return stopping || point->done || lost_result(context) != kSuccess; });
  return point->done ? kSuccess : lost_result(context);
}

void copy(DevicePointer to, DevicePointer from, std::size_t bytes, int device) {
  std::vector<Piece> source;
  std::vector<Piece> target;
  if (!resolve(from, bytes, device, source) || !resolve(to, bytes, device, target)) {
    (void)complain("a copy of %zu bytes was queued, and its memory is gone when it is done", bytes);
    return;
  }
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < source.size()) {
    const std::size_t step = std::min(source[i].bytes, target[j].bytes);
    std::memmove(target[j].at, source[i].at, step);
    for (auto [piece, index] : {std::pair{&source[i], &i}, std::pair{&target[j], &j}}) {
      piece->at += step;
      piece->bytes -= step;
      if (piece->bytes == 0) ++*index;
    }
  }
}

// The queue of a stream that a test names.
std::shared_ptr<Queue> meant(int device, Stream stream) {
  State& all = state();
  if (device < 0 || static_cast<std::size_t>(device) >= all.devices.size()) device = 0;
  return queue_of(stream, &all.devices[static_cast<std::size_t>(device)].primary);
}

}  // namespace

void reset_streams() {
  State& all = state();
  std::unique_lock lock(all.mutex);
  stopping = true;
  all.changed.notify_all();
  all.changed.wait(lock, [] { return working.empty(); });
  stopping = all_held = false;
  captures = 0;
  queues.clear();
  legacy.clear();
  per_thread.clear();
  marks.clear();
}

void list_streams(std::string& out) {
  for (std::size_t i = 0; i < queues.size(); ++i) out += "cuStreamCreate\n";
  for (std::size_t i = 0; i < marks.size(); ++i) out += "cuEventCreate\n";
}

}  // namespace standin

using namespace standin;

// ---- streams

STANDIN_DRIVER cuStreamCreate(Stream* stream, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuStreamCreate);
  if (flags > kStreamNonBlocking) return complain("cuStreamCreate with flags %u", flags);
  auto queue = new_queue(call.context);
  queue->blocking = (flags & kStreamNonBlocking) == 0;
  *stream = new_handle();
  queues.emplace(*stream, std::move(queue));
  return kSuccess;
}

// Returns at once; the queued work is still done.
STANDIN_DRIVER cuStreamDestroy(Stream stream) {
  STANDIN_CONTEXT_CALL(cuStreamDestroy);
  const auto found = queues.find(stream);
  if (found == queues.end()) {
    (void)complain("cuStreamDestroy of %p, which is no stream", stream);
    return kInvalidHandle;
  }
  found->second->destroyed = true;
  queues.erase(found);
  state().changed.notify_all();
  return kSuccess;
}

STANDIN_DRIVER cuStreamSynchronize(Stream stream) {
  STANDIN_CONTEXT_CALL(cuStreamSynchronize);
  const auto queue = queue_of(stream, call.context);
  if (queue == nullptr) return kInvalidHandle;
  // Waits for all work queued on it, including the work that the legacy stream orders before it.
  const auto point = std::make_shared<Point>();
  add(*queue, [point] { point->done = true; });
  return wait_for(call, *queue->context, point);
}

STANDIN_DRIVER cuCtxSynchronize() {
  STANDIN_CONTEXT_CALL(cuCtxSynchronize);
  ContextRecord* context = call.context;
  for (const auto& queue : working) {
    if (queue->context != context || !queue->capturing) continue;
    (void)complain("cuCtxSynchronize breaks a capture that goes on");
    return kCaptureUnsupported;
  }
  const std::uint64_t until = next_work;
  state().changed.wait(call.lock, [&] {
    return stopping || lost_result(*context) != kSuccess ||
           std::none_of(working.begin(), working.end(), [&](const auto& queue) {
             return queue->context == context && has_before(*queue, until + 1);
           });
  });
  return lost_result(*context);
}

STANDIN_DRIVER cuStreamGetCtx(Stream stream, Context* context) {
  STANDIN_CONTEXT_CALL(cuStreamGetCtx);
  const auto queue = queue_of(stream, call.context);
  if (queue == nullptr) return kInvalidHandle;
  *context = handle_of(queue->context);
  return lost_result(*queue->context);
}

STANDIN_DRIVER cuStreamIsCapturing(Stream stream, int* status) {
  STANDIN_CONTEXT_CALL(cuStreamIsCapturing);
  const auto queue = queue_of(stream, call.context);
  if (queue == nullptr) return kInvalidHandle;
  *status = queue->capturing ? 1 : kCaptureNone;
  return kSuccess;
}

STANDIN_DRIVER cuThreadExchangeStreamCaptureMode(int* mode) {
  STANDIN_CALL(cuThreadExchangeStreamCaptureMode);
  if (*mode < 0 || *mode > kCaptureModeRelaxed) return complain("a capture mode of %d", *mode);
  std::swap(*mode, capture_mode);
  return kSuccess;
}

// ---- events

STANDIN_DRIVER cuEventCreate(Event* event, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuEventCreate);
  if (flags > 7) return complain("cuEventCreate with flags %u", flags);
  *event = new_handle();
  marks.emplace(*event, Mark{call.context, nullptr});
  return kSuccess;
}

STANDIN_DRIVER cuEventDestroy(Event event) {
  STANDIN_CONTEXT_CALL(cuEventDestroy);
  if (mark_of(event) == nullptr) return kInvalidHandle;
  marks.erase(event);
  return kSuccess;
}

STANDIN_DRIVER cuEventRecord(Event event, Stream stream) {
  STANDIN_CONTEXT_CALL(cuEventRecord);
  Mark* mark = mark_of(event);
  const auto queue = queue_of(stream, call.context);
  if (mark == nullptr || queue == nullptr) return kInvalidHandle;
  if (mark->context != queue->context) {
    (void)complain("cuEventRecord of an event of device %d on a stream of device %d",
                   mark->context->device, queue->context->device);
    return kInvalidHandle;
  }
  if (const Result result = lost_result(*queue->context); result != kSuccess) return result;
  const auto point = std::make_shared<Point>();
  mark->point = point;
  point->captured = queue->capturing;
  if (!point->captured) add(*queue, [point] { point->done = true; });
  return kSuccess;
}

STANDIN_DRIVER cuEventQuery(Event event) {
  STANDIN_CONTEXT_CALL(cuEventQuery);
  const Mark* mark = mark_of(event);
  if (mark == nullptr) return kInvalidHandle;
  if (captures != 0 && capture_mode != kCaptureModeRelaxed) {
    (void)complain("cuEventQuery breaks a capture that goes on");
    return kCaptureUnsupported;
  }
  if (const Result result = lost_result(*mark->context); result != kSuccess) return result;
  if (mark->point == nullptr) return kSuccess;
  if (mark->point->captured) return kCapturedEvent;
  return mark->point->done ? kSuccess : kNotReady;
}

STANDIN_DRIVER cuEventSynchronize(Event event) {
  STANDIN_CONTEXT_CALL(cuEventSynchronize);
  const Mark* mark = mark_of(event);
  if (mark == nullptr) return kInvalidHandle;
  if (mark->point == nullptr) return kSuccess;
  if (mark->point->captured) return kCapturedEvent;
  const auto point = mark->point;  // the event may be recorded again meanwhile
  return wait_for(call, *mark->context, point);
}

STANDIN_DRIVER cuStreamWaitEvent(Stream stream, Event event, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuStreamWaitEvent);
  if (flags != 0) return complain("cuStreamWaitEvent with flags %u", flags);
  const Mark* mark = mark_of(event);
  const auto queue = queue_of(stream, call.context);
  if (mark == nullptr || queue == nullptr) return kInvalidHandle;
  if (mark->point != nullptr)
    add(
        *queue, [] {}, mark->point);
  return kSuccess;
}

// ---- work

STANDIN_DRIVER cuMemsetD8Async(DevicePointer address, unsigned char value, std::size_t bytes,
                               Stream stream) {
  STANDIN_CONTEXT_CALL(cuMemsetD8Async);
  const auto queue = queue_of(stream, call.context);
  if (queue == nullptr) return kInvalidHandle;
  const int device = queue->context->device;
  std::vector<Piece> now;
  if (!resolve(address, bytes, device, now)) return kInvalidValue;
  add(*queue, [address, value, bytes, device] {
    std::vector<Piece> pieces;
    if (!resolve(address, bytes, device, pieces)) {
      (void)complain("%zu bytes were to be set, and are gone when it is done", bytes);
      return;
    }
    for (const Piece& piece : pieces) std::memset(piece.at, value, piece.bytes);
  });
  return kSuccess;
}

// As the driver's reference says, the call reads pageable host memory at once, and has written it when it returns.
STANDIN_DRIVER cuMemcpyAsync(DevicePointer to, DevicePointer from, std::size_t bytes, Stream stream) {
  STANDIN_CONTEXT_CALL(cuMemcpyAsync);
  const auto queue = queue_of(stream, call.context);
  if (queue == nullptr) return kInvalidHandle;
  const int device = queue->context->device;
  std::vector<Piece> source;
  std::vector<Piece> target;
  if (!resolve(from, bytes, device, source) || !resolve(to, bytes, device, target)) return kInvalidValue;
  if (bytes != 0 && place_of(from) == Place::pageable) {
    auto staged = std::make_shared<std::vector<std::byte>>(bytes);
    std::size_t at = 0;
    for (const Piece& piece : source) {
      std::memcpy(staged->data() + at, piece.at, piece.bytes);
      at += piece.bytes;
    }
    add(*queue, [to, staged, bytes, device] {
      copy(to, reinterpret_cast<DevicePointer>(staged->data()), bytes, device);
    });
  } else {
    add(*queue, [to, from, bytes, device] { copy(to, from, bytes, device); });
  }
  if (bytes == 0 || place_of(to) != Place::pageable) return kSuccess;
  const auto point = std::make_shared<Point>();
  add(*queue, [point] { point->done = true; });
  return wait_for(call, *queue->context, point);
}

// ---- control

void standin_hold(int device, void* stream) {
  const std::lock_guard lock(state().mutex);
  if (const auto queue = meant(device, stream)) queue->held = true;
}

void standin_release(int device, void* stream) {
  const std::lock_guard lock(state().mutex);
  const auto queue = meant(device, stream);
  if (queue == nullptr) return;
  queue->held = false;
  queue->steps = 0;
  state().changed.notify_all();
}

void standin_hold_all(void) {
  const std::lock_guard lock(state().mutex);
  all_held = true;
}

void standin_release_all(void) {
  const std::lock_guard lock(state().mutex);
  all_held = false;
  for (const auto& queue : working) {
    queue->held = false;
    queue->steps = 0;
  }
  state().changed.notify_all();
}

void standin_step(int device, void* stream, std::uint64_t works) {
  const std::lock_guard lock(state().mutex);
  if (const auto queue = meant(device, stream)) queue->steps += works;
  state().changed.notify_all();
}

std::uint64_t standin_queued(int device, void* stream) {
  const std::lock_guard lock(state().mutex);
  const auto queue = meant(device, stream);
  return queue != nullptr ? queue->works.size() : 0;
}

void standin_settle(void) {
  std::unique_lock lock(state().mutex);
  state().changed.wait(lock, [] {
    return std::none_of(working.begin(), working.end(), [](const auto& queue) {
      return may_begin(*queue) || (lost(*queue) && !queue->works.empty());
    });
  });
}

void standin_capture(int device, void* stream, int on) {
  const std::lock_guard lock(state().mutex);
  const auto queue = meant(device, stream);
  if (queue == nullptr || queue->capturing == (on != 0)) return;
  queue->capturing = on != 0;
  captures += on != 0 ? 1 : -1;
}
