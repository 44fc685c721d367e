#include "slabpool/wait/queue.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "slabpool/base/assert.hpp"

namespace slabpool {

Waiter::~Waiter() {
  if (queue_ != nullptr) queue_->leave(*this);
}

WaitQueue::~WaitQueue() {
  SLABPOOL_ASSERT(all_.first == nullptr, "all waiters have left");
  if (listener_wakeup_ >= 0) (void)::close(listener_wakeup_);
}

// ---- lists

// memory, addresses, slots and kept have a list each; quotas and ends have buckets by the request.
unsigned WaitQueue::place_of(const Wanted& wanted) noexcept {
  constexpr unsigned kPlain = kResources - 2;
  switch (wanted.resource) {
    case Resource::memory:
      return 0;
    case Resource::addresses:
      return 1;
    case Resource::slots:
      return 2;
    case Resource::kept:
      return 3;
    case Resource::quota:
      return kPlain + wanted.of.slot % kBuckets;
    case Resource::end:
      break;
  }
  return kPlain + kBuckets + wanted.of.slot % kBuckets;
}

void WaitQueue::insert_after(List& list, Waiter& waiter, Waiter* prev, LinkOf link) noexcept {
  Waiter* next = prev != nullptr ? (prev->*link).next : list.first;
  waiter.*link = {prev, next};
  (prev != nullptr ? (prev->*link).next : list.first) = &waiter;
  (next != nullptr ? (next->*link).prev : list.last) = &waiter;
}

void WaitQueue::append(List& list, Waiter& waiter, LinkOf link) noexcept {
  insert_after(list, waiter, list.last, link);
}

void WaitQueue::remove(List& list, Waiter& waiter, LinkOf link) noexcept {
  const auto [prev, next] = waiter.*link;
  (prev != nullptr ? (prev->*link).next : list.first) = next;
  (next != nullptr ? (next->*link).prev : list.last) = prev;
  waiter.*link = {};
}

Waiter* WaitQueue::first_of(const Wanted& wanted) const noexcept {
  Waiter* first = list_of(wanted).first;
  while (first != nullptr && !same_place(first->blocked_on_, wanted)) first = first->in_list_.next;
  return first;
}

// A list has become empty, or is no longer.
void WaitQueue::note(const Wanted& changed) noexcept {
  if (changed.resource != Resource::memory && changed.resource != Resource::slots) return;
  room_.waits(list_of({Resource::memory}).first != nullptr, list_of({Resource::slots}).first != nullptr);
}

// From the end: waiters of one priority come in order of arrival.
void WaitQueue::link(Waiter& waiter) noexcept {
  List& list = list_of(waiter.blocked_on_);
  Waiter* prev = list.last;
  while (prev != nullptr && !before(*prev, waiter.priority, waiter.arrival_)) prev = prev->in_list_.prev;
  const bool was_empty = list.first == nullptr;
  insert_after(list, waiter, prev, &Waiter::in_list_);
  if (was_empty) note(waiter.blocked_on_);
  if (waiter.blocked_on_.resource == Resource::memory) changes_.fetch_add(1, std::memory_order_relaxed);
}

void WaitQueue::unlink(Waiter& waiter) noexcept {
  List& list = list_of(waiter.blocked_on_);
  remove(list, waiter, &Waiter::in_list_);
  if (list.first == nullptr) note(waiter.blocked_on_);
  if (waiter.blocked_on_.resource == Resource::memory) changes_.fetch_add(1, std::memory_order_relaxed);
}

// Again if the waiters have changed meanwhile: the last that changed them stores what it found after that.
bool WaitQueue::ask_for_circle() noexcept {
  std::uint64_t seen = 0;
  bool circle = false;
  do {
    {
      const std::lock_guard lock(mutex_);
      seen = changes_.load(std::memory_order_relaxed);
      const List& list = list_of({Resource::memory});
      circle = list.first != list.last;
    }
    circle = circle && room_.circle();
    const std::lock_guard lock(mutex_);
    if (changes_.load(std::memory_order_relaxed) != seen) continue;
    circle_.store(circle, std::memory_order_relaxed);
    return circle;
  } while (true);
}

void WaitQueue::update_circle() noexcept {
  if (ask_for_circle()) wake({.memory = true});
}

// ---- waiting

void WaitQueue::enter(Waiter& waiter) noexcept {
  SLABPOOL_ASSERT(waiter.queue_ == nullptr, "a waiter enters once");
  {
    const std::lock_guard lock(mutex_);
    waiter.queue_ = this;
    waiter.arrival_ = next_arrival_++;
    waiter.since_ns_ = now_ns();
    waiter.pause_ns_ = kFirstPause;
    waiter.again_ = true;
    append(all_, waiter, &Waiter::in_all_);
    link(waiter);
    if (waiter.blocked_on_.resource != Resource::end) waiting_.fetch_add(1, std::memory_order_relaxed);
    // Sequentially consistent, both: see any() and AckBoard::publish().
    count_.fetch_add(1, std::memory_order_seq_cst);
  }
  if (doorbell_ != nullptr) doorbell_->wait_begins();
  has_entered(waiter.blocked_on_, waiter.blocked_on_.resource);
}

// Another first may need what those behind it hold.
void WaitQueue::has_entered(const Wanted& wanted, Resource left) noexcept {
  if (wanted.resource == Resource::memory || left == Resource::memory) update_circle();
  if (wanted.resource == Resource::quota) wake_past_first(wanted.of, room_.quota_left(wanted.of));
}

void WaitQueue::enter(Waiter& waiter, const Wanted& wanted) noexcept {
  waiter.blocked_on_ = wanted;
  enter(waiter);
}

void WaitQueue::leave(Waiter& waiter) noexcept {
  if (waiter.queue_ == nullptr || epoch_ != fork_epoch()) return;
  SLABPOOL_ASSERT(waiter.queue_ == this, "a waiter leaves the queue that it entered");
  if (doorbell_ != nullptr) doorbell_->wait_ends();
  Wanted wanted;
  Waiter* next = nullptr;  // not used after the mutex is released
  {
    const std::lock_guard lock(mutex_);
    wanted = waiter.blocked_on_;
    const bool was_first = first_locked(waiter);
    unlink(waiter);
    remove(all_, waiter, &Waiter::in_all_);
    if (waiter.is_woken_) {
      WakeTarget& target = *waiter.target;
      List woken{target.first, target.last};
      remove(woken, waiter, &Waiter::in_woken_);
      target.first = woken.first;
      target.last = woken.last;
      waiter.is_woken_ = false;
    }
    waiter.queue_ = nullptr;
    if (wanted.resource != Resource::end) waiting_.fetch_sub(1, std::memory_order_relaxed);
    count_.fetch_sub(1, std::memory_order_relaxed);
    pass_the_bell_on(waiter);
    if (was_first && wanted.resource != Resource::end) next = first_of(wanted);
    // Only the first makes others give way, so it has to learn that it is the first, however little is free.
    if (next != nullptr && room_.gives_way()) {
      signal(*next);
      next = nullptr;
    }
  }
  if (wanted.resource == Resource::memory) update_circle();
  // One that was served and had not left yet may have got the signal that was for the one behind it.
  if (wanted.resource == Resource::quota) wake_past_first(wanted.of, room_.quota_left(wanted.of));
  if (next == nullptr) return;
  News news;
  news.memory = wanted.resource == Resource::memory;
  news.addresses = wanted.resource == Resource::addresses;
  news.slots = wanted.resource == Resource::slots;
  news.kept = wanted.resource == Resource::kept;
  if (wanted.resource == Resource::quota) news.quota = wanted.of;
  wake(news);
}

bool WaitQueue::free_to(const Waiter& waiter, const Wanted& wanted) const noexcept {
  const Waiter* first = first_of(wanted);
  return first == nullptr || first == &waiter || !before(*first, waiter.priority, waiter.arrival_) ||
         may_pass(waiter, wanted);
}

bool WaitQueue::passes(Waiter& waiter, const Wanted& wanted) noexcept {
  const Resource left = waiter.blocked_on_.resource;  // changed by this thread alone
  {
    const std::lock_guard lock(mutex_);
    if (free_to(waiter, wanted)) return true;
    if (!place(waiter, wanted)) return false;
  }
  has_entered(wanted, left);
  return false;
}

bool WaitQueue::would_pass(const Waiter* waiter, const Wanted& wanted, std::int32_t priority) noexcept {
  if (waiter == nullptr) return passes(wanted, priority);
  const std::lock_guard lock(mutex_);
  return free_to(*waiter, wanted);
}

bool WaitQueue::passes(const Wanted& wanted, std::int32_t priority) noexcept {
  const std::lock_guard lock(mutex_);
  const Waiter* first = first_of(wanted);
  return first == nullptr || !before(*first, priority, std::numeric_limits<std::uint64_t>::max());
}

void WaitQueue::block(Waiter& waiter, const Wanted& wanted) noexcept {
  const Resource left = waiter.blocked_on_.resource;  // changed by this thread alone
  {
    const std::lock_guard lock(mutex_);
    if (!place(waiter, wanted)) {
      // It was to pass the first. What is free, but not as it needs it, may do for one that needs less.
      if (waiter.queue_ != nullptr && wanted.amount != 0 && !first_locked(waiter) &&
          may_pass(waiter, wanted))
        wake_next(waiter, wanted.amount - 1);
      return;
    }
    waiter.again_ = true;  // what came back before it was in this list did not wake it
  }
  has_entered(wanted, left);
}

// Whether the waiter is in another list now.
bool WaitQueue::place(Waiter& waiter, const Wanted& wanted) noexcept {
  if (waiter.queue_ == nullptr) {
    waiter.blocked_on_ = wanted;
    return false;
  }
  if (same_place(waiter.blocked_on_, wanted)) {
    waiter.blocked_on_.amount = wanted.amount;
    return false;
  }
  const Wanted left = waiter.blocked_on_;
  const bool was_first = first_locked(waiter);
  unlink(waiter);
  waiter.blocked_on_ = wanted;
  link(waiter);
  // The next one may have what this one cannot use yet.
  if (Waiter* next = was_first ? first_of(left) : nullptr) signal(*next);
  return true;
}

std::uint64_t WaitQueue::first_amount(const Wanted& wanted) noexcept {
  const std::lock_guard lock(mutex_);
  const Waiter* first = first_of(wanted);
  return first != nullptr ? first->blocked_on_.amount : 0;
}

bool WaitQueue::is_first(const Waiter& waiter) noexcept {
  const std::lock_guard lock(mutex_);
  return waiter.queue_ != nullptr && first_locked(waiter);
}

bool WaitQueue::wait(Waiter& waiter, std::int64_t until_ns) noexcept {
  std::unique_lock lock(mutex_);
  SLABPOOL_ASSERT(waiter.queue_ == this && waiter.target == nullptr,
                  "a thread that is registered sleeps");
  while (!waiter.signalled_ && !waiter.again_) {
    const std::int64_t now = now_ns();
    if (now >= until_ns) break;
    // Streams never wake waiters: the first of each resource, and waiters for an end, switch to timed polling. Most work
    // that is waited for is short.
    const bool polls =
        room_.polls() && (waiter.blocked_on_.resource == Resource::end || first_locked(waiter));
    std::int64_t till = until_ns;
    if (polls) {
      till = std::min(till, now + waiter.pause_ns_);
      waiter.pause_ns_ = std::min(waiter.pause_ns_ * 2, kLongestPause);
    }
    if (doorbell_ != nullptr && (listener_ == nullptr || listener_ == &waiter)) {
      listener_ = &waiter;
      if (listener_wakeup_ < 0) listener_wakeup_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
      const int wakeup = listener_wakeup_;
      lock.unlock();
      doorbell_->listen(wakeup, till - now);
      room_.collect();
      lock.lock();
    } else {
      waiter.asleep_ = true;
      if (till == std::numeric_limits<std::int64_t>::max()) {
        waiter.woken_.wait(lock);
      } else {
        (void)waiter.woken_.wait_until(
            lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(till)));
      }
      waiter.asleep_ = false;
    }
    if (polls && now_ns() >= till) waiter.again_ = true;
  }
  const bool woken = waiter.signalled_ || waiter.again_;
  waiter.signalled_ = waiter.again_ = false;
  return woken;
}

