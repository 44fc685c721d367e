// Marks on streams: "tell once everything that is queued here until now is done".
//
// A mark is an event behind the work of a stream. Nobody waits for the GPU and no thread is kept: whoever looks
// asks the oldest mark of each stream, because a stream does its work in order. What must stay true: each mark
// is told exactly once; `mutex_` is held over no call of the driver; events are never destroyed while others
// may look, only used again.
// Order of locks: a line's `recording`, then `mutex_`. Both are leaves: nothing of the pool is called with them.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <map>
#include <mutex>

#include "slabpool/base/export.hpp"
#include "slabpool/cuda/driver.hpp"

namespace slabpool::cuda {

// A stream as the caller names it. `device` says whose default stream 0, 1 and 2 are; -1: the current context's.
struct StreamName {
  Stream stream = nullptr;
  int device = -1;
};

// One stream of one context; of the per-thread default stream also whose.
struct Place {
  Context context = nullptr;
  Stream stream = nullptr;
  std::uintptr_t thread = 0;

  auto operator<=>(const Place&) const = default;
};

// What of a driver's answer to cuEventQuery follows.
enum class Progress { done, pending, lost };

class SLABPOOL_API StreamMarks {
 public:
  // What the owner of a mark wants to be told.
  struct Payload {
    std::uint64_t words[3];
  };
  struct Told {
    Payload payload;
    Context lost;  // null: the work is done. Else the context that will never do any work again
  };

  explicit StreamMarks(const Driver& driver) noexcept;
  ~StreamMarks();  // untold marks are forgotten
  StreamMarks(const StreamMarks&) = delete;
  StreamMarks& operator=(const StreamMarks&) = delete;

  // Which stream a name means. On failure `call` is the driver's function that refused.
  Result find(const StreamName& name, Place& place, const char*& call) const noexcept;

  // Puts a mark behind what is queued on the stream. With `ask` the driver is asked at once whether that is done
  // already; `done` then says so, and nobody is told later. After a failure nothing has changed.
  Result mark(const Place& place, const Payload& payload, bool ask, bool& done,
              const char*& call) noexcept;

  // Calls f(Told) for marks that are over. `all`: every stream is looked at; else a few, in turn.
  template <typename F>
  void collect(bool all, F&& f) noexcept {
    Tour tour;
    begin(tour, all);
    Told told[kRoom];
    while (const std::size_t count = next(tour, told)) {
      for (std::size_t i = 0; i < count; ++i) f(told[i]);
    }
  }
  // Returns once the work behind every mark that is pending now is over. Tells nobody.
  void wait() noexcept;

  // Marks that nobody was told of. Sequentially consistent: see Pool::collect_from_streams().
  std::uint64_t pending() const noexcept { return pending_.load(std::memory_order_seq_cst); }

  static Progress progress(Result of_query) noexcept;

 private:
  static constexpr std::size_t kRoom = 32;      // marks told at once
  static constexpr std::size_t kFewLines = 16;  // streams looked at in turn

  // One event, used again and again in its context.
  struct Mark {
    Event event = nullptr;
    Mark* next = nullptr;
    Mark* all_next = nullptr;
    Context context = nullptr;
    std::uint64_t sequence = 0;  // new each time it is put in a line
    Payload payload{};
  };
  struct Chain {
    Mark* first = nullptr;
    Mark* last = nullptr;
    void append(Mark* mark) noexcept;
    Mark* take() noexcept;
  };
  // Marks of one stream, oldest first. `recording` makes their order that of the events on the stream.
  struct Line {
    std::mutex recording;
    Chain marks;
    std::uint32_t recorders = 0;  // threads that are about to add one
  };
  struct Tour {
    Place at;
    std::size_t left = 0;
  };

  void begin(Tour& tour, bool all) noexcept;
  std::size_t next(Tour& tour, Told (&told)[kRoom]) noexcept;
  Progress ask(const Mark& mark, Event event) noexcept;
  void lose(Context context) noexcept;  // under mutex_
  Mark* spare(Context context);         // under mutex_; throws std::bad_alloc
  void put_back(Mark* mark) noexcept;   // under mutex_

  const Driver& driver_;
  const std::uint32_t epoch_;
  mutable std::mutex mutex_;
  std::map<Place, Line> lines_;  // only of streams with marks, or with a thread that adds one
  std::map<Context, Mark*> spares_;
  Chain lost_;
  Mark* all_ = nullptr;
  Place rotor_;
  std::uint64_t sequence_ = 0;
  std::atomic<std::uint64_t> pending_{0};
};

}  // namespace slabpool::cuda
