// A set of page numbers that finds the largest member up to a page. Two levels of words; one word of the upper level
// covers 4,096 pages. Memory is used only near pages that were ever in the set. One thread at a time changes it.
//
// A page is added only after open() has returned true for it. Every page may be asked for.
//
// floor() may run at the same time, without a lock, if its answer cannot change: the answer stays in the set and no page
// between it and the argument is added or removed. Every word that floor() reads then leads to that answer, whatever
// other bits of it change. Relaxed loads suffice: the caller learnt of the page after the answer's bit was set.
//
// Invariants:
//   bit i of used_ is set  <=>  words_[i] != 0
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

#include "slabpool/base/assert.hpp"
#include "slabpool/memory/virtual_array.hpp"

namespace slabpool {

class PageBits {
 public:
  explicit PageBits(std::uint64_t pages) : words_(pages / 64 + 1), used_(pages / 4096 + 1) {}

  // Makes room for pages [first, end). False if the system refuses.
  bool open(std::uint64_t first, std::uint64_t end) noexcept {
    return words_.open(first / 64, (end - 1) / 64 + 1) && used_.open(first / 4096, (end - 1) / 4096 + 1);
  }
  std::size_t open_bytes() const noexcept { return words_.open_bytes() + used_.open_bytes(); }
  void set(std::uint64_t page) noexcept {
    SLABPOOL_ASSERT(!contains(page), "a page is added once", page);
    SLABPOOL_ASSERT(words_.is_writable(page / 64) && used_.is_writable(page / 4096),
                    "a page is added where the set is open", page);
    put(words_[page / 64], get(words_[page / 64]) | bit(page));
    put(used_[page / 4096], get(used_[page / 4096]) | bit(page / 64));
  }
  void clear(std::uint64_t page) noexcept {
    SLABPOOL_ASSERT(contains(page), "only a member is removed", page);
    const std::uint64_t left = get(words_[page / 64]) & ~bit(page);
    put(words_[page / 64], left);
    if (left == 0) put(used_[page / 4096], get(used_[page / 4096]) & ~bit(page / 64));
  }
  bool contains(std::uint64_t page) const noexcept { return (get(words_[page / 64]) & bit(page)) != 0; }
  // The largest member up to `page`. The set must have one.
  std::uint64_t floor(std::uint64_t page) const noexcept {
    std::uint64_t word = get(words_[page / 64]) & up_to(page);
    std::uint64_t at = page / 64;
    if (word == 0) {
      std::uint64_t upper = at / 64;
      std::uint64_t used = get(used_[upper]) & (up_to(at) >> 1);  // without `at` itself
      while (used == 0) {
        SLABPOOL_ASSERT(upper != 0, "some member is not above the page", page);
        used = get(used_[--upper]);
      }
      at = upper * 64 + top(used);
      word = get(words_[at]);
      SLABPOOL_ASSERT(word != 0, "a bit of the upper level marks a word with members", page, at);
    }
    return at * 64 + top(word);
  }

 private:
  using Word = std::atomic<std::uint64_t>;
  // Relaxed, and stores in place of locked operations: one thread at a time changes them.
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
