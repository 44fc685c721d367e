// What owner and peers agree on: the files of a shared pool, and what stands where in them.
//
//   data   the reserved range                       owner writes; peers read, or write if they ask to;
//          of device memory a handle of the driver's: its holder may write
//   table  SharedHeader, then the SlotTable        owner writes, sealed; peers read
//   board  AckBoard, one file for each peer         that peer writes; the owner reads
//   tally  AckTally                                 peers write; no decision of the owner depends on it
//   bell   eventfd, one for each peer               that peer writes while the owner has waiters
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "slabpool/memory/memory_resource.hpp"
#include "slabpool/request/slot.hpp"
#include "slabpool/shared/ack_board.hpp"
#include "slabpool/shared/ack_tally.hpp"

namespace slabpool {

inline constexpr std::uint64_t kSharedMagic = 0x6c6f6f7062616c73ULL;  // "slabpool"
inline constexpr std::uint32_t kSharedVersion = 5;

struct SharedHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t slots;
  std::uint64_t pool_id;   // random: distinguishes pools, also those of one name
  std::uint64_t reserved;  // bytes of data
  // The GPU whose memory it is, as "0000:17:00.0": processes may number theirs differently. Empty: host memory.
  char pci[16];
  std::atomic<std::uint32_t> closed;
  std::atomic<std::uint32_t>
      waiting;  // registered threads and event loops of the owner; peers ring while it is not 0
};

constexpr std::size_t round_to_pages(std::size_t bytes) noexcept {
  return (bytes + kMostSystemPage - 1) & ~(kMostSystemPage - 1);
}
inline constexpr std::size_t kSlotsOffset = kMostSystemPage;
static_assert(sizeof(SharedHeader) <= kSlotsOffset);
inline constexpr std::size_t kTableBytes = kSlotsOffset + round_to_pages(sizeof(SlotTable));
inline constexpr std::size_t kBoardBytes = round_to_pages(sizeof(AckBoard));
inline constexpr std::size_t kTallyBytes = round_to_pages(sizeof(AckTally));

// Plain words at the same place in every process: shared words must need no lock of their own.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

}  // namespace slabpool
