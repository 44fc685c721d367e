// A set of page numbers that answers "the largest one up to here": two levels of words, 4,096 pages to
// one of the upper. Costs memory only where pages are in use. Changed by one thread at a time.
//
// floor() may run meanwhile, without a lock, if the answer cannot change: its bit stays set and no page
// between the two comes or goes. Then every word it looks at shows that, whatever else is changed in it, and
// relaxed loads do: the caller learnt of the answer's bit through whatever told it of the page.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

#include "slabpool/memory/virtual_array.hpp"

namespace slabpool {

class PageBits {
 public:
  explicit PageBits(std::uint64_t pages) : words_(pages / 64 + 1), used_(pages / 4096 + 1) {}

  void set(std::uint64_t page) noexcept {
    put(words_[page / 64], get(words_[page / 64]) | bit(page));
    put(used_[page / 4096], get(used_[page / 4096]) | bit(page / 64));
  }
  void clear(std::uint64_t page) noexcept {
    const std::uint64_t left = get(words_[page / 64]) & ~bit(page);
    put(words_[page / 64], left);
    if (left == 0) put(used_[page / 4096], get(used_[page / 4096]) & ~bit(page / 64));
  }
  // There must be one.
  std::uint64_t floor(std::uint64_t page) const noexcept {
    std::uint64_t word = get(words_[page / 64]) & up_to(page);
    std::uint64_t at = page / 64;
    if (word == 0) {
      std::uint64_t upper = at / 64;
      std::uint64_t used = get(used_[upper]) & (up_to(at) >> 1);  // without `at` itself
      while (used == 0) used = get(used_[--upper]);
      at = upper * 64 + top(used);
      word = get(words_[at]);
    }
    return at * 64 + top(word);
  }

 private:
  using Word = std::atomic<std::uint64_t>;
  // Relaxed, and stores in place of locked operations: one thread changes them, see above.
  static std::uint64_t get(const Word& word) noexcept { return word.load(std::memory_order_relaxed); }
  static void put(Word& word, std::uint64_t value) noexcept {
    word.store(value, std::memory_order_relaxed);
  }
  static constexpr std::uint64_t bit(std::uint64_t i) noexcept { return std::uint64_t{1} << (i % 64); }
  static constexpr std::uint64_t up_to(std::uint64_t i) noexcept {
    return ~std::uint64_t{0} >> (63 - i % 64);
  }
  static std::uint64_t top(std::uint64_t word) noexcept {
    return 63 - static_cast<std::uint64_t>(std::countl_zero(word));
  }

  VirtualArray<Word> words_;
  VirtualArray<Word> used_;
};

}  // namespace slabpool
