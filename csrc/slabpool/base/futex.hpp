// Sleeping on a word of memory that processes share: Linux's futex.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstdint>

namespace slabpool {

// The half of a 64-bit word that the kernel compares: its low 32 bits.
inline const void* futex_half(const std::atomic<std::uint64_t>& word) noexcept {
  static_assert(std::endian::native == std::endian::little);
  return &word;
}

// Sleeps while the low half of the word is `low`, until futex_wake() or for `ns` (more than 0) at most; may return early.
// The word may be mapped for reading only. False: the system refuses to sleep on it.
inline bool futex_wait(const std::atomic<std::uint64_t>& word, std::uint32_t low,
                       std::int64_t ns) noexcept {
  constexpr std::int64_t kSecond = 1'000'000'000;
  const timespec most{static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
  return syscall(SYS_futex, futex_half(word), FUTEX_WAIT, low, &most, nullptr, 0) == 0 ||
         errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT;
}

// Wakes all threads, of whatever process, that sleep on the word. Never waits.
inline void futex_wake(const std::atomic<std::uint64_t>& word) noexcept {
  (void)syscall(SYS_futex, futex_half(word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace slabpool
