// What devices publish to each other and to the owner: acks, so that the last one can answer "released" before the owner has
// looked; and which requests they wait for, so that the owner makes no system call for the others.
//
// Every peer may write it, and no decision of the owner depends on it: a peer that spoils it makes another peer answer
// PENDING for RELEASED or the reverse, or notice a cancelled request late, or go without a wake-up; and nothing else.
#pragma once

#include <atomic>
#include <cstdint>

#include "slabpool/request/slot.hpp"

namespace slabpool {

class AckTally {
 public:
  // Device `bit` acknowledges the request in `slot`. True for the one caller that leaves no holder behind, by the owner's
  // words and the other devices' acks.
  bool leave(std::uint32_t slot, const HolderView& holders, std::uint64_t generation,
             HolderBit bit) noexcept {
    std::atomic<std::uint64_t>& word = left(slot, bit.word);
    std::uint64_t now = word.load(std::memory_order_relaxed);
    // Sequentially consistent, here and in the read below: of two devices that leave at once, in different words, the
    // later one sees the earlier one.
    do {
      if (HolderWord(now).generation() > generation)
        return false;  // this thread was asleep, and another request has the slot
    } while (!word.compare_exchange_weak(now, of(generation, now) | bit.mask, std::memory_order_seq_cst,
                                         std::memory_order_relaxed));
    bool held = false;
    const bool current = holders.each_word(generation, [&](std::uint32_t w, std::uint64_t bits) {
      const HolderWord gone(of(generation, left(slot, w).load(std::memory_order_seq_cst)));
      held = held || (bits & ~gone.bits()) != 0;
    });
    if (!current || held) return false;
    // Several threads may come here; one of them answers. Relaxed: only that answer depends on it.
    std::atomic<std::uint64_t>& answered = first_[slot].answered;
    std::uint64_t last = answered.load(std::memory_order_relaxed);
    return last < generation &&
           answered.compare_exchange_strong(last, generation, std::memory_order_relaxed);
  }

  // Called by the owner: device `bit` is named again.
  void rejoin(std::uint32_t slot, std::uint64_t generation, HolderBit bit) noexcept {
    std::atomic<std::uint64_t>& word = left(slot, bit.word);
    std::uint64_t now = word.load(std::memory_order_relaxed);
    // Relaxed: the device learns of it through the holders' words, which are written after this.
    while (HolderWord(now).generation() == generation && (now & bit.mask) != 0 &&
           !word.compare_exchange_weak(now, now & ~bit.mask, std::memory_order_relaxed)) {
    }
  }

  // A device is about to wait until the host leaves the request. Never taken back, so a device that is killed leaves
  // nothing behind. Sequentially consistent, as are the waiter's look at the holders after it, the clearing of the host's
  // bit and the owner's look here after that: either the waiter finds the bit cleared, or the owner this mark.
  void watch(std::uint32_t slot, std::uint64_t generation) noexcept {
    std::uint64_t now = watched_[slot].load(std::memory_order_seq_cst);
    while (now < generation &&
           !watched_[slot].compare_exchange_weak(now, generation, std::memory_order_seq_cst)) {
    }
  }
  bool watched(std::uint32_t slot, std::uint64_t generation) const noexcept {
    return watched_[slot].load(std::memory_order_seq_cst) >= generation;
  }

 private:
  // The word if it is of this generation, else one without holders.
  static std::uint64_t of(std::uint64_t generation, std::uint64_t word) noexcept {
    return HolderWord(word).generation() == generation ? word : HolderWord(generation, 0).value();
  }

  std::atomic<std::uint64_t>& left(std::uint32_t slot, std::uint64_t word) noexcept {
    return word == 0 ? first_[slot].left : more_[slot][word - 1];
  }

  // Close together, because most requests need only this: a device that acknowledges many requests then touches few pages.
  struct First {
    std::atomic<std::uint64_t> answered;  // generation whose end was answered
    std::atomic<std::uint64_t> left;      // the first word of devices that have left
  };
  First first_[kMaxRequests];
  std::atomic<std::uint64_t> watched_[kMaxRequests];  // generation that a device has waited for
  std::atomic<std::uint64_t> more_[kMaxRequests][MoreHolders::kWords];
};

}  // namespace slabpool
