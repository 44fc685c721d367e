#include "slabpool/cuda/stream_marks.hpp"

#include <pthread.h>

#include <algorithm>
#include <new>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/fork.hpp"

namespace slabpool::cuda {

void StreamMarks::Chain::append(Mark* mark) noexcept {
  SLABPOOL_ASSERT(mark->sequence != 0, "a mark in a line is pending");
  mark->next = nullptr;
  if (last != nullptr) {
    last->next = mark;
  } else {
    first = mark;
  }
  last = mark;
}

StreamMarks::Mark* StreamMarks::Chain::take() noexcept {
  Mark* mark = first;
  if (mark == nullptr) return nullptr;
  first = mark->next;
  if (first == nullptr) last = nullptr;
  mark->next = nullptr;
  SLABPOOL_ASSERT(mark->sequence != 0 && (first == nullptr) == (last == nullptr),
                  "a mark in a line is pending", mark->sequence);
  return mark;
}

StreamMarks::StreamMarks(const Driver& driver) noexcept : driver_(driver), epoch_(fork_epoch()) {}

StreamMarks::~StreamMarks() {
  // In a fork's child the events are the parent's. At the end of the process the driver may have shut down; it then
  // refuses, which is ignored.
  const bool here = epoch_ == fork_epoch();
  while (all_ != nullptr) {
    Mark* mark = all_;
    all_ = mark->all_next;
    if (here && mark->event != nullptr) {
      const CurrentContext current(driver_, mark->context);
      (void)driver_.cuEventDestroy(mark->event);
    }
    delete mark;
  }
}

Progress StreamMarks::progress(Result of_query) noexcept {
  if (of_query == kSuccess) return Progress::done;
  // A context that does not exist any more does no work either. Other errors say nothing about the work: for example,
  // the driver refuses because of a capture in another thread.
  if (Driver::is_sticky(of_query) || of_query == kInvalidContext || of_query == kInvalidHandle)
    return Progress::lost;
  return Progress::pending;
}

Result StreamMarks::find(const StreamName& name, Place& place, const char*& call) const noexcept {
  place = {};
  // slabpool uses the functions without a per-thread default stream, for which 0 is the legacy stream.
  place.stream = name.stream == nullptr ? kLegacyStream : name.stream;
  const bool own = place.stream == kLegacyStream || place.stream == kPerThreadStream;
  Result result = kSuccess;
  if (own && name.device >= 0) {
    call = "cuDevicePrimaryCtxRetain";
    place.context = driver_.context(name.device, result);
  } else {
    call = "cuCtxGetCurrent";
    result = driver_.cuCtxGetCurrent(&place.context);
  }
  if (result == kSuccess && !own) {
    Context now = place.context;
    place.context = nullptr;
    call = "cuStreamGetCtx";
    if (now != nullptr) {
      result = driver_.cuStreamGetCtx(place.stream, &place.context);
    } else {
      // The driver needs a current context, so a thread without one uses a device's primary context; if that device is
      // lost, which says nothing about the stream's, the next one's.
      const int first = name.device >= 0 ? name.device : 0;
      for (int step = 0; step < driver_.devices(); ++step) {
        now = driver_.context((first + step) % driver_.devices(), result);
        if (now != nullptr) {
          const CurrentContext current(driver_, now);
          result = current.ok() ? driver_.cuStreamGetCtx(place.stream, &place.context) : kInvalidContext;
        }
        if (!Driver::is_sticky(result)) break;
      }
    }
  }
  if (result == kSuccess && place.context == nullptr) result = kInvalidContext;
  // A later thread may have the same number: its marks are then queued behind the older ones.
  if (place.stream == kPerThreadStream) place.thread = static_cast<std::uintptr_t>(pthread_self());
  return result;
}

StreamMarks::Mark* StreamMarks::take_spare(Context context) {
  Mark*& first = spares_[context];
  if (first != nullptr) {
    Mark* mark = first;
    first = mark->next;
    mark->next = nullptr;
    return mark;
  }
  Mark* mark = new Mark;
  mark->context = context;
  mark->all_next = all_;
  all_ = mark;
  return mark;
}

void StreamMarks::put_spare(Mark* mark) noexcept {
  const auto found = spares_.find(mark->context);
  SLABPOOL_ASSERT(found != spares_.end(), "take_spare() has made the context's list");
  mark->sequence = 0;
  mark->next = found->second;
  found->second = mark;
}

Result StreamMarks::mark(const Place& place, const Payload& payload, bool query_now, bool& done,
                         const char*& call) noexcept {
  done = false;
  const CurrentContext current(driver_, place.context);
  call = "cuCtxPushCurrent";
  if (!current.ok()) return kInvalidContext;
  const RelaxedCapture relaxed(driver_);
  // An event on a stream that is being captured becomes a part of the graph, and would never complete.
  if (driver_.cuStreamIsCapturing != nullptr) {
    int capturing = kCaptureNone;
    call = "cuStreamIsCapturing";
    const Result result = driver_.cuStreamIsCapturing(place.stream, &capturing);
    if (result != kSuccess) return result;
    if (capturing != kCaptureNone) return kCaptureUnsupported;
  }
  Line* line = nullptr;
  Mark* mark = nullptr;
  try {
    const std::lock_guard lock(mutex_);
    mark = take_spare(place.context);
    try {
      line = &lines_[place];
    } catch (...) {
      put_spare(mark);
      throw;
    }
    ++line->recorders;
  } catch (const std::bad_alloc&) {
    call = "malloc";
    return kOutOfMemory;
  }
  Result result = kSuccess;
  Progress now = Progress::pending;
  {
    // Held over calls of the driver. Recording blocks while the stream's queue is full, and then blocks only threads
    // that record on the same stream.
    const std::lock_guard order(line->recording);
    if (mark->event == nullptr) {
      call = "cuEventCreate";
      result = driver_.cuEventCreate(&mark->event, kEventDisableTiming);
      if (result != kSuccess) mark->event = nullptr;
    }
    if (result == kSuccess) {
      call = "cuEventRecord";
      result = driver_.cuEventRecord(mark->event, place.stream);
    }
    if (result == kSuccess && query_now) {
      call = "cuEventQuery";
      const Result answer = driver_.cuEventQuery(mark->event);
      now = progress(answer);
      if (now == Progress::lost) result = answer;
    }
    const std::lock_guard lock(mutex_);
    if (result == kSuccess && now == Progress::pending) {
      mark->payload = payload;
      SLABPOOL_ASSERT(line->marks.last == nullptr || line->marks.last->sequence <= sequence_,
                      "sequences increase along a line", sequence_);
      mark->sequence = ++sequence_;
      line->marks.append(mark);
      pending_.fetch_add(1, std::memory_order_seq_cst);
    } else {
      put_spare(mark);
    }
  }
  {
    const std::lock_guard lock(mutex_);
    SLABPOOL_ASSERT(line->recorders != 0, "a line counts its recorders");
    SLABPOOL_VERIFY(false, verify_locked());
    --line->recorders;
    if (line->recorders == 0 && line->marks.first == nullptr) lines_.erase(place);
  }
  done = result == kSuccess && now == Progress::done;
  return result;
}

void StreamMarks::begin(Scan& position, bool all) noexcept {
  const std::lock_guard lock(mutex_);
  position.at = all ? Place{} : next_scan_;
  position.left = all ? lines_.size() : std::min(lines_.size(), kLinesPerScan);
}

const char* StreamMarks::verify_locked() const noexcept {
  std::uint64_t count = 0;
  for (const auto& [place, line] : lines_) {
    std::uint64_t last = 0;
    for (const Mark* mark = line.marks.first; mark != nullptr; mark = mark->next, ++count) {
      if (mark->sequence <= last) return "sequences do not increase along a line";
      if (mark->context != place.context) return "a mark is in the line of another context";
      last = mark->sequence;
    }
  }
  for (const Mark* mark = lost_.first; mark != nullptr; mark = mark->next) ++count;
  // A running scan() of another thread may have taken some marks and not subtracted them yet.
  return count <= pending_.load(std::memory_order_relaxed) ? nullptr : "pending marks do not add up";
}

Progress StreamMarks::query(const Mark& mark, Event event) noexcept {
  const CurrentContext current(driver_, mark.context);
  // If making the context current failed, the query fails too, and its answer tells why.
  return progress(driver_.cuEventQuery(event));
}

void StreamMarks::move_to_lost(Context context) noexcept {
  for (auto& [place, line] : lines_) {
    if (place.context != context) continue;
    while (Mark* mark = line.marks.take()) lost_.append(mark);
  }
}

// Returns the next completed marks; 0 at the end of the scan. The driver is queried without the lock, so another thread
// may meanwhile report the mark and use its event again. The answer counts only if the mark is still the first of its
// line with the same sequence.
std::size_t StreamMarks::scan(Scan& position, Completed (&completed)[kBatch]) noexcept {
  std::size_t count = 0;
  std::unique_lock lock(mutex_);
  const auto take_lost = [&] {
    while (count < kBatch) {
      Mark* mark = lost_.take();
      if (mark == nullptr) break;
      completed[count++] = {mark->payload, mark->context};
      put_spare(mark);
    }
  };
  take_lost();
  while (count < kBatch && position.left != 0 && !lines_.empty()) {
    auto at = lines_.lower_bound(position.at);
    if (at == lines_.end()) at = lines_.begin();
    position.at = at->first;
    const Mark* first = at->second.marks.first;
    Progress now = Progress::pending;
    if (first != nullptr) {
      const std::uint64_t sequence = first->sequence;
      const Event event = first->event;
      lock.unlock();
      {
        const RelaxedCapture relaxed(driver_);
        now = query(*first, event);  // reads only the mark's context, which never changes
      }
      lock.lock();
      at = lines_.find(position.at);
      const Mark* still = at != lines_.end() ? at->second.marks.first : nullptr;
      if (still == nullptr || still->sequence != sequence) {
        // Another thread has reported it, and goes on with this line.
        now = Progress::pending;
      } else if (now == Progress::done) {
        Mark* mark = at->second.marks.take();
        completed[count++] = {mark->payload, nullptr};
        put_spare(mark);
      } else if (now == Progress::lost) {
        move_to_lost(position.at.context);
        take_lost();
      }
    }
    if (now == Progress::done) continue;  // the mark behind it may have completed too
    --position.left;
    at = lines_.upper_bound(position.at);
    next_scan_ = position.at = at != lines_.end() ? at->first : Place{};
  }
  std::erase_if(lines_, [](const auto& item) {
    return item.second.marks.first == nullptr && item.second.recorders == 0;
  });
  [[maybe_unused]] const std::uint64_t before = pending_.fetch_sub(count, std::memory_order_seq_cst);
  SLABPOOL_ASSERT(before >= count, "a mark is reported once", before, count);
  SLABPOOL_VERIFY(false, verify_locked());
  return count;
}

void StreamMarks::wait() noexcept {
  const RelaxedCapture relaxed(driver_);
  Place at{};
  for (;;) {
    Event event = nullptr;
    {
      const std::lock_guard lock(mutex_);
      auto line = lines_.upper_bound(at);
      while (line != lines_.end() && line->second.marks.last == nullptr) ++line;
      if (line == lines_.end()) return;
      at = line->first;
      event = line->second.marks.last->event;
    }
    // The event may meanwhile be used for a later mark. The wait is then longer than needed, but not shorter. A failure
    // means that the device is lost and does no more work.
    const CurrentContext current(driver_, at.context);
    (void)driver_.cuEventSynchronize(event);
  }
}

}  // namespace slabpool::cuda
