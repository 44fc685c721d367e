#include "slabpool/wait/waiters.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <limits>
#include <new>

#include "slabpool/base/assert.hpp"

namespace slabpool {

Waiters::~Waiters() {
  for (const int fd : spare_wakeups_) (void)::close(fd);
}

void Waiters::wake() noexcept {
  const std::lock_guard lock(mutex_);
  ++epoch_;
  woken_.notify_all();
  for (const int fd : wakeups_) {
    // Eight bytes: what an eventfd takes. A pipe that is full is readable already.
    const std::uint64_t one = 1;
    (void)!write(fd, &one, sizeof one);
  }
}

// Sequentially consistent, both: see notify() and AckBoard::publish().
void Waiters::count_in() noexcept {
  count_.fetch_add(1, std::memory_order_seq_cst);
  if (doorbell_ != nullptr) doorbell_->wait_begins();
}

void Waiters::count_out() noexcept {
  if (doorbell_ != nullptr) doorbell_->wait_ends();
  const std::uint32_t before = count_.fetch_sub(1, std::memory_order_relaxed);
  SLABPOOL_ASSERT(before != 0, "a waiter was counted before it is taken off");
  (void)before;
}

int Waiters::enter() noexcept {
  const int wakeup = doorbell_ != nullptr ? take_wakeup() : -1;
  count_in();
  return wakeup;
}

void Waiters::leave(int wakeup) noexcept {
  count_out();
  if (wakeup < 0) return;
  const std::lock_guard lock(mutex_);
  wakeups_.erase(std::find(wakeups_.begin(), wakeups_.end(), wakeup));
  // A write that is still in it may wake its next user once for nothing.
  spare_wakeups_.push_back(wakeup);  // take_wakeup() reserved room
}

// A descriptor on the list of wake-ups; -1 if the system has none.
int Waiters::take_wakeup() noexcept {
  int fd = -1;
  {
    const std::lock_guard lock(mutex_);
    if (!spare_wakeups_.empty()) {
      fd = spare_wakeups_.back();
      spare_wakeups_.pop_back();
    }
  }
  if (fd < 0) fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return -1;
  try {
    const std::lock_guard lock(mutex_);
    spare_wakeups_.reserve(spare_wakeups_.size() + wakeups_.size() + 1);  // so that leave() cannot fail
    wakeups_.push_back(fd);
    return fd;
  } catch (const std::bad_alloc&) {
    (void)::close(fd);
    return -1;
  }
}

std::uint64_t Waiters::epoch() noexcept {
  const std::lock_guard lock(mutex_);
  return epoch_;
}

void Waiters::sleep(int wakeup, std::uint64_t epoch, std::int64_t until_ns) noexcept {
  if (doorbell_ != nullptr) {
    const std::int64_t left = until_ns - now_ns();
    if (left > 0) doorbell_->listen(wakeup, left);
    return;
  }
  std::unique_lock lock(mutex_);
  const auto changed = [&] { return epoch_ != epoch; };
  if (until_ns == std::numeric_limits<std::int64_t>::max()) return woken_.wait(lock, changed);
  const std::chrono::steady_clock::time_point until{std::chrono::nanoseconds(until_ns)};
  (void)woken_.wait_until(lock, until, changed);
}

void Waiters::add_wakeup(int fd) {
  {
    const std::lock_guard lock(mutex_);
    wakeups_.push_back(fd);
  }
  count_in();
}

void Waiters::remove_wakeup(int fd) noexcept {
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::find(wakeups_.begin(), wakeups_.end(), fd);
    if (found == wakeups_.end()) return;
    wakeups_.erase(found);
  }
  count_out();
}

}  // namespace slabpool
