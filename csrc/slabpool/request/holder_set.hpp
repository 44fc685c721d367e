// Who still holds a request: one bit for the host, one for each device.
//
// Each word carries 32 holders and, in its upper half, the *tag* of the generation it belongs to. A holder leaves by a
// compare-and-swap that checks both, so an ack that comes late, twice, or from two threads at once can never clear a bit of
// the next request in the same slot. Plain atomic words and no pointers: the same code works on shared memory.
// Invariants:
//   a bit of pending_ is set only if the bit of named_ is set in the same generation;
//   of the holders that leave a request, at least one is answered `last`; with several words more than one may be, and
//   RequestTable::claim() decides between them.
#pragma once

#include <atomic>
#include <cstdint>

namespace slabpool {

inline constexpr std::uint32_t kMaxDevices = 4096;

struct HolderBit {
  std::uint32_t word;
  std::uint32_t mask;
};
inline constexpr HolderBit kHost{0, 1};
constexpr HolderBit device_bit(std::uint32_t device) noexcept {
  // In 64 bits, or the largest number would be the host's.
  const std::uint64_t bit = std::uint64_t{device} + 1;
  return {static_cast<std::uint32_t>(bit / 32), std::uint32_t{1} << (bit % 32)};
}

class HolderSet {
 public:
  static constexpr std::uint32_t kWords = (1 + kMaxDevices + 31) / 32;

  enum class Left {
    others_hold,  // the bit is cleared, others hold on
    last,         // the bit is cleared, and none is left
    before,       // this holder had left before
    never,        // this holder was never named
    gone,         // another generation has the slot
  };

  // For a free slot: a set of this generation that only the host holds. Release: a thread that reads a word with the new
  // tag sees the set as it was opened.
  void open(std::uint32_t tag, std::uint32_t words) noexcept {
    for (std::uint32_t w = 0; w < words; ++w) {
      const std::uint64_t host = w == kHost.word ? kHost.mask : 0;
      named_[w].store(pack(tag, 0) | host, std::memory_order_relaxed);
      pending_[w].store(pack(tag, 0) | host, std::memory_order_release);
    }
    words_.store(words, std::memory_order_release);
  }

  // Names a holder. Only while the host holds and cannot leave meanwhile (under the table's mutex).
  void add(std::uint32_t tag, HolderBit bit) noexcept {
    const std::uint32_t words = words_.load(std::memory_order_relaxed);
    for (std::uint32_t w = words; w <= bit.word; ++w) {
      named_[w].store(pack(tag, 0), std::memory_order_relaxed);
      pending_[w].store(pack(tag, 0), std::memory_order_relaxed);
    }
    if (bit.word >= words) words_.store(bit.word + 1, std::memory_order_release);
    named_[bit.word].fetch_or(bit.mask, std::memory_order_relaxed);
    // Release: an ack that sees the bit sees it named.
    pending_[bit.word].fetch_or(bit.mask, std::memory_order_release);
  }

  // Inlined by force, because it is most of an ack, and the compiler's choice changes with the number of callers.
  [[gnu::always_inline]] Left leave(std::uint32_t tag, HolderBit bit) noexcept {
    const std::uint32_t words = words_.load(std::memory_order_acquire);
    if (bit.word >= words)
      return tag_of(pending_[0].load(std::memory_order_acquire)) == tag ? Left::never : Left::gone;
    std::atomic<std::uint64_t>& word = pending_[bit.word];
    std::uint64_t now = word.load(std::memory_order_acquire);
    do {
      if (tag_of(now) != tag) return Left::gone;
      if ((now & bit.mask) == 0) {
        const std::uint64_t named = named_[bit.word].load(std::memory_order_acquire);
        if (tag_of(named) != tag) return Left::gone;
        return (named & bit.mask) != 0 ? Left::before : Left::never;
      }
      // Release publishes what this holder did with the memory; acquire lets the last holder see what the others did.
      // Sequentially consistent, because with several words two holders that leave at once must not each see the
      // other's bit still set.
    } while (!word.compare_exchange_weak(now, now & ~std::uint64_t{bit.mask}, std::memory_order_seq_cst,
                                         std::memory_order_acquire));
    if (bits_of(now) != bit.mask) return Left::others_hold;
    // Read again: the host may have named a device in another word and left before this holder did.
    if (words_.load(std::memory_order_acquire) == 1) return Left::last;
    return empty(tag) ? Left::last : Left::others_hold;
  }

