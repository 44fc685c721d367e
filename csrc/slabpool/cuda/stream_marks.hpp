// Marks on streams: a mark completes when all work that was queued on its stream before it is done.
//
// A mark is an event behind the work of a stream. No thread waits for the GPU: collect() queries the oldest mark of each
// stream, which suffices because a stream does its work in order.
//
// Lock order: a line's `recording`, then `mutex_`. Both are leaves: no code of the pool is called with them.
//
// Invariants:
//   pending() = marks in all lines + marks in lost_ + marks that a running scan() has taken
//   Each mark is reported exactly once. mark.sequence != 0  <=>  the mark is in a line or in lost_
//   Sequences increase along a line.   mutex_ is not held over any call of the driver.
//   Events are not destroyed while this lives, but used again: another thread may be querying one.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <map>
#include <mutex>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/driver.hpp"

namespace slabpool::cuda {

// A stream as the caller names it. Streams 0, 1 and 2 are default streams: of `device`, or of the current context if that
// is -1.
struct StreamName {
  Stream stream = nullptr;
  int device = -1;
};

// One stream of one context. `thread` is set for the per-thread default stream only.
struct Place {
  Context context = nullptr;
  Stream stream = nullptr;
  std::uintptr_t thread = 0;

  auto operator<=>(const Place&) const = default;
};

// What an answer to cuEventQuery means.
enum class Progress { done, pending, lost };

class SLABPOOL_API StreamMarks {
 public:
  // Data of the caller, returned when the mark has completed.
  struct Payload {
    std::uint64_t words[3];
  };
  struct Completed {
    Payload payload;
    Context lost;  // null: the work is done. Else the context that has failed and does no more work
  };

  explicit StreamMarks(const Driver& driver) noexcept;
  ~StreamMarks();  // discards pending marks
  StreamMarks(const StreamMarks&) = delete;
  StreamMarks& operator=(const StreamMarks&) = delete;

  // The stream that a name means. On failure `call` names the driver's function that refused.
  Result find(const StreamName& name, Place& place, const char*& call) const noexcept;

  // Puts a mark behind the work that is queued on the stream. With `query` it asks the driver at once; `done` is then true
  // if that work is done already, and the mark is not reported later. After a failure nothing has changed.
  Result mark(const Place& place, const Payload& payload, bool query, bool& done,
              const char*& call) noexcept;

  // Calls f(Completed) for marks that have completed. Queries every stream with `all`, else a few in turn.
  template <typename F>
  void collect(bool all, F&& f) noexcept {
    Scan position;
    begin(position, all);
    Completed completed[kBatch];
    while (const std::size_t count = scan(position, completed)) {
      for (std::size_t i = 0; i < count; ++i) f(completed[i]);
    }
  }
  // Returns once the work behind every mark that is pending now is done. Reports none.
  void wait() noexcept;

  // Marks that were not reported yet. Sequentially consistent: the caller orders it against its count of waiters.
  std::uint64_t pending() const noexcept { return pending_.load(std::memory_order_seq_cst); }

  static Progress progress(Result of_query) noexcept;

 private:
  static constexpr std::size_t kBatch = 32;         // marks reported at once
  static constexpr std::size_t kLinesPerScan = 16;  // streams queried in a scan that is not of all

  // One event, used for many marks in turn, always in its context.
  struct Mark {
    Event event = nullptr;
    Mark* next = nullptr;
    Mark* all_next = nullptr;
    Context context = nullptr;
    std::uint64_t sequence = 0;  // a new number each time it is put in a line
    Payload payload{};
  };
  struct Chain {
    Mark* first = nullptr;
    Mark* last = nullptr;
    void append(Mark* mark) noexcept;
    Mark* take() noexcept;
  };
  // Marks of one stream, oldest first. `recording` makes their order the same as that of the events on the stream.
  struct Line {
    std::mutex recording;
    Chain marks;
    std::uint32_t recorders = 0;  // threads that are adding a mark
  };
  struct Scan {
    Place at;
    std::size_t left = 0;  // lines
  };

  void begin(Scan& position, bool all) noexcept;
  std::size_t scan(Scan& position, Completed (&completed)[kBatch]) noexcept;
  Progress query(const Mark& mark, Event event) noexcept;
  // These four with mutex_ held.
  void move_to_lost(Context context) noexcept;
  Mark* take_spare(Context context);  // throws std::bad_alloc
  void put_spare(Mark* mark) noexcept;
  const char* verify_locked() const noexcept;

  const Driver& driver_;
  const std::uint32_t epoch_;
  mutable std::mutex mutex_;
  std::map<Place, Line> lines_;  // of streams that have marks or recorders
  std::map<Context, Mark*> spares_;
  Chain lost_;  // marks of failed contexts that were not reported yet
  Mark* all_ = nullptr;
  Place next_scan_;  // where the next scan of a few lines begins
  std::uint64_t sequence_ = 0;
  std::atomic<std::uint64_t> pending_{0};
};

}  // namespace slabpool::cuda