Waiter* WaitQueue::take(WakeTarget& target) noexcept {
  const std::lock_guard lock(mutex_);
  Waiter* const waiter = target.first;
  if (waiter == nullptr) return nullptr;
  List woken{target.first, target.last};
  remove(woken, *waiter, &Waiter::in_woken_);
  target.first = woken.first;
  target.last = woken.last;
  waiter->is_woken_ = false;
  return waiter;
}

bool WaitQueue::take_again(Waiter& waiter) noexcept {
  const std::lock_guard lock(mutex_);
  const bool again = waiter.again_;
  waiter.again_ = false;
  return again;
}

// ---- waking

void WaitQueue::signal(Waiter& waiter) noexcept {
  // Eight bytes: what an eventfd takes. A pipe that is full is readable already.
  const std::uint64_t one = 1;
  if (waiter.target != nullptr) {
    if (waiter.is_woken_) return;
    WakeTarget& target = *waiter.target;
    List woken{target.first, target.last};
    append(woken, waiter, &Waiter::in_woken_);
    waiter.is_woken_ = true;
    if (target.first == nullptr) (void)!write(target.fd, &one, sizeof one);
    target.first = woken.first;
    target.last = woken.last;
  } else {
    if (waiter.signalled_) return;
    waiter.signalled_ = true;
    if (listener_ == &waiter) {
      if (listener_wakeup_ >= 0) (void)!write(listener_wakeup_, &one, sizeof one);
    } else if (waiter.asleep_) {
      waiter.woken_.notify_one();
    }
  }
  wakeups_.fetch_add(1, std::memory_order_relaxed);
}

