// A number that the thread which allocated a block writes at both of its ends, and every holder checks. If a block had
// two owners, or were handed out while it is held, a stamp would be wrong. The accesses are not atomic, so that
// ThreadSanitizer reports any that the pool does not order.
#pragma once

#include <cstdint>
#include <cstring>

#include "slabpool/slab/block.hpp"

namespace slabpool::test {

inline void write_stamp(const Block& block, std::uint64_t stamp) {
  std::memcpy(block.data, &stamp, sizeof stamp);
  std::memcpy(block.data + block.bytes - sizeof stamp, &stamp, sizeof stamp);
}

inline bool has_stamp(const Block& block, std::uint64_t stamp) {
  std::uint64_t ends[2];
  std::memcpy(&ends[0], block.data, sizeof stamp);
  std::memcpy(&ends[1], block.data + block.bytes - sizeof stamp, sizeof stamp);
  return ends[0] == stamp && ends[1] == stamp;
}

}  // namespace slabpool::test
