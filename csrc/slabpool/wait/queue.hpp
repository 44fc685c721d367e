// The queue of callers that wait: for memory, addresses, a request slot or a quota, or for the end of a request.
//
// A waiter registers (enter), tries, and sleeps until it is woken or its deadline; then it tries again. Each waiter is
// blocked on one resource: the one that its last attempt failed on. The waiters of a resource are ordered by priority, then
// by arrival. Only the first may have the resource: passes() refuses every other caller of the same or a lower priority,
// whether it waits or not. So what comes back is set aside for the first until it has enough. When something comes back,
// wake() wakes the first waiter of the resource alone, and memory only once enough of it is free. When the first leaves, the
// next one is looked at. A waiter for the end of a request is woken by that end alone, and stands before no other waiter.
//
// Requests that hold memory and ask for more could stand behind a waiter that needs what they hold. When the requests that
// wait hold so much that the first waiter cannot be served before one of them lets go (Room::circle), those that hold
// something may pass it. The pool is asked again when the waiters change, and when memory comes back.
// Likewise a request may pass the first waiter of a quota that needs what this request holds (Room::holds_needed), or, if
// no such waiter can be served, what this one and the others that wait hold together (Room::quota_circle). When the first
// needs more than is free, wake() wakes one that may pass it instead. Of several quotas, one around the other, a waiter is
// blocked on one, and passes() is asked for each.
//
// A waiter is a record of the caller's: on the stack of a thread, or in an object of an event loop. Waiting and waking
// allocate nothing. A thread sleeps on the condition variable of its record. In a pool with a doorbell one sleeping thread
// listens to the bell for all of them. The waiters of an event loop share a WakeTarget.
//
// Invariants:
//   while count_ is 0, notify() costs one load;
//   count_ == number of registered waiters, with kReturns while returns are watched (watch_returns);
//   a waiter is in exactly one list: that of the resource which it is blocked on;
//   a waiter enters a list before the attempt that decides whether it sleeps (block() asks for one more attempt whenever
//   the list changes). So either the attempt finds what came back before, or the thread that returned it sees the waiter.
//   (Sequentially consistent, both.)
// The mutex is a leaf in the order of locks; Room is asked without it, except for polls() and waits().
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "slabpool/base/clock.hpp"
#include "slabpool/base/export.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/base/source_location.hpp"
#include "slabpool/wait/doorbell.hpp"

namespace slabpool {

enum class Resource : std::uint8_t { memory, addresses, slots, quota, kept, end };
inline constexpr unsigned kResources = 6;

// A request, as a waiter names it. Generation 0: none.
struct Subject {
  std::uint32_t slot = 0;
  std::uint64_t generation = 0;
  bool operator==(const Subject&) const = default;
};

// What an attempt needs, or failed on. `of`: the request that has the quota, or whose end is waited for.
struct Wanted {
  Resource resource = Resource::memory;
  std::uint64_t amount = 0;  // bytes or slots
  Subject of{};
};

class Waiter;

// An event loop: the descriptor (an eventfd or a pipe) is written to when a waiter of the loop is woken and no other one was
// still to be taken. WaitQueue::take() returns the woken ones. The owner closes the descriptor after all have left.
struct WakeTarget {
  int fd = -1;
  Waiter* first = nullptr;
  Waiter* last = nullptr;
};

class WaitQueue;

class SLABPOOL_API Waiter {
 public:
  Waiter() noexcept = default;
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  ~Waiter();

  // Set by the caller before the first attempt; they live until the waiter has left.
  std::int32_t priority = 0;
  std::uint64_t nbytes = 0;  // as the caller asked, for reports
  std::string_view id;       // of a request that is being opened; otherwise empty
  Subject request;           // in which the caller allocates. It waits no longer once that is closed
  Subject session;           // the same, for a request that is being opened
  SourceLocation where;
  WakeTarget* target = nullptr;  // null: a thread
  void* owner = nullptr;         // for the user of `target`

  bool entered() const noexcept { return queue_ != nullptr; }
  // Why the last attempt failed: written by block() and passes(). Read by the caller's thread alone.
  const Wanted& blocked_on() const noexcept { return blocked_on_; }
  // What the waiter depends on was closed.
  bool cancelled() const noexcept { return cancelled_.load(std::memory_order_acquire); }
  std::int64_t since_ns() const noexcept { return since_ns_; }
  // Whether its request has memory or a reserve, so that it may pass in a circle. Written before each attempt, and by
  // Room::circle(), which looks at all waiters. Relaxed: an answer that is old costs one more attempt.
  mutable std::atomic<bool> holds{false};

