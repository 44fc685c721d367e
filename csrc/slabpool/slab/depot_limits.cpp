// How much the depot may commit, and what goes back to the system: the soft limit, settling after each window of time, and
// trimming.
#include <algorithm>

#include "slabpool/slab/depot.hpp"

namespace slabpool {
namespace {

// Pages (64 MiB) that settle() returns under one entry of the mutex: other threads wait for some milliseconds.
constexpr std::uint64_t kSettleStep = 16384;

}  // namespace

bool Depot::has_room(std::uint64_t pages, std::uint64_t own) const noexcept {
  return pages_.in_use_pages() + pages + reserves_.reserved_pages() - own <= capacity_ >> kPageBits;
}

// Pages that blocks lie on, also those that thread caches keep.
std::uint64_t Depot::used_pages() const noexcept {
  return pages_.in_use_pages() - (pages_.has_holes() ? solid_free_ : 0);
}

// A 24th above what is used: that bounds both the waste and how often the caches are collected.
std::uint64_t Depot::soft_limit_for(std::uint64_t used) const noexcept {
  return std::max(least_soft_limit_, used + used / 24) + pages_.idle_pages();
}

// The most pages that may be committed, where `pages` more come into use.
std::uint64_t Depot::commit_limit(std::uint64_t pages, Effort effort) noexcept {
  if (effort == Effort::hard) {
    // The thread caches are empty now, so these pages are really in use.
    soft_limit_pages_ = soft_limit_for(used_pages() + pages);
  }
  return std::min(capacity_ >> kPageBits, pages_.granule_up(soft_limit_pages_));
}

void Depot::settle(std::uint64_t more) noexcept {
  for (;;) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t target = used_pages() + pages_for(more);
    soft_limit_pages_ = soft_limit_for(target);
    const std::uint64_t most = target + target / 32 + pages_.arena_idle_pages();
    if (pages_.committed_pages() <= most) return;
    const Publishing after(*this);
    drop_empty_slabs();
    const std::uint64_t excess = std::min(pages_.committed_pages() - most, kSettleStep);
    std::uint64_t done = pages_.decommit(std::min(excess, pages_.unused_pages()));
    if (done < excess) done += hollow_slabs(excess - done);
    if (done == 0) return;
  }
}

std::uint64_t Depot::trim() noexcept {
  const std::lock_guard lock(mutex_);
  drop_empty_slabs();
  const std::uint64_t pages = pages_.decommit(pages_.unused_pages()) + hollow_slabs(solid_free_);
  const std::uint64_t discarded = pages_.discard_uncommitted();
  close_arrays();
  pages_.close_records();
  publish();
  SLABPOOL_VERIFY(false, verify_locked());
  return (pages << kPageBits) + discarded;
}

}  // namespace slabpool
