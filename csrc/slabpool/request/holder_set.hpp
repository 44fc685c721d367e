// The holders of a request: one bit for the host, one for each device.
//
// Each word carries the bits of 16 holders and above them the generation that it belongs to, whole: a pool has 2^48 - 1
// generations and uses none twice (RequestTable::open). A holder leaves by a compare-and-swap that checks both, so an ack
// that is late, repeated, or made by two threads at once can never clear a bit of another request in the same slot. Plain
// atomic words and no pointers: the same code works on shared memory.
// The first word of each request is beside those of other requests, the others are far away, because few requests have
// more than 15 devices: an open request then costs 64 bytes and not a page.
// Invariants:
//   a bit of `pending` is set only if the bit of `named` is set in the same generation;
//   of the holders that leave a request, at least one is answered `last`; with several words more than one may be, and
//   RequestTable::claim() decides between them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "slabpool/base/assert.hpp"

namespace slabpool {

inline constexpr std::uint32_t kMaxDevices = 4096;
inline constexpr std::uint32_t kHoldersPerWord = 16;
// 77 years at 115,000 requests a second, which is what one thread opens from Python.
inline constexpr std::uint64_t kMaxGeneration = (std::uint64_t{1} << (64 - kHoldersPerWord)) - 1;

struct HolderBit {
  std::uint64_t word;
  std::uint64_t mask;
};
inline constexpr HolderBit kHost{0, 1};
constexpr HolderBit device_bit(std::uint32_t device) noexcept {
  // In 64 bits, or the largest number would be the host's.
  const std::uint64_t bit = std::uint64_t{device} + 1;
  return {bit / kHoldersPerWord, std::uint64_t{1} << (bit % kHoldersPerWord)};
}

// Generation and holders, as one word of a set or of the acks that peers publish to each other.
class HolderWord {
 public:
  constexpr HolderWord(std::uint64_t generation, std::uint64_t bits) noexcept
      : word_(generation << kHoldersPerWord | bits) {}
  explicit constexpr HolderWord(std::uint64_t word) noexcept : word_(word) {}
  // Of all 64 bits, so an integer that is no generation equals none.
  constexpr std::uint64_t generation() const noexcept { return word_ >> kHoldersPerWord; }
  constexpr std::uint64_t bits() const noexcept {
    return word_ & ((std::uint64_t{1} << kHoldersPerWord) - 1);
  }
  constexpr std::uint64_t value() const noexcept { return word_; }

 private:
  std::uint64_t word_;
};

struct HolderWords {
  std::atomic<std::uint64_t> pending;
  std::atomic<std::uint64_t> named;
};
struct FirstHolders {
  HolderWords word;
  std::atomic<std::uint32_t> words;  // in use; the words beyond are of older generations
};
struct MoreHolders {
  static constexpr std::uint32_t kWords = (1 + kMaxDevices + kHoldersPerWord - 1) / kHoldersPerWord - 1;
  HolderWords word[kWords];
};

// Holders of any requests, as bits of words.
struct HolderMarks {
  std::uint64_t words[1 + MoreHolders::kWords] = {};
  bool has(HolderBit bit) const noexcept { return (words[bit.word] & bit.mask) != 0; }
  void add(HolderBit bit) noexcept { words[bit.word] |= bit.mask; }
  bool contain(const HolderMarks& others) const noexcept {
    for (std::size_t w = 0; w < std::size(words); ++w)
      if ((others.words[w] & ~words[w]) != 0) return false;
    return true;
  }
};

// The holders of one slot, for a process that may read them.
class HolderView {
 public:
  static constexpr std::uint32_t kWords = 1 + MoreHolders::kWords;

  HolderView(const FirstHolders& first, const MoreHolders& more) noexcept : first_(first), more_(more) {}

  // True if the set is of this generation and has no holder. `words` is read as in each_word().
  bool empty(std::uint64_t generation) const noexcept {
    std::uint32_t w = 0;
    do {
      if (at(w).pending.load(std::memory_order_seq_cst) != HolderWord(generation, 0).value())
        return false;
    } while (++w < first_.words.load(std::memory_order_acquire));
    return true;
  }

