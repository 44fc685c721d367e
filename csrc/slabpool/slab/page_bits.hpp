// A set of page numbers that answers "the largest one up to here": two levels of words, 4,096 pages to
// one of the upper. Costs memory only where pages are in use. Not thread-safe.
#pragma once

#include <bit>
#include <cstdint>

#include "slabpool/memory/virtual_array.hpp"

namespace slabpool {

class PageBits {
 public:
  explicit PageBits(std::uint64_t pages) : words_(pages / 64 + 1), used_(pages / 4096 + 1) {}

  void set(std::uint64_t page) noexcept {
    words_[page / 64] |= bit(page);
    used_[page / 4096] |= bit(page / 64);
  }
  void clear(std::uint64_t page) noexcept {
    if ((words_[page / 64] &= ~bit(page)) == 0) used_[page / 4096] &= ~bit(page / 64);
  }
  // There must be one.
  std::uint64_t floor(std::uint64_t page) const noexcept {
    std::uint64_t word = words_[page / 64] & up_to(page);
    std::uint64_t at = page / 64;
    if (word == 0) {
      std::uint64_t upper = at / 64;
      std::uint64_t used = used_[upper] & (up_to(at) >> 1);  // without `at` itself
      while (used == 0) used = used_[--upper];
      at = upper * 64 + top(used);
      word = words_[at];
    }
    return at * 64 + top(word);
  }

 private:
  static constexpr std::uint64_t bit(std::uint64_t i) noexcept { return std::uint64_t{1} << (i % 64); }
  static constexpr std::uint64_t up_to(std::uint64_t i) noexcept {
    return ~std::uint64_t{0} >> (63 - i % 64);
  }
  static std::uint64_t top(std::uint64_t word) noexcept {
    return 63 - static_cast<std::uint64_t>(std::countl_zero(word));
  }

  VirtualArray<std::uint64_t> words_;
  VirtualArray<std::uint64_t> used_;
};

}  // namespace slabpool
