// Addition to an atomic word that no other thread writes meanwhile, in one instruction that is not locked.
//
// A relaxed load and store would do, but compilers make three instructions of them where x86-64 adds to memory with one. Other
// threads read the word before or after it, because an atomic word is aligned.
#pragma once

#include <atomic>

#include "slabpool/base/sanitizers.hpp"

namespace slabpool {

// Relaxed, as is subtract_alone().
template <typename Integer>
void add_alone(std::atomic<Integer>& word, Integer n) noexcept {
  static_assert(sizeof(word) == 8);
#if defined(__x86_64__) && !SLABPOOL_TSAN
  __asm__("addq %1, %0" : "+m"(word) : "re"(n) : "cc");
#else
  word.store(word.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
#endif
}

template <typename Integer>
void subtract_alone(std::atomic<Integer>& word, Integer n) noexcept {
  static_assert(sizeof(word) == 8);
#if defined(__x86_64__) && !SLABPOOL_TSAN
  __asm__("subq %1, %0" : "+m"(word) : "re"(n) : "cc");
#else
  word.store(word.load(std::memory_order_relaxed) - n, std::memory_order_relaxed);
#endif
}

}  // namespace slabpool