// The thread that arrived last will probably listen longest.
void WaitQueue::pass_the_bell_on(Waiter& waiter) noexcept {
  if (listener_ != &waiter) return;
  listener_ = nullptr;
  Waiter* next = all_.last;
  while (next != nullptr && !next->asleep_) next = next->in_all_.prev;
  if (next != nullptr) next->woken_.notify_one();
}

void WaitQueue::look(const Wanted& wanted, bool polls, std::uint64_t free) noexcept {
  Waiter* const first = first_of(wanted);
  if (first == nullptr) return;
  if (polls || first->blocked_on_.amount <= free) return signal(*first);
  // One that may pass it. Those of a quota: see wake_past_first().
  if (wanted.resource == Resource::memory && circle_.load(std::memory_order_relaxed))
    wake_next(*first, free);
}

void WaitQueue::wake_next(Waiter& waiter, std::uint64_t most) noexcept {
  for (Waiter* w = waiter.in_list_.next; w != nullptr; w = w->in_list_.next)
    if (w->holds.load(std::memory_order_relaxed) && same_place(w->blocked_on_, waiter.blocked_on_) &&
        w->blocked_on_.amount <= most)
      return signal(*w);
}

// In batches, because the pool is asked without the mutex. Waiters are told apart by their arrival, since they may leave
// meanwhile.
void WaitQueue::wake_past_first(Subject of, std::uint64_t free, const Waiter* by) noexcept {
  struct Candidate {
    Subject request;
    std::int32_t priority;
    std::uint64_t arrival;
  };
  constexpr unsigned kBatch = 32;
  const Wanted quota{Resource::quota, 0, of};
  Candidate candidates[kBatch];
  const auto wake = [&](std::uint64_t arrival) {
    const std::lock_guard lock(mutex_);
    for (Waiter* w = list_of(quota).first; w != nullptr; w = w->in_list_.next)
      if (w->arrival_ == arrival && same_place(w->blocked_on_, quota)) return signal(*w);
  };
  Candidate in_circle{};  // the first that holds something
  Room::Circle circle = Room::Circle::nothing;
  for (unsigned count = kBatch, seen = 0; count == kBatch; seen = kBatch) {
    const Candidate last = candidates[kBatch - 1];  // of the batch before, if seen
    std::uint64_t needs = 0;
    count = 0;
    {
      const std::lock_guard lock(mutex_);
      const Waiter* first = first_of(quota);
      if (first == nullptr || first == by || first->blocked_on_.amount <= free) return;
      needs = first->blocked_on_.amount;
      for (const Waiter* w = first->in_list_.next; w != nullptr && count < kBatch; w = w->in_list_.next)
        if (w != by && w->request.generation != 0 && same_place(w->blocked_on_, quota) &&
            w->blocked_on_.amount <= free &&
            (seen == 0 || (!before(*w, last.priority, last.arrival) && w->arrival_ != last.arrival)))
          candidates[count++] = {w->request, w->priority, w->arrival_};
    }
    for (unsigned i = 0; i < count; ++i) {
      if (room_.holds_needed(of, candidates[i].request, needs)) return wake(candidates[i].arrival);
      if (circle != Room::Circle::nothing) continue;
      circle = room_.quota_circle(of, candidates[i].request, needs);
      if (circle == Room::Circle::yes) in_circle = candidates[i];
    }
  }
  if (in_circle.request.generation != 0) wake(in_circle.arrival);
}

