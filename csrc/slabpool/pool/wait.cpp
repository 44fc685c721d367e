// Waiting for memory to come back, or for a request to end: threads on a condition, event loops on a
// file descriptor. Nobody polls, but who waits for work on a stream; and nobody pays while nobody waits.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "slabpool/base/clock.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

void Pool::wake_waiters() noexcept {
  const std::lock_guard lock(wait_mutex_);
  ++wait_epoch_;
  wait_condition_.notify_all();
  for (const int fd : wakeups_) {
    // Eight bytes: what an eventfd takes. A pipe that is full is readable already.
    const std::uint64_t one = 1;
    (void)!write(fd, &one, sizeof one);
  }
}

// While acks wait for streams nobody wakes who waits for them, so he looks again after a pause: short at first,
// because most of the work that is waited for is.
constexpr std::int64_t kFirstPause = 20'000;
constexpr std::int64_t kLongestPause = 1'000'000;

// Calls attempt() until it is true or the deadline has passed; between two calls memory came back, or a stream
// may have got on.
template <typename Try>
bool Pool::wait_for(std::int64_t deadline_ns, Try&& attempt) noexcept {
  if (shared_ != nullptr) return wait_for_peers(deadline_ns, attempt);
  // Counted before the first attempt: see give_back().
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  bool done = false;
  std::int64_t pause = kFirstPause;
  for (;;) {
    std::unique_lock lock(wait_mutex_);
    const std::uint64_t epoch = wait_epoch_;
    lock.unlock();
    collect_acks();
    done = attempt();
    if (done) break;
    // Asked after the waiter was counted: an ack that comes behind a stream later wakes it, see ack_after().
    const bool looks = stream_acks() != 0;
    lock.lock();
    const auto changed = [&] { return wait_epoch_ != epoch; };
    if (!looks && deadline_ns == std::numeric_limits<std::int64_t>::max()) {
      wait_condition_.wait(lock, changed);
      continue;
    }
    std::int64_t until_ns = deadline_ns;
    if (looks) {
      until_ns = std::min(deadline_ns, now_ns() + pause);
      pause = std::min(pause * 2, kLongestPause);
    }
    const std::chrono::steady_clock::time_point until{std::chrono::nanoseconds(until_ns)};
    const bool news = wait_condition_.wait_until(lock, until, changed);
    // The clock is asked too: a pool that is busy enough has news whenever one looks.
    if ((!news && until_ns == deadline_ns) || now_ns() >= deadline_ns) {
      lock.unlock();
      collect_acks();
      done = attempt();
      break;
    }
  }
  waiters_.fetch_sub(1, std::memory_order_relaxed);
  return done;
}

// The same for a pool with devices in other processes: the thread sleeps on a descriptor of its own,
// which wake_waiters() writes to, and on the bell, which peers ring. Whoever hears the bell takes in all
// acks; what ends by them wakes the others.
template <typename Try>
bool Pool::wait_for_peers(std::int64_t deadline_ns, Try&& attempt) noexcept {
  // Heard from before the first attempt on, so that nothing that comes after it is missed.
  const int own = take_wakeup();
  bool done = false;
  std::int64_t pause = kFirstPause;
  for (;;) {
    collect_acks();
    done = attempt();
    std::int64_t left = deadline_ns - now_ns();
    if (done || left <= 0) break;
    if (stream_acks() != 0) {
      left = std::min(left, pause);
      pause = std::min(pause * 2, kLongestPause);
    }
    shared_->listen(own, left);
  }
  keep_wakeup(own);
  return done;
}

// A descriptor that is on the list of wake-ups; below zero if there is none to be had, and then the caller
// is counted as waiting all the same.
int Pool::take_wakeup() noexcept {
  int fd = -1;
  {
    const std::lock_guard lock(wait_mutex_);
    if (!spare_wakeups_.empty()) {
      fd = spare_wakeups_.back();
      spare_wakeups_.pop_back();
    }
  }
  if (fd < 0) fd = SharedOwner::new_wakeup();
  try {
    const std::lock_guard lock(wait_mutex_);
    if (fd >= 0) {
      spare_wakeups_.reserve(spare_wakeups_.size() + wakeups_.size() + 1);  // keep_wakeup() cannot fail
      wakeups_.push_back(fd);
    }
  } catch (const std::bad_alloc&) {
    (void)::close(fd);
    fd = -1;
  }
  // Sequentially consistent, both: see give_back() and AckBoard::publish().
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  shared_->wait_begins();
  return fd;
}

void Pool::keep_wakeup(int fd) noexcept {
  shared_->wait_ends();
  waiters_.fetch_sub(1, std::memory_order_relaxed);
  if (fd < 0) return;
  const std::lock_guard lock(wait_mutex_);
  wakeups_.erase(std::find(wakeups_.begin(), wakeups_.end(), fd));
  // What was written to it may wake its next user once for nothing.
  spare_wakeups_.push_back(fd);
}

Allocation Pool::allocate_until(const AllocateSpec& spec, std::int64_t deadline_ns, bool last) noexcept {
  // Before anything else: the lock of those who wait may have been taken when this process was forked.
  if (!usable_here()) return {nullptr, Status::forked};
  Allocation result;
  (void)wait_for(deadline_ns, [&] {
    result = try_allocate(spec);
    return result.block != nullptr || result.status != Status::exhausted;
  });
  if (result.block != nullptr) {
    log(EventKind::allocate, spec.request.generation, kNoDevice, result.block->bytes);
  } else if (result.status == Status::exhausted && last) {
    note_exhausted(spec.request.generation, spec.nbytes);
  }
  return result;
}

Status Pool::grow_until(Block& block, Handle request, std::uint64_t nbytes, std::uint64_t& usable,
                        std::int64_t deadline_ns, bool last) noexcept {
  if (!usable_here()) return Status::forked;
  Status status = Status::exhausted;
  (void)wait_for(deadline_ns, [&] {
    status = try_grow(block, request, nbytes, usable);
    return status != Status::exhausted;
  });
  if (status == Status::system_refused || (status == Status::exhausted && last))
    note_exhausted(request.generation, nbytes);
  return status;
}

Status Pool::open_until(const OpenSpec& spec, Handle& handle, std::int64_t deadline_ns,
                        bool last) noexcept {
  if (!usable_here()) return Status::forked;
  Status status = Status::exhausted;
  (void)wait_for(deadline_ns, [&] {
    status = try_open(spec, handle);
    return status != Status::exhausted && status != Status::too_many_requests;
  });
  if (status == Status::exhausted && last) note_exhausted(0, spec.reserve);
  return status;
}

bool Pool::wait_released(Handle handle, std::int64_t deadline_ns) noexcept {
  if (!usable_here()) return false;
  return wait_for(deadline_ns, [&] { return released(handle); });
}

void Pool::add_wakeup(int fd) {
  {
    const std::lock_guard lock(wait_mutex_);
    wakeups_.push_back(fd);
  }
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  if (shared_ != nullptr) shared_->wait_begins();
}

void Pool::remove_wakeup(int fd) {
  {
    const std::lock_guard lock(wait_mutex_);
    const auto found = std::find(wakeups_.begin(), wakeups_.end(), fd);
    if (found == wakeups_.end()) return;
    wakeups_.erase(found);
  }
  waiters_.fetch_sub(1, std::memory_order_relaxed);
  if (shared_ != nullptr) shared_->wait_ends();
}

}  // namespace slabpool