  bool holds(std::uint64_t generation, HolderBit bit) const noexcept {
    return has(&HolderWords::pending, generation, bit, std::memory_order_acquire);
  }
  // The same, sequentially consistent: for a caller that has published something a holder looks for after it leaves.
  bool holds_now(std::uint64_t generation, HolderBit bit) const noexcept {
    return has(&HolderWords::pending, generation, bit, std::memory_order_seq_cst);
  }
  bool was_named(std::uint64_t generation, HolderBit bit) const noexcept {
    return has(&HolderWords::named, generation, bit, std::memory_order_acquire);
  }

  // Calls f(word, bits) for each word of holders while it is of this generation; false if a word was not. `words` is read
  // after the first word: once that shows that the host has left, no word is added, so a set that is found without holders
  // has none.
  template <typename F>
  bool each_word(std::uint64_t generation, F&& f) const {
    std::uint32_t w = 0;
    do {
      const HolderWord now(at(w).pending.load(std::memory_order_seq_cst));
      if (now.generation() != generation) return false;
      f(w, now.bits());
    } while (++w < first_.words.load(std::memory_order_acquire) && w < kWords);
    return true;
  }

  // Adds the holders of this generation to `marks`; with `left`, also those that have left. Whether one of `wanted` was
  // added.
  bool mark(std::uint64_t generation, bool left, const HolderMarks& wanted,
            HolderMarks& marks) const noexcept {
    const std::uint32_t words = first_.words.load(std::memory_order_acquire);
    std::uint64_t added = 0;
    for (std::uint32_t w = 0; w < words; ++w) {
      const HolderWord now((left ? at(w).named : at(w).pending).load(std::memory_order_acquire));
      if (now.generation() != generation) break;
      added |= now.bits() & wanted.words[w] & ~marks.words[w];
      marks.words[w] |= now.bits();
    }
    return added != 0;
  }

  // Calls f(device) for each device that holds, in order of their numbers.
  template <typename F>
  void each_device(std::uint64_t generation, F&& f) const {
    const std::uint32_t words = first_.words.load(std::memory_order_acquire);
    for (std::uint32_t w = 0; w < words; ++w) {
      const HolderWord now(at(w).pending.load(std::memory_order_acquire));
      if (now.generation() != generation) return;
      for (std::uint64_t bits = now.bits() & ~(w == 0 ? kHost.mask : 0); bits != 0; bits &= bits - 1) {
        f(w * kHoldersPerWord + static_cast<std::uint32_t>(__builtin_ctzll(bits)) - 1);
      }
    }
  }

 private:
  const HolderWords& at(std::uint64_t word) const noexcept {
    return word == 0 ? first_.word : more_.word[word - 1];
  }
  bool has(std::atomic<std::uint64_t> HolderWords::*which, std::uint64_t generation, HolderBit bit,
           std::memory_order order) const noexcept {
    if (bit.word >= first_.words.load(std::memory_order_acquire)) return false;
    const HolderWord now((at(bit.word).*which).load(order));
    return now.generation() == generation && (now.bits() & bit.mask) != 0;
  }

  const FirstHolders& first_;
  const MoreHolders& more_;
};

class HolderSet : public HolderView {
 public:
  enum class Left {
    others_hold,  // the bit is cleared, others hold on
    last,         // the bit is cleared, and none is left
    absent,       // the bit was not set; why_absent() says why
    before,       // this holder had left before
    never,        // this holder was never named
    gone,         // another generation has the slot
  };

  HolderSet(FirstHolders& first, MoreHolders& more) noexcept
      : HolderView(first, more), first_(first), more_(more) {}

  // For a free slot: a set of this generation that the host holds, and the devices of `bits`, which are of the first word.
  // Release: a thread that reads a word of this generation sees the set as it was opened.
  void open(std::uint64_t generation, std::uint64_t bits = kHost.mask) noexcept {
    SLABPOOL_ASSERT(generation != 0 && generation <= kMaxGeneration,
                    "a generation fits a word of holders", generation);
    const std::uint64_t all = HolderWord(generation, bits).value();
    first_.word.named.store(all, std::memory_order_relaxed);
    first_.word.pending.store(all, std::memory_order_release);
    first_.words.store(1, std::memory_order_release);
  }