void WaitQueue::wake(const News& news) noexcept {
  if (!has_waiters()) return;
  constexpr std::uint64_t kAll = std::numeric_limits<std::uint64_t>::max();
  // Acquire and release, on one word: of two threads that return memory at once, the later one sees what both returned.
  news_.fetch_add(1, std::memory_order_acq_rel);
  // What came back may be what the first waiter lacked. A request that was closed is in no circle any more.
  if (news.memory && circle_.load(std::memory_order_relaxed)) (void)ask_for_circle();
  const bool polls = room_.polls();
  const std::uint64_t bytes = news.any_memory ? kAll : news.memory ? room_.free_bytes() : 0;
  const std::uint64_t slots = news.slots ? room_.free_slots() : 0;
  const std::uint64_t quota = news.quota.generation != 0 ? room_.quota_left(news.quota) : 0;
  if (news.quota.generation != 0) wake_past_first(news.quota, quota);
  const std::lock_guard lock(mutex_);
  if (news.memory || news.any_memory) look({Resource::memory}, polls, bytes);
  if (news.addresses) look({Resource::addresses}, polls, kAll);
  if (news.slots) look({Resource::slots}, polls, slots);
  if (news.kept) look({Resource::kept}, polls, kAll);
  if (news.quota.generation != 0) look({Resource::quota, 0, news.quota}, polls, quota);
  if (news.ended.generation == 0) return;
  const Wanted end{Resource::end, 0, news.ended};
  for (Waiter* w = list_of(end).first; w != nullptr; w = w->in_list_.next)
    if (w->blocked_on_.of.slot == news.ended.slot &&
        w->blocked_on_.of.generation <= news.ended.generation)
      signal(*w);
}

