// Allocates and frees the same size repeatedly: in one thread, in two threads at once, and from one
// thread to another that frees.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "heaps.hpp"
#include "timing.hpp"

template <typename Heap>
double allocate_free(Heap& heap, std::size_t bytes, std::uint64_t loops) {
  const double start = now();
  for (std::uint64_t i = 0; i < loops; ++i) heap.free(must(heap.allocate(bytes)));
  return now() - start;
}

template <typename Heap>
Report same_thread(const Options& options) {
  Heap heap(std::uint64_t{1} << 30);
  return {{"time", "s", seconds_per_loop(options, [&](std::uint64_t loops) {
             return allocate_free(heap, options.bytes, loops);
           })}};
}

// A gate at which threads wait, so that they begin together.
class Gate {
 public:
  explicit Gate(unsigned threads) : waiting_(threads) {}
  void pass() {
    waiting_.fetch_sub(1, std::memory_order_acq_rel);
    while (waiting_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

 private:
  std::atomic<int> waiting_;
};

// Throughput of two threads divided by that of one. Each repetition measures both, one right after the
// other.
template <typename Heap>
Report two_threads(const Options& options) {
  Heap heap(std::uint64_t{1} << 30);
  const auto alone = [&](std::uint64_t loops) { return allocate_free(heap, options.bytes, loops); };
  const auto together = [&](std::uint64_t loops) {
    Gate gate(2);
    double seconds[2];
    std::vector<std::thread> threads;
    for (double& mine : seconds) {
      threads.emplace_back([&] {
        // The first allocation of a thread sets up its cache, so it is not timed.
        heap.free(must(heap.allocate(options.bytes)));
        gate.pass();
        mine = allocate_free(heap, options.bytes, loops);
      });
    }
    for (auto& t : threads) t.join();
    // Operations of both divided by the time of both: the sum of loops/seconds.
    return 2 / (1 / seconds[0] + 1 / seconds[1]);
  };
  const std::uint64_t loops = calibrate(options, alone);
  together(loops);
  std::vector<double> one, each, scaling;
  for (unsigned v = 0; v < options.values; ++v) {
    one.push_back(alone(loops) / static_cast<double>(loops));
    each.push_back(together(loops) / static_cast<double>(loops));
    scaling.push_back(2 * one.back() / each.back());
  }
  return {{"time", "s", each}, {"alone", "s", one}, {"scaling", "", scaling}};
}

// A ring with one writer and one reader. Each side keeps a copy of the other's position and reads it
// again only when the copy says full or empty, so that handing over costs little compared with
// allocating.
template <typename T>
class Ring {
 public:
  void put(T value) {
    if (tail_ - seen_head_ == kSize) {
      unsigned spins = 0;
      while (tail_ - (seen_head_ = head_.load(std::memory_order_acquire)) == kSize) relax(spins);
    }
    slots_[tail_ % kSize] = value;
    shared_tail_.store(++tail_, std::memory_order_release);
  }
  T take() {
    if (next_ == seen_tail_) {
      unsigned spins = 0;
      while (next_ == (seen_tail_ = shared_tail_.load(std::memory_order_acquire))) relax(spins);
    }
    const T value = slots_[next_ % kSize];
    head_.store(++next_, std::memory_order_release);
    return value;
  }

 private:
  static constexpr std::uint64_t kSize = 256;
  // Yields the processor after a while, because on a busy machine the thread that is waited for may not
  // be running.
  static void relax(unsigned& spins) {
    if (++spins % 1024 == 0) std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  alignas(64) std::uint64_t tail_ = 0;
  std::uint64_t seen_head_ = 0;
  alignas(64) std::atomic<std::uint64_t> shared_tail_{0};
  alignas(64) std::uint64_t next_ = 0;
  std::uint64_t seen_tail_ = 0;
  alignas(64) std::atomic<std::uint64_t> head_{0};
  alignas(64) T slots_[kSize] = {};
};

// One thread allocates, the other frees (as a device's ack does); at most 256 blocks are in the ring.
template <typename Heap>
Report cross_thread(const Options& options) {
  Heap heap(std::uint64_t{64} << 30);
  return {{"time", "s", seconds_per_loop(options, [&](std::uint64_t loops) {
             Ring<typename Heap::Ref> ring;
             Gate gate(2);
             std::thread device([&] {
               gate.pass();
               for (std::uint64_t i = 0; i < loops; ++i) heap.free(ring.take());
             });
             gate.pass();
             const double start = now();
             for (std::uint64_t i = 0; i < loops; ++i) ring.put(must(heap.allocate(options.bytes)));
             device.join();
             return now() - start;
           })}};
}

// The ring alone, with pointers that were not allocated: the part of cross_thread that is handing over.
struct NoHeap {
  using Ref = void*;
  explicit NoHeap(std::uint64_t) {}
  static Ref allocate(std::size_t bytes) { return reinterpret_cast<void*>(bytes); }
  static void free(Ref pointer) { used(pointer); }
};
