// Clocks, and the number of loops: as in pyperf, it is doubled until one repetition lasts long enough,
// one more repetition warms up and is discarded, and the rest are reported.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "report.hpp"
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Marks the value as used, because the compiler may drop an allocation whose memory is never written.
template <typename T>
inline void used(const T& value) {
  asm volatile("" : : "r"(value) : "memory");
}

// `run(loops)` does the work `loops` times and returns the seconds it took.
template <typename Run>
std::uint64_t calibrate(const Options& options, Run&& run) {
  std::uint64_t loops = 1;
  while (run(loops) < options.seconds) loops *= 2;
  return loops;
}

template <typename Run>
std::vector<double> seconds_per_loop(const Options& options, Run&& run) {
  const std::uint64_t loops = calibrate(options, run);
  run(loops);
  std::vector<double> values;
  for (unsigned v = 0; v < options.values; ++v)
    values.push_back(run(loops) / static_cast<double>(loops));
  return values;
}

// Ticks of the cheapest clock that is ordered after all earlier instructions. For single operations of
// some ten nanoseconds, because reading the system's clock would cost more than the operation.
inline std::uint64_t ticks() {
#if defined(__x86_64__)
  unsigned core;
  const std::uint64_t t = __rdtscp(&core);
  _mm_lfence();
  return t;
#elif defined(__aarch64__)
  std::uint64_t t;
  asm volatile("isb; mrs %0, cntvct_el0" : "=r"(t) : : "memory");
  return t;
#else
#error "no cheap clock known for this machine"
#endif
}

inline double seconds_per_tick() {
  const double start = now();
  const std::uint64_t first = ticks();
  while (now() - start < 0.05) {
  }
  const std::uint64_t last = ticks();
  return (now() - start) / static_cast<double>(last - first);
}