 private:
  friend class WaitQueue;
  struct Link {
    Waiter* prev = nullptr;
    Waiter* next = nullptr;
  };

  WaitQueue* queue_ = nullptr;
  // Guarded by the queue's mutex.
  Wanted blocked_on_;
  std::uint64_t arrival_ =
      std::numeric_limits<std::uint64_t>::max();  // a caller that does not wait is behind all
  std::int64_t since_ns_ = 0;
  std::int64_t pause_ns_ = 0;  // until the next poll
  Link in_list_;
  Link in_all_;
  Link in_woken_;
  bool is_woken_ = false;   // in its target's list
  bool signalled_ = false;  // a thread: to try again
  bool again_ = false;      // to try again before it sleeps
  bool asleep_ = false;     // a thread, on its condition variable
  std::atomic<bool> cancelled_{false};
  std::condition_variable woken_;
};

// For reports. `request`: as Waiter::request, whose id the table knows.
struct WaiterInfo {
  std::string id;
  Subject request;    // in which the caller allocates
  bool kept = false;  // the request is what a session keeps
  Subject above;      // of a request that is being opened: its parent, session or group
  std::string group;  // that the request is under, or is to be
  Subject of;         // the request or group whose quota it waits for
  std::string of_id;  // of that; "" if it is over
  bool of_group = false;
  std::uint64_t nbytes = 0;
  std::int32_t priority = 0;
  std::int64_t waited_ns = 0;
  Resource resource = Resource::memory;
  SourceLocation where;
};

// What stands before a caller: how many, and the first of them.
struct Ahead {
  std::uint32_t count = 0;
  std::vector<WaiterInfo> first;
};

// What the queue asks the pool.
class Room {
 public:
  virtual ~Room() = default;
  // At least as many bytes as an attempt could have now. Sequentially consistent with respect to returns of the caller.
  virtual std::uint64_t free_bytes() noexcept = 0;
  virtual std::uint64_t free_slots() noexcept = 0;
  // What the quota of a request has left; all if the request is over, so that its waiters learn of that.
  virtual std::uint64_t quota_left(Subject of) noexcept = 0;
  // Whether the first waiter of a quota, which needs so much, cannot be served while `request` holds what it holds.
  virtual bool holds_needed(Subject of, Subject request, std::uint64_t needs) noexcept = 0;
  // yes: `request` and the others that wait for a quota hold so much of it that the first waiter, which needs so much, cannot
  // be served before one lets go, and none that holds enough alone can be served. The answer for a request that holds
  // nothing is `nothing`; for all others it is the same. Looks at the waiters by each().
  enum class Circle : std::uint8_t { nothing, no, yes };
  virtual Circle quota_circle(Subject of, Subject request, std::uint64_t needs) noexcept = 0;
  // Whether something may come back without a wake-up. The first waiters then try again by the clock. Takes no lock.
  virtual bool polls() noexcept = 0;
  // Whether the requests that wait for memory hold so much that the first waiter cannot be served before one lets go. Looks
  // at the waiters by each(), and writes Waiter::holds.
  virtual bool circle() noexcept = 0;
  // Whether something may be made free that no thread returns, by a waiter that is the first. Takes no lock.
  virtual bool gives_way() noexcept = 0;
  // Collects what peers have acknowledged: called when the bell rang.
  virtual void collect() noexcept = 0;
  // Whether any waiter is blocked on memory, and on a slot. Takes no lock.
  virtual void waits(bool memory, bool slots) noexcept = 0;
};

// What may have come back. `quota`: that request's; generation 0: none.
struct News {
  bool memory = false;
  bool any_memory = false;  // some may be made free now, however little is free
  bool addresses = false;
  bool slots = false;
  bool kept = false;
  Subject quota{};
  Subject ended{};  // the requests of this slot, up to this generation
};

class WaitQueue {
 public:
  // `doorbell` (null: no other process has news) and `room` outlive this.
  WaitQueue(Doorbell* doorbell, Room& room) noexcept : doorbell_(doorbell), room_(room) {}
  WaitQueue(const WaitQueue&) = delete;
  WaitQueue& operator=(const WaitQueue&) = delete;
  ~WaitQueue();

