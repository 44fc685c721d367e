#include "slabpool/cuda/stream_marks.hpp"

#include <pthread.h>

#include <algorithm>
#include <new>

#include "slabpool/base/fork.hpp"

namespace slabpool::cuda {

void StreamMarks::Chain::append(Mark* mark) noexcept {
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
  return mark;
}

StreamMarks::StreamMarks(const Driver& driver) noexcept : driver_(driver), epoch_(fork_epoch()) {}

StreamMarks::~StreamMarks() {
  // In a fork's child the events are the parent's. Once the driver itself is gone (at the process' end) it refuses
  // and nothing is to be done about it.
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
  // A context that is not there any more does no work either. All other answers say nothing of the work: a capture
  // elsewhere, for one, makes the driver refuse.
  if (Driver::is_sticky(of_query) || of_query == kInvalidContext || of_query == kInvalidHandle)
    return Progress::lost;
  return Progress::pending;
}

Result StreamMarks::find(const StreamName& name, Place& place, const char*& call) const noexcept {
  place = {};
  // The table's functions are those without a per-thread default stream: 0 is the legacy one.
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
      // A thread without a context asks from another one: the driver wants some. If that one's device is lost, which
      // says nothing of the stream's, from the next.
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
  // A number that another thread may have once this one is gone: its marks then stand behind the older ones.
  if (place.stream == kPerThreadStream) place.thread = static_cast<std::uintptr_t>(pthread_self());
  return result;
}

StreamMarks::Mark* StreamMarks::spare(Context context) {
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

void StreamMarks::put_back(Mark* mark) noexcept {
  const auto found = spares_.find(mark->context);  // made by spare()
  mark->next = found->second;
  found->second = mark;
}

Result StreamMarks::mark(const Place& place, const Payload& payload, bool ask_now, bool& done,
                         const char*& call) noexcept {
  done = false;
  const CurrentContext current(driver_, place.context);
  call = "cuCtxPushCurrent";
  if (!current.ok()) return kInvalidContext;
  const RelaxedCapture relaxed(driver_);
  // An event on a stream that is being captured becomes a part of the graph, and never happens.
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
    mark = spare(place.context);
    try {
      line = &lines_[place];
    } catch (...) {
      put_back(mark);
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
    // Held over calls of the driver: recording may block where the stream's queue is full, and then only for
    // those who record on the same stream.
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
    if (result == kSuccess && ask_now) {
      call = "cuEventQuery";
      const Result answer = driver_.cuEventQuery(mark->event);
      now = progress(answer);
      if (now == Progress::lost) result = answer;
    }
    const std::lock_guard lock(mutex_);
    if (result == kSuccess && now == Progress::pending) {
      mark->payload = payload;
      mark->sequence = ++sequence_;
      line->marks.append(mark);
      pending_.fetch_add(1, std::memory_order_seq_cst);
    } else {
      put_back(mark);
    }
  }
  {
    const std::lock_guard lock(mutex_);
    --line->recorders;
    if (line->recorders == 0 && line->marks.first == nullptr) lines_.erase(place);
  }
  done = result == kSuccess && now == Progress::done;
  return result;
}

void StreamMarks::begin(Tour& tour, bool all) noexcept {
  const std::lock_guard lock(mutex_);
  tour.at = all ? Place{} : rotor_;
  tour.left = all ? lines_.size() : std::min(lines_.size(), kFewLines);
}

Progress StreamMarks::ask(const Mark& mark, Event event) noexcept {
  const CurrentContext current(driver_, mark.context);
  // Without its context the driver refuses to answer, and that says why.
  return progress(driver_.cuEventQuery(event));
}

void StreamMarks::lose(Context context) noexcept {
  for (auto& [place, line] : lines_) {
    if (place.context != context) continue;
    while (Mark* mark = line.marks.take()) lost_.append(mark);
  }
}

// The next marks that are over; 0: there are none. The driver is asked without the lock, so a mark may be told by
// another thread meanwhile and its event used again: whoever comes back with an answer looks whether it is still
// the first of its line, by its sequence, and only then is the answer about it.
std::size_t StreamMarks::next(Tour& tour, Told (&told)[kRoom]) noexcept {
  std::size_t count = 0;
  std::unique_lock lock(mutex_);
  const auto tell_lost = [&] {
    while (count < kRoom) {
      Mark* mark = lost_.take();
      if (mark == nullptr) break;
      told[count++] = {mark->payload, mark->context};
      put_back(mark);
    }
  };
  tell_lost();
  while (count < kRoom && tour.left != 0 && !lines_.empty()) {
    auto at = lines_.lower_bound(tour.at);
    if (at == lines_.end()) at = lines_.begin();
    tour.at = at->first;
    const Mark* first = at->second.marks.first;
    Progress now = Progress::pending;
    if (first != nullptr) {
      const std::uint64_t sequence = first->sequence;
      const Event event = first->event;
      lock.unlock();
      {
        const RelaxedCapture relaxed(driver_);
        now = ask(*first, event);  // of a mark only what never changes is read without the lock
      }
      lock.lock();
      at = lines_.find(tour.at);
      const Mark* still = at != lines_.end() ? at->second.marks.first : nullptr;
      if (still == nullptr || still->sequence != sequence) {
        // Another thread was faster, and looks on itself.
        now = Progress::pending;
      } else if (now == Progress::done) {
        Mark* mark = at->second.marks.take();
        told[count++] = {mark->payload, nullptr};
        put_back(mark);
      } else if (now == Progress::lost) {
        lose(tour.at.context);
        tell_lost();
      }
    }
    if (now == Progress::done) continue;  // the one behind it may be, too
    --tour.left;
    at = lines_.upper_bound(tour.at);
    rotor_ = tour.at = at != lines_.end() ? at->first : Place{};
  }
  // Lines that are empty now.
  std::erase_if(lines_, [](const auto& item) {
    return item.second.marks.first == nullptr && item.second.recorders == 0;
  });
  pending_.fetch_sub(count, std::memory_order_seq_cst);
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
    // It may have been told and used again meanwhile: that is waited for too long, and never too short. A failure
    // is a device that is lost, which does no work any more.
    const CurrentContext current(driver_, at.context);
    (void)driver_.cuEventSynchronize(event);
  }
}

}  // namespace slabpool::cuda
