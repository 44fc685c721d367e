// The part of a request that peers may read: which request has the slot, and its holders.
//
// In a pool of shared memory the slots are a file that only the owner can write (the kernel seals it), so peers map the
// words read-only, nothing is copied and reads are never stale. Elsewhere they are private. The owner uses the same code.
#pragma once

#include <atomic>
#include <cstdint>

#include "slabpool/request/holder_set.hpp"

namespace slabpool {

inline constexpr std::uint32_t kMaxRequests = 65536;  // open, draining or retaining at a time

// Spreads every bit of a word over the whole word (the finaliser of splitmix64, S. Vigna 2015).
constexpr std::uint64_t mix_bits(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

struct alignas(64) RequestSlot {
  // 0 while no request has the slot, and from the moment its request is over.
  std::atomic<std::uint64_t> generation;
  // Of this request alone. Written before the generation, whose release publishes it.
  std::atomic<std::uint64_t> nonce;
  FirstHolders holders;
  // Slot + 1 of a child while there are any, so that an ack finds without the table's mutex that there are none. For the
  // owner alone; it lies here because an ack reads it with the holders.
  std::atomic<std::uint32_t> first_child;
  // Generation of the last request here that the host has cancelled. Never reset: the next request has another generation.
  // Written before the host's bit is cleared, which publishes it.
  std::atomic<std::uint64_t> cancelled;

  // A reference to bytes of this request carries this seal. It cannot be made without the nonce, and a change of any field
  // of the reference is noticed.
  static constexpr std::uint64_t seal(std::uint64_t nonce, std::uint64_t generation,
                                      std::uint64_t offset, std::uint64_t nbytes) noexcept {
    return mix_bits(mix_bits(mix_bits(nonce ^ generation) + offset) + nbytes);
  }
};
static_assert(sizeof(RequestSlot) == 64, "one cache line a request");

struct SlotTable {
  RequestSlot slots[kMaxRequests];
  MoreHolders more[kMaxRequests];

  HolderView holders(std::uint32_t slot) const noexcept { return {slots[slot].holders, more[slot]}; }
};

}  // namespace slabpool