  // Whether to tell of what comes back: there is a waiter, or returns are watched. Plain loads on x86-64; see the invariants.
  bool any() const noexcept { return count_.load(std::memory_order_seq_cst) != 0; }
  bool has_waiters() const noexcept { return (count_.load(std::memory_order_seq_cst) & ~kReturns) != 0; }
  // One caller, at one moment, sets it. Relaxed: CacheSet::bound() orders it with returns.
  void watch_returns(bool on) noexcept {
    if (on)
      count_.fetch_or(kReturns, std::memory_order_relaxed);
    else
      count_.fetch_and(~kReturns, std::memory_order_relaxed);
  }

  // ---- waiting, by the waiter's thread or event loop

  // Registers a waiter after an attempt that failed on blocked_on(), or with what it waits for. It must try again then.
  void enter(Waiter& waiter) noexcept;
  void enter(Waiter& waiter, const Wanted& wanted) noexcept;
  // Takes the waiter off, and looks at the next. Repeating it does nothing; nor does a call in a fork's child, whose
  // parent's the waiter is.
  void leave(Waiter& waiter) noexcept;
  // Whether nothing stands between the caller and a resource: no waiter of it that is before the caller. Else the caller is
  // blocked on that resource. The waiter may be registered or not.
  bool passes(Waiter& waiter, const Wanted& wanted) noexcept;
  // The same without a change of where it is blocked. Null: a caller that has no record.
  bool would_pass(const Waiter* waiter, const Wanted& wanted, std::int32_t priority) noexcept;
  // As passes() for a caller that has no record: behind all others of its priority.
  bool passes(const Wanted& wanted, std::int32_t priority = 0) noexcept;
  // What the first waiter of a resource needs; 0: there is none.
  std::uint64_t first_amount(const Wanted& wanted) noexcept;
  // An attempt failed on this resource.
  void block(Waiter& waiter, const Wanted& wanted) noexcept;
  // A thread sleeps until it is to try again (true), or until `until_ns` (monotonic).
  bool wait(Waiter& waiter, std::int64_t until_ns) noexcept;
  // Whether the waiter is the first of the resource that it is blocked on.
  bool is_first(const Waiter& waiter) noexcept;

  // An event loop: the next woken waiter, which is to try again; null if there is none.
  Waiter* take(WakeTarget& target) noexcept;
  // Whether a waiter of a loop is to try again before it sleeps.
  bool take_again(Waiter& waiter) noexcept;

  // ---- waking, by any thread, when any() is true: nothing happens without a waiter. Holds none of the locks that Room
  // takes.

  [[gnu::noinline]] void wake(const News& news) noexcept;
  void wake_all() noexcept;
  void wake_all_quotas() noexcept;
  // A request has drawn on a quota, by this waiter or none: the first may need now what the request holds, and another
  // waiter may have the rest.
  void has_charged(Subject of, const Waiter* by) noexcept;
  // The first waiters of each resource, and all for an end, try again by the clock from now on.
  void start_polling() noexcept;
  // Cancels and wakes every waiter for which dead(subject) is true of what it depends on. `dead` takes no lock.
  template <typename Dead>
  void cancel_if(Dead&& dead) noexcept {
    const std::lock_guard lock(mutex_);
    for (Waiter* w = all_.first; w != nullptr; w = w->in_all_.next) {
      const auto gone = [&](const Subject& of) { return of.generation != 0 && dead(of); };
      if (gone(w->request) || gone(w->session)) {
        w->cancelled_.store(true, std::memory_order_release);
        signal(*w);
      }
    }
  }

  // ---- looking

  // Calls f(waiter) under the mutex for each waiter that is not for an end, by arrival; f takes no lock and may throw.
  template <typename F>
  void each(F&& f) const {
    const std::lock_guard lock(mutex_);
    for (const Waiter* w = all_.first; w != nullptr; w = w->in_all_.next)
      if (w->blocked_on_.resource != Resource::end) f(*w);
  }
  // The number of waiters that stand before this one where it is blocked. Calls f(waiter) for the first `most`.
  template <typename F>
  std::uint32_t ahead(const Waiter& waiter, std::uint32_t most, F&& f) const {
    const std::lock_guard lock(mutex_);
    std::uint32_t count = 0;
    for (const Waiter* w = list_of(waiter.blocked_on_).first; w != nullptr; w = w->in_list_.next) {
      if (!before(*w, waiter.priority, waiter.arrival_)) break;
      if (!same_place(w->blocked_on_, waiter.blocked_on_)) continue;
      if (count++ < most) f(*w);
    }
    return count;
  }
  static WaiterInfo info_of(const Waiter& waiter, std::int64_t now_ns);
  std::uint32_t waiting() const noexcept { return waiting_.load(std::memory_order_relaxed); }
  // Number of wake-ups of waiters; for tests.
  std::uint64_t wakeups() const noexcept { return wakeups_.load(std::memory_order_relaxed); }
  // Checks the invariants; null, or the one that is broken.
  const char* verify() const noexcept;

