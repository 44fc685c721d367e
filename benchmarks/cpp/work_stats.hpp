// Does stats() slow down a thread that allocates? Its time per allocate and free while the other core is
// idle, computes on its own memory, does so and calls stats() 1,000 times a second, and calls stats()
// without pause.
#pragma once

#include <atomic>
#include <thread>

#include "heaps.hpp"
#include "work_threads.hpp"

inline Report stats_load(const Options& options) {
  SlabpoolHeap heap(std::uint64_t{1} << 30);
  const auto allocating = [&](std::uint64_t loops) { return allocate_free(heap, options.bytes, loops); };
  const std::uint64_t loops = calibrate(options, allocating);
  const double scale = 1 / static_cast<double>(loops);

  std::uint64_t looks = 0;
  const auto beside = [&](auto&& busy) {
    std::atomic<bool> stop{false};
    Gate gate(2);
    std::thread other([&] {
      gate.pass();
      while (!stop.load(std::memory_order_relaxed)) busy();
    });
    gate.pass();
    const double seconds = allocating(loops);
    stop.store(true, std::memory_order_relaxed);
    other.join();
    return seconds;
  };

  Report report;
  const auto note = [&](const char* name, const char* unit, double value) {
    for (Metric& metric : report) {
      if (metric.name == name) return metric.values.push_back(value);
    }
    report.push_back({name, unit, {value}});
  };
  std::uint64_t own = 1;
  const auto compute = [&] {
    for (int i = 0; i < 100; ++i) used(own = own * 6364136223846793005u + 1);
  };
  double next = 0;
  const auto look = [&] {
    used(heap.pool->stats().live);
    ++looks;
  };
  allocating(loops);
  for (unsigned v = 0; v < options.values; ++v) {
    note("beside rest", "s", allocating(loops) * scale);
    const double computing = beside(compute);
    note("beside computing", "s", computing * scale);
    const double monitored = beside([&] {
      compute();
      if (now() < next) return;
      look();
      next = now() + 1e-3;
    });
    note("beside 1,000 stats a second", "s", monitored * scale);
    looks = 0;
    const double watched = beside(look);
    note("beside stats without pause", "s", watched * scale);
    note("slow-down by 1,000 a second", "", monitored / computing);
    note("slow-down without pause", "", watched / computing);
    note("stats", "s", watched / static_cast<double>(looks));
  }
  return report;
}