void WaitQueue::has_charged(Subject of, const Waiter* by) noexcept {
  wake_past_first(of, room_.quota_left(of), by);
}

void WaitQueue::start_polling() noexcept {
  const std::lock_guard lock(mutex_);
  for (const List& list : lists_) {
    for (Waiter* w = list.first; w != nullptr; w = w->in_list_.next)
      if (w->blocked_on_.resource == Resource::end || first_locked(*w)) signal(*w);
  }
}

void WaitQueue::wake_all() noexcept {
  const std::lock_guard lock(mutex_);
  for (Waiter* w = all_.first; w != nullptr; w = w->in_all_.next) signal(*w);
}

void WaitQueue::wake_all_quotas() noexcept {
  const std::lock_guard lock(mutex_);
  for (Waiter* w = all_.first; w != nullptr; w = w->in_all_.next)
    if (w->blocked_on_.resource == Resource::quota) signal(*w);
}

// ---- looking

WaiterInfo WaitQueue::info_of(const Waiter& waiter, std::int64_t now_ns) {
  WaiterInfo info;
  info.id = waiter.id;
  info.request = waiter.request;
  info.above = waiter.session;
  info.nbytes = waiter.nbytes;
  info.priority = waiter.priority;
  info.waited_ns = now_ns - waiter.since_ns_;
  info.resource = waiter.blocked_on_.resource;
  if (info.resource == Resource::quota) info.of = waiter.blocked_on_.of;
  info.where = waiter.where;
  return info;
}

const char* WaitQueue::verify() const noexcept {
  const std::lock_guard lock(mutex_);
  std::uint32_t all = 0;
  std::uint32_t listed = 0;
  const Waiter* prev = nullptr;
  for (const Waiter* w = all_.first; w != nullptr; prev = w, w = w->in_all_.next, ++all) {
    if (w->in_all_.prev != prev) return "the list of all waiters is not linked both ways";
    if (prev != nullptr && prev->arrival_ >= w->arrival_)
      return "all waiters are not in order of arrival";
  }
  for (const List& list : lists_) {
    prev = nullptr;
    for (const Waiter* w = list.first; w != nullptr; prev = w, w = w->in_list_.next, ++listed) {
      if (&list_of(w->blocked_on_) != &list) return "a waiter is in the list of another resource";
      if (prev != nullptr && !before(*prev, w->priority, w->arrival_))
        return "waiters of a resource are not in order of priority and arrival";
    }
    if (list.last != prev) return "the end of a list of waiters is not its last";
  }
  if (all != listed) return "a waiter is not in exactly one list";
  return all == (count_.load(std::memory_order_relaxed) & ~kReturns)
             ? nullptr
             : "registered waiters are not counted";
}

}  // namespace slabpool