 private:
  using LinkOf = Waiter::Link Waiter::*;
  struct List {
    Waiter* first = nullptr;
    Waiter* last = nullptr;
  };
  static constexpr unsigned kBuckets = 64;
  static constexpr std::uint32_t kReturns = std::uint32_t{1} << 31;
  static constexpr std::int64_t kFirstPause = 20'000;
  static constexpr std::int64_t kLongestPause = 1'000'000;

  static bool by_subject(Resource resource) noexcept {
    return resource == Resource::quota || resource == Resource::end;
  }
  static unsigned place_of(const Wanted& wanted) noexcept;
  List& list_of(const Wanted& wanted) noexcept { return lists_[place_of(wanted)]; }
  const List& list_of(const Wanted& wanted) const noexcept { return lists_[place_of(wanted)]; }
  static bool same_place(const Wanted& a, const Wanted& b) noexcept {
    return a.resource == b.resource && (!by_subject(a.resource) || a.of == b.of);
  }
  static bool before(const Waiter& waiter, std::int32_t priority, std::uint64_t arrival) noexcept {
    return waiter.priority != priority ? waiter.priority > priority : waiter.arrival_ < arrival;
  }
  static void append(List& list, Waiter& waiter, LinkOf link) noexcept;
  static void insert_after(List& list, Waiter& waiter, Waiter* prev, LinkOf link) noexcept;
  static void remove(List& list, Waiter& waiter, LinkOf link) noexcept;
  // All below under mutex_.
  Waiter* first_of(const Wanted& wanted) const noexcept;
  bool first_locked(const Waiter& waiter) const noexcept {
    return first_of(waiter.blocked_on_) == &waiter;
  }
  bool free_to(const Waiter& waiter, const Wanted& wanted) const noexcept;
  void link(Waiter& waiter) noexcept;
  void unlink(Waiter& waiter) noexcept;
  bool place(Waiter& waiter, const Wanted& wanted) noexcept;
  void note(const Wanted& changed) noexcept;
  void signal(Waiter& waiter) noexcept;
  void pass_the_bell_on(Waiter& waiter) noexcept;
  void look(const Wanted& wanted, bool polls, std::uint64_t free) noexcept;
  // Wakes the next one behind this waiter that holds memory and needs no more than `most`.
  void wake_next(Waiter& waiter, std::uint64_t most) noexcept;
  // If the first waiter of a quota cannot be served: wakes the first of those that may pass it. Without the mutex.
  void wake_past_first(Subject of, std::uint64_t free, const Waiter* by = nullptr) noexcept;
  // `left`: of the list that the waiter was in before. Without the mutex.
  void has_entered(const Wanted& wanted, Resource left) noexcept;
  bool may_pass(const Waiter& waiter, const Wanted& wanted) const noexcept {
    return wanted.resource == Resource::memory && waiter.holds.load(std::memory_order_relaxed) &&
           circle_.load(std::memory_order_relaxed);
  }
  bool ask_for_circle() noexcept;  // without the mutex
  void update_circle() noexcept;   // the same

  Doorbell* const doorbell_;
  Room& room_;
  const std::uint32_t epoch_ = fork_epoch();
  std::atomic<std::uint32_t> count_{0};
  std::atomic<std::uint32_t> waiting_{0};  // without those for an end; a figure for reports
  std::atomic<std::uint64_t> wakeups_{0};
  std::atomic<std::uint64_t> news_{0};
  std::atomic<std::uint64_t> changes_{0};  // of the waiters for memory
  std::atomic<bool> circle_{false};
  mutable std::mutex mutex_;
  std::uint64_t next_arrival_ = 0;
  List all_;                                   // by arrival
  List lists_[kResources - 2 + 2 * kBuckets];  // by priority and arrival; quotas and ends by request
  Waiter* listener_ = nullptr;                 // the thread that listens to the doorbell
  int listener_wakeup_ = -1;                   // its eventfd, made once
};

}  // namespace slabpool
