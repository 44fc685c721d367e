// The part of a request that other processes may read: which request has the slot, and who still holds it.
//
// In a pool of shared memory these slots are a file that only the owner can write (sealed by the kernel);
// elsewhere they are private. The owner changes them by the same code in both.
#pragma once

#include <atomic>
#include <cstdint>

#include "slabpool/request/holder_set.hpp"

namespace slabpool {

inline constexpr std::uint32_t kMaxRequests = 65536;  // open, draining or retaining at one time

// Spreads every bit of a word over the whole of it (the finaliser of splitmix64, S. Vigna 2015).
constexpr std::uint64_t mix_bits(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

struct RequestSlot {
  // 0 while no request has the slot, and from the moment one is over.
  std::atomic<std::uint64_t> generation;
  // Of this request alone. Written before the generation, whose release publishes it.
  std::atomic<std::uint64_t> nonce;
  HolderSet holders;

  // The mark that a reference to bytes of this request carries: without the nonce it cannot be made, and
  // no field of the reference can be changed unnoticed.
  static constexpr std::uint64_t seal(std::uint64_t nonce, std::uint64_t generation,
                                      std::uint64_t offset, std::uint64_t nbytes) noexcept {
    return mix_bits(mix_bits(mix_bits(nonce ^ generation) + offset) + nbytes);
  }
};

}  // namespace slabpool
