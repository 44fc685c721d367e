// The stand-in driver: streams and events. For now each stream does its work at once, in the call.
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <set>

#include "internal.hpp"

namespace standin {
namespace {

// Guarded by the one lock.
struct Queue {
  ContextRecord* context = nullptr;
};
struct Mark {
  ContextRecord* context = nullptr;
};
auto& queues = *new std::set<Queue*>;
auto& marks = *new std::set<Mark*>;

// The context of a stream, null for none.
ContextRecord* context_of_stream(Stream stream, ContextRecord* now) {
  if (stream == nullptr || stream == kLegacyStream || stream == kPerThreadStream) return now;
  const auto found = queues.find(static_cast<Queue*>(stream));
  return found != queues.end() ? (*found)->context : nullptr;
}

Result check(Stream stream, ContextRecord* now) {
  if (context_of_stream(stream, now) != nullptr) return kSuccess;
  (void)complain("%p is no stream", stream);
  return kInvalidHandle;
}

Result check_event(Event event) {
  if (marks.count(static_cast<Mark*>(event)) != 0) return kSuccess;
  (void)complain("%p is no event", event);
  return kInvalidHandle;
}

}  // namespace

void reset_streams() {
  const std::lock_guard lock(state().mutex);
  for (Queue* queue : queues) delete queue;
  for (Mark* mark : marks) delete mark;
  queues.clear();
  marks.clear();
}

void list_streams(std::string& out) {
  for (std::size_t i = 0; i < queues.size(); ++i) out += "cuStreamCreate\n";
  for (std::size_t i = 0; i < marks.size(); ++i) out += "cuEventCreate\n";
}

}  // namespace standin

using namespace standin;

STANDIN_DRIVER cuCtxSynchronize() {
  STANDIN_CONTEXT_CALL(cuCtxSynchronize);
  return kSuccess;
}

STANDIN_DRIVER cuStreamCreate(Stream* stream, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuStreamCreate);
  if (flags > kStreamNonBlocking) return complain("cuStreamCreate with flags %u", flags);
  *stream = *queues.insert(new Queue{call.context}).first;
  return kSuccess;
}

STANDIN_DRIVER cuStreamDestroy(Stream stream) {
  STANDIN_CONTEXT_CALL(cuStreamDestroy);
  if (queues.erase(static_cast<Queue*>(stream)) == 0) {
    (void)complain("cuStreamDestroy of %p, which is no stream", stream);
    return kInvalidHandle;
  }
  delete static_cast<Queue*>(stream);
  return kSuccess;
}

STANDIN_DRIVER cuStreamSynchronize(Stream stream) {
  STANDIN_CONTEXT_CALL(cuStreamSynchronize);
  return check(stream, call.context);
}

STANDIN_DRIVER cuStreamGetCtx(Stream stream, Context* context) {
  STANDIN_CONTEXT_CALL(cuStreamGetCtx);
  if (const Result result = check(stream, call.context); result != kSuccess) return result;
  *context = handle_of(context_of_stream(stream, call.context));
  return kSuccess;
}

STANDIN_DRIVER cuEventCreate(Event* event, unsigned) {
  STANDIN_CONTEXT_CALL(cuEventCreate);
  *event = *marks.insert(new Mark{call.context}).first;
  return kSuccess;
}

STANDIN_DRIVER cuEventDestroy(Event event) {
  STANDIN_CONTEXT_CALL(cuEventDestroy);
  if (const Result result = check_event(event); result != kSuccess) return result;
  marks.erase(static_cast<Mark*>(event));
  delete static_cast<Mark*>(event);
  return kSuccess;
}

STANDIN_DRIVER cuEventRecord(Event event, Stream stream) {
  STANDIN_CONTEXT_CALL(cuEventRecord);
  const Result result = check_event(event);
  return result == kSuccess ? check(stream, call.context) : result;
}

STANDIN_DRIVER cuEventQuery(Event event) {
  STANDIN_CONTEXT_CALL(cuEventQuery);
  return check_event(event);
}

STANDIN_DRIVER cuEventSynchronize(Event event) {
  STANDIN_CONTEXT_CALL(cuEventSynchronize);
  return check_event(event);
}

STANDIN_DRIVER cuStreamWaitEvent(Stream stream, Event event, unsigned flags) {
  STANDIN_CONTEXT_CALL(cuStreamWaitEvent);
  if (flags != 0) return complain("cuStreamWaitEvent with flags %u", flags);
  const Result result = check_event(event);
  return result == kSuccess ? check(stream, call.context) : result;
}

STANDIN_DRIVER cuMemsetD8Async(DevicePointer address, unsigned char value, std::size_t bytes,
                               Stream stream) {
  STANDIN_CONTEXT_CALL(cuMemsetD8Async);
  if (const Result result = check(stream, call.context); result != kSuccess) return result;
  std::vector<Piece> pieces;
  if (!resolve(address, bytes, call.device(), pieces)) return kInvalidValue;
  for (const Piece& piece : pieces) std::memset(piece.at, value, piece.bytes);
  return kSuccess;
}

STANDIN_DRIVER cuMemcpyAsync(DevicePointer to, DevicePointer from, std::size_t bytes, Stream stream) {
  STANDIN_CONTEXT_CALL(cuMemcpyAsync);
  if (const Result result = check(stream, call.context); result != kSuccess) return result;
  std::vector<Piece> source, target;
  if (!resolve(from, bytes, call.device(), source) || !resolve(to, bytes, call.device(), target))
    return kInvalidValue;
  std::size_t i = 0, j = 0;
  while (i < source.size()) {
    const std::size_t step = std::min(source[i].bytes, target[j].bytes);
    std::memmove(target[j].at, source[i].at, step);
    for (auto [piece, index] : {std::pair{&source[i], &i}, std::pair{&target[j], &j}}) {
      piece->at += step;
      piece->bytes -= step;
      if (piece->bytes == 0) ++*index;
    }
  }
  return kSuccess;
}
