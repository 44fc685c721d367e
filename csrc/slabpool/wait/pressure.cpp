#include "slabpool/wait/pressure.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "slabpool/base/assert.hpp"
#include "slabpool/base/clock.hpp"

namespace slabpool {

PressureWatch::~PressureWatch() {
  if (gauge_ != nullptr) gauge_->remove(*this);
}

PressureGauge::~PressureGauge() {
  SLABPOOL_ASSERT(first_ == nullptr || epoch_ != fork_epoch(), "all watches were removed");
}

void PressureGauge::add(PressureWatch& watch) noexcept {
  SLABPOOL_ASSERT(watch.gauge_ == nullptr && watch.down <= watch.up, "a watch is added once", watch.up,
                  watch.down);
  const std::lock_guard lock(mutex_);
  watch.gauge_ = this;
  watch.next_ = first_;
  if (first_ != nullptr) first_->prev_ = &watch;
  first_ = &watch;
  count_.fetch_add(1, std::memory_order_relaxed);
}

// Takes it off the list; it stays the gauge's, for its pending changes and the thread that waits.
void PressureGauge::unlink(PressureWatch& watch) noexcept {
  if (watch.closed_.load(std::memory_order_relaxed)) return;
  (watch.prev_ != nullptr ? watch.prev_->next_ : first_) = watch.next_;
  if (watch.next_ != nullptr) watch.next_->prev_ = watch.prev_;
  watch.prev_ = watch.next_ = nullptr;
  count_.fetch_sub(1, std::memory_order_relaxed);
  watch.closed_.store(true, std::memory_order_release);
  wake(watch);
}

void PressureGauge::remove(PressureWatch& watch) noexcept {
  if (watch.gauge_ == nullptr || epoch_ != fork_epoch()) return;
  const std::lock_guard lock(mutex_);
  unlink(watch);
}

void PressureGauge::close_all() noexcept {
  const std::lock_guard lock(mutex_);
  while (first_ != nullptr) unlink(*first_);
}

void PressureGauge::wake(PressureWatch& watch) noexcept {
  watch.news_.notify_all();
  // Eight bytes: what an eventfd takes. One that is full is readable already.
  const std::uint64_t one = 1;
  if (watch.fd >= 0) (void)!::write(watch.fd, &one, sizeof one);
}

PressureGauge::Margins PressureGauge::update(std::uint64_t used) noexcept {
  Margins margins;
  high_ = false;
  for (PressureWatch* w = first_; w != nullptr; w = w->next_) {
    if (w->high_ ? used < w->down : used >= w->up) {
      w->high_ = !w->high_;
      w->used_at_[w->high_ ? 1 : 0] = used;
      w->pending_ = w->pending_ < 2 ? w->pending_ + 1 : 1;
      w->has_changed_ = true;
    }
    if (w->high_) {
      high_ = true;
      margins.fall = std::min(margins.fall, static_cast<std::int64_t>(used - w->down));
    } else {
      margins.rise = std::min(margins.rise, static_cast<std::int64_t>(w->up - used - 1));
    }
  }
  return margins;
}

void PressureGauge::signal() noexcept {
  for (PressureWatch* w = first_; w != nullptr; w = w->next_) {
    if (!w->has_changed_) continue;
    w->has_changed_ = false;
    wake(*w);
  }
}

bool PressureGauge::take(PressureWatch& watch, PressureChange& change) noexcept {
  const std::lock_guard lock(mutex_);
  if (watch.pending_ == 0) return false;
  change.high = watch.pending_ == 1 ? watch.high_ : !watch.high_;
  change.used = watch.used_at_[change.high ? 1 : 0];
  --watch.pending_;
  return true;
}

bool PressureGauge::wait(PressureWatch& watch, std::int64_t until_ns) noexcept {
  std::unique_lock lock(mutex_);
  const auto has_news = [&] { return watch.pending_ != 0 || watch.closed(); };
  return watch.news_.wait_until(
      lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(until_ns)), has_news);
}

}  // namespace slabpool