  // The answer of leave() to a device that does not hold; others_hold to one that does. Changes nothing.
  Left look(std::uint32_t tag, HolderBit bit) const noexcept {
    if (holds(tag, bit)) return Left::others_hold;
    if (tag_of(pending_[0].load(std::memory_order_acquire)) != tag) return Left::gone;
    return was_named(tag, bit) ? Left::before : Left::never;
  }

  // Every holder leaves; true if there was any.
  bool cut(std::uint32_t tag) noexcept {
    bool any = false;
    const std::uint32_t words = words_.load(std::memory_order_acquire);
    for (std::uint32_t w = 0; w < words; ++w) {
      std::uint64_t now = pending_[w].load(std::memory_order_acquire);
      while (tag_of(now) == tag && bits_of(now) != 0) {
        // As in leave().
        if (pending_[w].compare_exchange_weak(now, pack(tag, 0), std::memory_order_seq_cst,
                                              std::memory_order_acquire)) {
          any = true;
          break;
        }
      }
    }
    return any;
  }

  // True if the set is of this generation and has no holder.
  bool empty(std::uint32_t tag) const noexcept {
    const std::uint32_t words = words_.load(std::memory_order_acquire);
    for (std::uint32_t w = 0; w < words; ++w) {
      const std::uint64_t now = pending_[w].load(std::memory_order_seq_cst);
      if (tag_of(now) != tag || bits_of(now) != 0) return false;
    }
    return true;
  }

  bool holds(std::uint32_t tag, HolderBit bit) const noexcept { return has(pending_, tag, bit); }
  // The same, sequentially consistent: for a caller that has published something a holder looks for after it leaves.
  bool holds_now(std::uint32_t tag, HolderBit bit) const noexcept {
    return has(pending_, tag, bit, std::memory_order_seq_cst);
  }
  bool was_named(std::uint32_t tag, HolderBit bit) const noexcept { return has(named_, tag, bit); }

  // Calls f(word, bits) for each word of holders while it is of this generation; false if a word was not. For peers,
  // which compare the holders with the acks in the tally. words_ is read after the host's word: once that shows that the
  // host has left, no word is added, so a set that is found without holders has none.
  template <typename F>
  bool each_word(std::uint32_t tag, F&& f) const {
    std::uint32_t w = 0;
    do {
      const std::uint64_t now = pending_[w].load(std::memory_order_seq_cst);
      if (tag_of(now) != tag) return false;
      f(w, bits_of(now));
    } while (++w < words_.load(std::memory_order_acquire) && w < kWords);
    return true;
  }

  // Calls f(device) for each device that holds, in order of their numbers.
  template <typename F>
  void each_device(std::uint32_t tag, F&& f) const {
    const std::uint32_t words = words_.load(std::memory_order_acquire);
    for (std::uint32_t w = 0; w < words; ++w) {
      const std::uint64_t now = pending_[w].load(std::memory_order_acquire);
      if (tag_of(now) != tag) return;
      for (std::uint32_t bits = bits_of(now) & ~(w == 0 ? kHost.mask : 0); bits != 0; bits &= bits - 1) {
        f(w * 32 + static_cast<std::uint32_t>(__builtin_ctz(bits)) - 1);
      }
    }
  }

 private:
  static std::uint64_t pack(std::uint32_t tag, std::uint32_t bits) noexcept {
    return std::uint64_t{tag} << 32 | bits;
  }
  static std::uint32_t tag_of(std::uint64_t word) noexcept {
    return static_cast<std::uint32_t>(word >> 32);
  }
  static std::uint32_t bits_of(std::uint64_t word) noexcept { return static_cast<std::uint32_t>(word); }

  bool has(const std::atomic<std::uint64_t>* set, std::uint32_t tag, HolderBit bit,
           std::memory_order order = std::memory_order_acquire) const noexcept {
    if (bit.word >= words_.load(std::memory_order_acquire)) return false;
    const std::uint64_t now = set[bit.word].load(order);
    return tag_of(now) == tag && (now & bit.mask) != 0;
  }

  std::atomic<std::uint32_t> words_;  // in use; the words beyond are of older generations
  std::atomic<std::uint64_t> pending_[kWords];
  std::atomic<std::uint64_t> named_[kWords];
};

}  // namespace slabpool
