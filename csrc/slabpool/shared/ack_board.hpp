// Where one attached device posts its acks: written by that peer, read by the owner, mapped by no other process.
//
// For each slot of the request table it has the generation acknowledged last, and marks that say which slots changed.
// Invariant: the owner trusts none of it. A value is the wish "this device acknowledges this generation of this slot",
// which the owner checks like an ack of its own process. Random bytes are random acks of this one device; marks lead to a
// bounded search, and no index goes beyond the table.
#pragma once

#include <atomic>
#include <cstdint>

#include "slabpool/request/slot.hpp"

namespace slabpool {

class AckBoard {
 public:
  // ---- the peer

  // True for one caller; publish() must follow. False if this generation was posted before, or a later request has the
  // slot. A post only ever raises the generation: a thread that was asleep cannot overwrite the ack of a later request.
  bool post(std::uint32_t slot, std::uint64_t generation) noexcept {
    std::uint64_t now = acked_[slot].load(std::memory_order_relaxed);
    do {
      if (now >= generation) return false;
      // Release: what the peer did with the memory comes before.
    } while (!acked_[slot].compare_exchange_weak(now, generation, std::memory_order_release,
                                                 std::memory_order_relaxed));
    return true;
  }
  bool posted(std::uint32_t slot, std::uint64_t generation) const noexcept {
    return acked_[slot].load(std::memory_order_relaxed) == generation;
  }
  void publish(std::uint32_t slot) noexcept {
    // Release, here and below: the owner's thread that takes the mark off sees the posted generation.
    marks_[slot / 64].fetch_or(std::uint64_t{1} << (slot % 64), std::memory_order_release);
    // Sequentially consistent, as is the check for waiters that follows in the peer; the owner registers a waiter, then
    // checks this word. So one of the two sees the other.
    dirty_.fetch_or(std::uint64_t{1} << (slot / kSlotsPerBit), std::memory_order_seq_cst);
  }
  void alive(std::int64_t now_ns) noexcept { heard_ns_.store(now_ns, std::memory_order_relaxed); }

  // ---- the owner

  bool news() const noexcept { return dirty_.load(std::memory_order_seq_cst) != 0; }
  // The device is named again for a request that it has acknowledged: its next ack counts as the first.
  void forget(std::uint32_t slot, std::uint64_t generation) noexcept {
    // Relaxed: the device learns of it through the holders' words, which are written after this.
    (void)acked_[slot].compare_exchange_strong(generation, 0, std::memory_order_relaxed);
  }
  std::int64_t heard_ns() const noexcept { return heard_ns_.load(std::memory_order_relaxed); }

  // Calls f(slot, generation) for each mark, and takes the mark off first: an ack that comes meanwhile marks again.
  // One thread at a time (PolledAcks). Exchanges, because the peer adds marks at the same time.
  template <typename F>
  void collect(F&& f) {
    if (!news()) return;  // an exchange would take the cache line from the peer
    // Release as well: a thread that then finds no news sees that this thread is collecting (PolledAcks::collect).
    for (std::uint64_t groups = dirty_.exchange(0, std::memory_order_acq_rel); groups != 0;
         groups &= groups - 1) {
      const auto group = static_cast<std::uint32_t>(__builtin_ctzll(groups));
      for (std::uint32_t word = group * kWordsPerBit; word < (group + 1) * kWordsPerBit; ++word) {
        if (marks_[word].load(std::memory_order_relaxed) == 0) continue;
        for (std::uint64_t bits = marks_[word].exchange(0, std::memory_order_acquire); bits != 0;
             bits &= bits - 1) {
          const std::uint32_t slot = word * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits));
          f(slot, acked_[slot].load(std::memory_order_acquire));
        }
      }
    }
  }

 private:
  static constexpr std::uint32_t kSlotsPerBit = kMaxRequests / 64;
  static constexpr std::uint32_t kWordsPerBit = kSlotsPerBit / 64;
  static_assert(kSlotsPerBit % 64 == 0);

  std::atomic<std::uint64_t> dirty_;  // a bit for every kSlotsPerBit slots
  std::atomic<std::int64_t> heard_ns_;
  std::uint64_t unused_[6];
  std::atomic<std::uint64_t> marks_[kMaxRequests / 64];  // a bit for every slot
  std::atomic<std::uint64_t> acked_[kMaxRequests];
};

}  // namespace slabpool