  // Names a holder. Only while the host holds and cannot leave meanwhile (under the table's mutex).
  void add(std::uint64_t generation, HolderBit bit) noexcept {
    const std::uint32_t words = first_.words.load(std::memory_order_relaxed);
    for (std::uint64_t w = words; w <= bit.word; ++w) {
      at(w).named.store(HolderWord(generation, 0).value(), std::memory_order_relaxed);
      at(w).pending.store(HolderWord(generation, 0).value(), std::memory_order_relaxed);
    }
    if (bit.word >= words)
      first_.words.store(static_cast<std::uint32_t>(bit.word + 1), std::memory_order_release);
    at(bit.word).named.fetch_or(bit.mask, std::memory_order_relaxed);
    // Release: an ack that sees the bit sees it named.
    at(bit.word).pending.fetch_or(bit.mask, std::memory_order_release);
  }

  // others_hold, last or absent. Inlined by force, because it is most of an ack, and the compiler's choice changes with the
  // number of callers.
  [[gnu::always_inline]] Left try_leave(std::uint64_t generation, HolderBit bit) noexcept {
    std::atomic<std::uint64_t>* word = &first_.word.pending;
    if (bit.word != 0) {
      if (bit.word >= kWords) [[unlikely]]
        return Left::absent;
      word = &more_.word[bit.word - 1].pending;
    }
    std::atomic<std::uint64_t>& pending = *word;
    std::uint64_t now = pending.load(std::memory_order_acquire);
    do {
      if (HolderWord(now).generation() != generation || (now & bit.mask) == 0) [[unlikely]]
        return Left::absent;
      // Release publishes what this holder did with the memory; acquire lets the last holder see what the others did.
      // Sequentially consistent, because with several words two holders that leave at once must not each see the
      // other's bit still set.
    } while (!pending.compare_exchange_weak(now, now ^ bit.mask, std::memory_order_seq_cst,
                                            std::memory_order_acquire));
    if (HolderWord(now).bits() != bit.mask) return Left::others_hold;
    // Read again: the host may have named a device in another word and left before this holder did.
    if (first_.words.load(std::memory_order_acquire) == 1) return Left::last;
    return empty(generation) ? Left::last : Left::others_hold;
  }
  // The same with the reason.
  Left leave(std::uint64_t generation, HolderBit bit) noexcept {
    const Left left = try_leave(generation, bit);
    return left == Left::absent ? why_absent(generation, bit) : left;
  }

  // The holders in `gone`, of which none holds, count as never named. Under the table's mutex.
  void forget_named(std::uint64_t generation, const HolderMarks& gone) noexcept {
    const std::uint32_t words = first_.words.load(std::memory_order_acquire);
    for (std::uint32_t w = 0; w < words; ++w) {
      if (HolderWord(at(w).named.load(std::memory_order_relaxed)).generation() != generation) return;
      (void)at(w).named.fetch_and(~gone.words[w], std::memory_order_relaxed);
    }
  }

  // The answer to a holder whose bit is not set. A bit that has been set since belongs to a hold that began later.
  Left why_absent(std::uint64_t generation, HolderBit bit) const noexcept {
    // The first word: those beyond the ones in use are of older generations.
    if (HolderWord(first_.word.pending.load(std::memory_order_acquire)).generation() != generation)
      return Left::gone;
    return was_named(generation, bit) ? Left::before : Left::never;
  }
  // Every holder leaves; true if there was any.
  bool cut(std::uint64_t generation) noexcept {
    bool any = false;
    const std::uint32_t words = first_.words.load(std::memory_order_acquire);
    for (std::uint32_t w = 0; w < words; ++w) {
      std::uint64_t now = at(w).pending.load(std::memory_order_acquire);
      while (HolderWord(now).generation() == generation && HolderWord(now).bits() != 0) {
        // As in leave().
        if (at(w).pending.compare_exchange_weak(now, HolderWord(generation, 0).value(),
                                                std::memory_order_seq_cst, std::memory_order_acquire)) {
          any = true;
          break;
        }
      }
    }
    return any;
  }

 private:
  HolderWords& at(std::uint64_t word) noexcept { return word == 0 ? first_.word : more_.word[word - 1]; }

  FirstHolders& first_;
  MoreHolders& more_;
};

}  // namespace slabpool
