// The one clock of the pool: monotonic nanoseconds, the same that Python's time.monotonic_ns() reads.
#pragma once

#include <time.h>

#include <cstdint>

namespace slabpool {

inline std::int64_t now_ns() noexcept {
  timespec t{};
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

// The same clock as of the kernel's last tick (1 to 10 ms ago), for a quarter of the instructions.
inline std::int64_t coarse_now_ns() noexcept {
  timespec t{};
  (void)clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

}  // namespace slabpool
