// What devices tell each other about their acks, so that one of them can answer "released": the owner,
// who decides, has not looked yet. Every peer may write it, and nothing the owner does hangs on it: a peer
// that spoils it spoils a word of an answer, and nothing else.
#pragma once

#include <atomic>
#include <cstdint>

#include "slabpool/request/slot.hpp"

namespace slabpool {

class AckTally {
 public:
  // Device `bit` acknowledges the request in `slot`. True for the one caller that leaves no holder behind, as far as the owner's
  // word and the other devices' acks say.
  bool leave(std::uint32_t slot, const HolderSet& holders, std::uint64_t generation,
             HolderBit bit) noexcept {
    const auto tag = static_cast<std::uint32_t>(generation);
    std::atomic<std::uint64_t>& word = left(slot, bit.word);
    std::uint64_t now = word.load(std::memory_order_relaxed);
    // Sequentially consistent, here and in the reading below: of devices that leave at once, in words
    // of their own, the later sees the earlier.
    while (!word.compare_exchange_weak(now, of_tag(now, tag) | bit.mask, std::memory_order_seq_cst,
                                       std::memory_order_relaxed)) {
    }
    bool held = false;
    const bool current = holders.each_word(tag, [&](std::uint32_t w, std::uint32_t bits) {
      const std::uint64_t gone = of_tag(left(slot, w).load(std::memory_order_seq_cst), tag);
      held = held || (bits & ~static_cast<std::uint32_t>(gone)) != 0;
    });
    if (!current || held) return false;
    // More than one may have come here. Relaxed: nothing but the answer hangs on it.
    std::atomic<std::uint64_t>& told = first_[slot].told;
    std::uint64_t last = told.load(std::memory_order_relaxed);
    return last != generation &&
           told.compare_exchange_strong(last, generation, std::memory_order_relaxed);
  }

  // Device `bit` is named again. By the owner.
  void rejoin(std::uint32_t slot, std::uint64_t generation, HolderBit bit) noexcept {
    std::atomic<std::uint64_t>& word = left(slot, bit.word);
    std::uint64_t now = word.load(std::memory_order_relaxed);
    // Relaxed: the device learns of it through the holders, which are told after this.
    while (now >> 32 == static_cast<std::uint32_t>(generation) && (now & bit.mask) != 0 &&
           !word.compare_exchange_weak(now, now & ~std::uint64_t{bit.mask}, std::memory_order_relaxed)) {
    }
  }

 private:
  // The word's holders if it is of this generation, else none.
  static std::uint64_t of_tag(std::uint64_t word, std::uint32_t tag) noexcept {
    return word >> 32 == tag ? word : std::uint64_t{tag} << 32;
  }

  std::atomic<std::uint64_t>& left(std::uint32_t slot, std::uint32_t word) noexcept {
    return word == 0 ? first_[slot].left : more_[slot][word - 1];
  }

  // Close together, because most requests need no more: a device that acknowledges many then touches few
  // pages.
  struct First {
    std::atomic<std::uint64_t> told;  // generation whose end was answered
    std::atomic<std::uint64_t> left;  // the first word of those that have left
  };
  First first_[kMaxRequests];
  std::atomic<std::uint64_t> more_[kMaxRequests][HolderSet::kWords - 1];
};

}  // namespace slabpool
