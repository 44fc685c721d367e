// A device that hears when the host cancels a request: see SharedPeer::host_of().
//
// A waiter sleeps on the request's word of holders, which the owner changes when the host leaves. The owner makes a system
// call only for requests that are marked in the tally.
#include <algorithm>
#include <chrono>
#include <thread>

#include "slabpool/base/clock.hpp"
#include "slabpool/base/futex.hpp"
#include "slabpool/shared/peer.hpp"

namespace slabpool {
namespace {

constexpr std::int64_t kMoment = 1'000'000;

}  // namespace

PeerStatus SharedPeer::host_of(const Reference& reference, Host& host) const noexcept {
  host = Host::done;
  if (lost()) return PeerStatus::closed;
  if (reference.pool_id != pool_id()) return PeerStatus::other_pool;
  const RequestSlot* slot = slot_of(reference);
  if (slot == nullptr) return PeerStatus::forged;
  // Acquire: what was written before the request was over, or its host left, is seen.
  const auto over = [&] {
    return slot->generation.load(std::memory_order_acquire) != reference.generation;
  };
  if (over()) return PeerStatus::ok;
  const HolderView holders = slots_->holders(reference.slot);
  if (!holders.holds(reference.generation, bit_)) {
    // As in ack(): a request that ends in between is over, and not of an unknown device.
    const bool named = holders.was_named(reference.generation, bit_);
    return named || over() ? PeerStatus::ok : PeerStatus::unknown_device;
  }
  if (board_->posted(reference.slot, reference.generation)) return PeerStatus::ok;
  // Sequentially consistent: see AckTally::watch().
  if (holders.holds_now(reference.generation, kHost)) {
    host = Host::holds;
  } else if (slot->cancelled.load(std::memory_order_acquire) == reference.generation && !over()) {
    host = Host::cancelled;
  }
  return PeerStatus::ok;
}

PeerStatus SharedPeer::wait_for_host(const Reference& reference, std::int64_t deadline_ns,
                                     Host& host) noexcept {
  PeerStatus status = host_of(reference, host);
  if (status != PeerStatus::ok || host != Host::holds || now_ns() >= deadline_ns) return status;
  const std::atomic<std::uint64_t>& word = slots_->slots[reference.slot].holders.word.pending;
  tally_->watch(reference.slot, reference.generation);
  Sleeper self{reference.slot, nullptr, nullptr};
  {
    const std::lock_guard lock(sleepers_mutex_);
    self.next = sleepers_;
    if (sleepers_ != nullptr) sleepers_->prev = &self;
    sleepers_ = &self;
  }
  for (;;) {
    // Read before the look: a host that leaves after it changes the word, and the thread does not fall asleep.
    const auto low = static_cast<std::uint32_t>(word.load(std::memory_order_seq_cst));
    status = host_of(reference, host);
    if (status != PeerStatus::ok || host != Host::holds) break;
    const std::int64_t left = deadline_ns - now_ns();
    if (left <= 0) break;
    // Where the system refuses, by the clock.
    if (!futex_wait(word, low, left))
      std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(left, 5 * kMoment)));
  }
  const std::lock_guard lock(sleepers_mutex_);
  (self.prev != nullptr ? self.prev->next : sleepers_) = self.next;
  if (self.next != nullptr) self.next->prev = self.prev;
  return status;
}

void SharedPeer::lose() noexcept {
  lost_.store(true, std::memory_order_release);
  // A thread that is about to fall asleep may miss a wake-up: again until none is left. Each leaves once it has looked.
  for (;;) {
    {
      const std::lock_guard lock(sleepers_mutex_);
      if (sleepers_ == nullptr) return;
      for (const Sleeper* one = sleepers_; one != nullptr; one = one->next)
        futex_wake(slots_->slots[one->slot].holders.word.pending);
    }
    std::this_thread::sleep_for(std::chrono::nanoseconds(kMoment));
  }
}

}  // namespace slabpool
