// A number written at both ends of a block by whoever allocated it, and looked at by all who hold it: if
// two owners had one block, or a holder's block were handed out, a stamp would be wrong. The accesses are
// plain, so that ThreadSanitizer also sees any that the pool does not order.
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
