// The heaps of the workloads: slabpool's core, the C library's malloc (or the one preloaded in its
// place), and the floors. Each has allocate(bytes) -> Ref and free(Ref).
#pragma once

#include <cstdlib>
#include <memory>

#include "floors.hpp"
#include "slabpool/pool/pool.hpp"
#include "timing.hpp"

struct SlabpoolHeap {
  using Ref = slabpool::Block*;

  explicit SlabpoolHeap(std::uint64_t capacity) {
    slabpool::PoolOptions options;
    options.capacity = capacity;
    slabpool::Error error;
    pool = slabpool::Pool::create(options, error);
    if (pool == nullptr) {
      std::fprintf(stderr, "slabpool: no pool of %llu bytes: status %d\n",
                   static_cast<unsigned long long>(capacity), static_cast<int>(error.status));
      std::exit(1);
    }
  }

  Ref allocate(std::size_t bytes) {
    slabpool::AllocateSpec spec;
    spec.nbytes = bytes;
    return pool->allocate(spec).block;
  }
  void free(Ref block) { pool->drop_view(*block); }

  std::unique_ptr<slabpool::Pool> pool;
};

struct MallocHeap {
  using Ref = void*;
  explicit MallocHeap(std::uint64_t) {}
  static Ref allocate(std::size_t bytes) { return std::malloc(bytes); }
  static void free(Ref pointer) { std::free(pointer); }
};

struct ThreadListHeap : ThreadList {
  explicit ThreadListHeap(std::uint64_t) {}
};

struct OwnerListHeap : OwnerList {
  explicit OwnerListHeap(std::uint64_t) {}
};

// Ends the program, because the figures of a benchmark that runs out are worthless.
template <typename Ref>
inline Ref must(Ref ref) {
  if (ref == nullptr) [[unlikely]] {
    std::fprintf(stderr, "out of memory\n");
    std::exit(1);
  }
  used(ref);
  return ref;
}
