// A set of live tensors of very different sizes, in which one after another is replaced.
//
// live_set: 1,000 tensors, time of one replacement. churn: 10,000 tensors; every allocation is timed
// alone, for the tail of the distribution, and the committed bytes of the pool are recorded. Slots and
// sizes are drawn beforehand.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>

#include "heaps.hpp"
#include "timing.hpp"

struct Step {
  std::uint32_t slot;
  std::uint32_t bytes;
};

struct Sizes {
  double least;
  double most;
  std::uint32_t grain;         // sizes are rounded up to a multiple of it
  unsigned to_a_doubling = 0;  // number of sizes per doubling; 0: any size
};

// Draws the slot and the new size of each step: slots at random, sizes log-uniform.
inline std::vector<Step> draw_steps(std::size_t count, std::uint32_t slots, const Sizes& sizes,
                                    unsigned seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<std::uint32_t> slot(0, slots - 1);
  std::uniform_real_distribution<double> power(std::log2(sizes.least), std::log2(sizes.most));
  std::vector<Step> steps(count);
  for (Step& step : steps) {
    double p = power(random);
    if (sizes.to_a_doubling > 0) p = std::round(p * sizes.to_a_doubling) / sizes.to_a_doubling;
    const auto bytes = static_cast<std::uint32_t>(std::exp2(p));
    step = {slot(random), std::min<std::uint32_t>((bytes + sizes.grain - 1) / sizes.grain * sizes.grain,
                                                  static_cast<std::uint32_t>(sizes.most))};
  }
  return steps;
}

template <typename Heap>
Report live_set(const Options& options, unsigned to_a_doubling) {
  constexpr std::uint32_t kLive = 1000;
  Heap heap(std::uint64_t{64} << 30);
  const std::vector<Step> steps = draw_steps(1 << 16, kLive, {4096, 64 << 20, 4096, to_a_doubling}, 1);
  std::vector<typename Heap::Ref> live(kLive);
  for (std::uint32_t i = 0; i < kLive; ++i) live[i] = must(heap.allocate(steps[i].bytes));
  std::size_t at = 0;
  const auto replace = [&](std::uint64_t loops) {
    const double start = now();
    for (std::uint64_t i = 0; i < loops; ++i) {
      const Step step = steps[at++ % steps.size()];
      heap.free(live[step.slot]);
      live[step.slot] = must(heap.allocate(step.bytes));
    }
    return now() - start;
  };
  // Every size occurs once before anything is timed.
  replace(steps.size());
  Report report{{"time", "s", seconds_per_loop(options, replace)}};
  for (const auto ref : live) heap.free(ref);
  return report;
}

inline double quantile(std::vector<double>& values, double q) {
  const auto at =
      values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

// The cost of reading the clock twice with nothing in between: the least seen, so that no part of an
// allocation is subtracted with it.
inline std::uint64_t clock_cost() {
  std::uint64_t least = ~std::uint64_t{0};
  for (int i = 0; i < 100000; ++i) {
    const std::uint64_t first = ticks();
    least = std::min(least, ticks() - first);
  }
  return least;
}

template <typename Heap>
Report churn(const Options& options) {
  constexpr std::uint32_t kLive = 10000;
  // Live bytes come to about 10 GB, a third less than the pool may commit.
  Heap heap(std::uint64_t{15} << 30);
  const std::vector<Step> steps = draw_steps(1 << 20, kLive, {1024, 8 << 20, 1}, 2);
  std::vector<typename Heap::Ref> live(kLive);
  std::vector<std::uint32_t> bytes(kLive);
  std::uint64_t asked = 0, peak_asked = 0;
  for (std::uint32_t i = 0; i < kLive; ++i) {
    live[i] = must(heap.allocate(bytes[i] = steps[i].bytes));
    asked += bytes[i];
  }
  const double tick = seconds_per_tick();
  const std::uint64_t cost = clock_cost();
  std::vector<double> taken;
  taken.reserve(steps.size());
  Report report{{"median", "s", {}}, {"p99.9", "s", {}}, {"worst", "s", {}}, {"tail", "", {}}};
  for (unsigned v = 0; v < options.values; ++v) {
    taken.clear();
    for (const Step step : steps) {
      heap.free(live[step.slot]);
      const std::uint64_t start = ticks();
      const auto ref = heap.allocate(step.bytes);
      const std::uint64_t end = ticks();
      live[step.slot] = must(ref);
      asked += step.bytes - std::uint64_t{bytes[step.slot]};
      bytes[step.slot] = step.bytes;
      peak_asked = std::max(peak_asked, asked);
      taken.push_back(static_cast<double>(std::max(end - start, cost + 1) - cost) * tick);
    }
    const double tail = quantile(taken, 0.999), median = quantile(taken, 0.5);
    report[0].values.push_back(median);
    report[1].values.push_back(tail);
    report[2].values.push_back(quantile(taken, 1));
    report[3].values.push_back(tail / median);
  }
  if constexpr (std::is_same_v<Heap, SlabpoolHeap>) {
    const slabpool::Stats stats = heap.pool->stats();
    const auto committed = static_cast<double>(stats.peak_committed);
    report.push_back({"committed/live", "", {committed / static_cast<double>(stats.peak_live)}});
    report.push_back({"committed/asked for", "", {committed / static_cast<double>(peak_asked)}});
  }
  for (const auto ref : live) heap.free(ref);
  return report;
}
