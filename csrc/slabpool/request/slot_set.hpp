// A set of request slots that finds its members in order: see FreeSlots.
//
// One bit a slot, and one bit for each word that may be used: finding the next member looks at the words of the upper level
// (16), and at each word that became empty once. erase() does not look whether its word is empty, which makes it a third
// cheaper; next() does. Not synchronised: the table's mutex guards it.
#pragma once

#include <cstdint>

#include "slabpool/request/slot.hpp"

namespace slabpool {

class SlotSet {
 public:
  static constexpr std::uint32_t kNone = kMaxRequests;

  void insert(std::uint32_t slot) noexcept {
    words_[slot / 64] |= bit(slot);
    used_words_[slot / 4096] |= bit(slot / 64);
  }
  void erase(std::uint32_t slot) noexcept { words_[slot / 64] &= ~bit(slot); }
  // Of a group, so many slots in a row.
  static constexpr std::uint32_t kGroup = 64;
  bool has_all(std::uint32_t group) const noexcept { return words_[group] == ~std::uint64_t{0}; }
  void erase_all(std::uint32_t group) noexcept { words_[group] = 0; }
  void insert_all(std::uint32_t group) noexcept {
    words_[group] = ~std::uint64_t{0};
    used_words_[group / 64] |= bit(group);
  }
  // The first member from `slot` on; kNone: there is none.
  std::uint32_t next(std::uint32_t slot) noexcept {
    if (slot >= kMaxRequests) return kNone;
    if (const std::uint64_t here = words_[slot / 64] & from(slot)) return slot / 64 * 64 + lowest(here);
    std::uint32_t word = slot / 64 + 1;
    if (word == kWords) return kNone;
    std::uint64_t used = used_words_[word / 64] & from(word);
    for (std::uint32_t upper = word / 64;;) {
      for (; used != 0; used &= used - 1) {
        word = upper * 64 + lowest(used);
        if (words_[word] != 0) return word * 64 + lowest(words_[word]);
        used_words_[upper] &= ~bit(word);
      }
      if (++upper == kWords / 64) return kNone;
      used = used_words_[upper];
    }
  }

 private:
  static constexpr std::uint32_t kWords = kMaxRequests / 64;
  static constexpr std::uint64_t bit(std::uint32_t index) noexcept {
    return std::uint64_t{1} << index % 64;
  }
  // The bits of a word from `index` on.
  static constexpr std::uint64_t from(std::uint32_t index) noexcept {
    return ~std::uint64_t{0} << index % 64;
  }
  static std::uint32_t lowest(std::uint64_t bits) noexcept {
    return static_cast<std::uint32_t>(__builtin_ctzll(bits));
  }

  std::uint64_t words_[kWords]{};
  std::uint64_t used_words_[kWords / 64]{};  // bit w: words_[w] may not be 0
};

}  // namespace slabpool
