// Watching how much is in use. Who watches: wait/pressure.hpp. How the threads' live bytes are watched: slab/use_bounds.hpp.
//
// Invariants: nothing is looked at, and no allocation or return takes an instruction more, while there is no watch. The
// thread that passes a bound wakes the watch, after its allocation or return is complete and with no lock held.
#include <algorithm>

#include "slabpool/pool/pool.hpp"
#include "slabpool/slab/use_bounds.hpp"

namespace slabpool {
namespace {

// With several threads a bound is noticed up to this part of the capacity late. Closer to it, each look would allow the
// threads so little that they would look all the time.
constexpr std::int64_t kLate = 1024;
// Of one look.
constexpr int kRounds = 8;

std::uint64_t used_of(std::int64_t live, std::uint64_t reserved) noexcept {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(live, 0)) + reserved;
}

}  // namespace

std::uint64_t Pool::used_bytes() noexcept {
  return used_of(caches_.sums().live, depot_.reserved_bytes());
}

void Pool::look_at_use() noexcept {
  const auto steps = [&](std::int64_t live, std::int64_t shares, bool alone) {
    const std::uint64_t reserved = depot_.reserved_bytes();
    const PressureGauge::Margins margins = pressure_.update(used_of(live, reserved));
    const std::int64_t least = alone ? 0 : static_cast<std::int64_t>(options_.capacity) / kLate / shares;
    const auto step = [&](std::int64_t margin) {
      return margin == PressureGauge::kFar ? UseSteps::kUnbounded : std::max(margin / shares, least);
    };
    const UseSteps each{step(margins.rise), step(margins.fall)};
    // Sequentially consistent: stored before the promises are read again below. A thread that opens or ends a promise reads
    // the bound after it has released the depot's mutex. (A fence instead is not known to ThreadSanitizer.)
    reserved_above_.store(each.above(static_cast<std::int64_t>(reserved)), std::memory_order_seq_cst);
    reserved_below_.store(each.below(static_cast<std::int64_t>(reserved)), std::memory_order_seq_cst);
    queue_.watch_returns(pressure_.is_high());
    return each;
  };
  pressure_.look([&] {
    // Again if a promise was opened or ended meanwhile: the threads' live bytes are read twice, it is not.
    for (int round = 0; round < kRounds; ++round) {
      caches_.bound(steps);
      const auto reserved = static_cast<std::int64_t>(depot_.reserved_bytes());
      if (reserved <= reserved_above_.load(std::memory_order_relaxed) &&
          reserved >= reserved_below_.load(std::memory_order_relaxed))
        break;
    }
  });
}

void Pool::look_at_rise() noexcept {
  const ThreadCache* const cache = caches_.last();
  const auto reserved = static_cast<std::int64_t>(depot_.reserved_bytes());
  if (cache == nullptr || cache->has_risen() ||
      reserved > reserved_above_.load(std::memory_order_relaxed))
    look_at_use();
}

void Pool::add_watch(PressureWatch& watch) noexcept {
  if (!usable_here()) return;
  // A pool that closes now either closes the watch, or is found closed here. (Sequentially consistent, as in close().)
  pressure_.add(watch);
  if ((slow_path_flags_.load(std::memory_order_seq_cst) & kClosed) != 0) pressure_.close_all();
  look_at_use();
}

void Pool::remove_watch(PressureWatch& watch) noexcept {
  if (!usable_here()) return;
  pressure_.remove(watch);
  look_at_use();  // the others' bounds are further away
}

bool Pool::take_change(PressureWatch& watch, PressureChange& change, bool look) noexcept {
  if (!usable_here()) return false;
  if (look) {
    collect_acks();
    look_at_use();
  }
  return pressure_.take(watch, change);
}

bool Pool::has_change(const PressureWatch& watch) noexcept {
  return usable_here() && pressure_.has_pending(watch);
}

bool Pool::wait_change(PressureWatch& watch, std::int64_t until_ns) noexcept {
  if (!usable_here()) return false;
  collect_acks();
  look_at_use();
  return pressure_.wait(watch, until_ns);
}

}  // namespace slabpool
