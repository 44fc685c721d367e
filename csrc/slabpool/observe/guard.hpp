// Finds writes past the end of a block, in pools with debug on.
//
// Each block gets kGuard bytes of a known pattern behind what the user asked for. They are checked when the block comes
// back, and the user's bytes are then filled with a poison, so that a read through a stale pointer is noticed. The pool
// only reports; it never acts on the damage.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "slabpool/base/source_location.hpp"
#include "slabpool/slab/block.hpp"

namespace slabpool {

inline constexpr std::size_t kGuard = 64;

struct BlockDebug {
  std::uint64_t nbytes = 0;  // asked for
  std::uint64_t generation = 0;
  SourceLocation allocated_at;
};

struct Corruption {
  std::uint64_t address;
  std::uint64_t nbytes;
  std::uint64_t offset;  // of the first wrong byte, past the end
  std::uint64_t generation;
  SourceLocation allocated_at;
};

class Guard {
 public:
  ~Guard();

  // For a block with at least nbytes + kGuard bytes. Throws std::bad_alloc, and then nothing has changed.
  void arm(Block& block, std::uint64_t nbytes, std::uint64_t generation, SourceLocation where);
  // Instead of arm(), for a block whose end moves: it will only be poisoned. Throws std::bad_alloc.
  void skip(Block& block);
  // Checks and poisons a block that has no holder any more.
  void disarm(Block& block) noexcept;
  std::vector<Corruption> found() const;

 private:
  void add_record(Block& block);

  mutable std::mutex mutex_;  // a leaf in the order of locks
  std::vector<Corruption> found_;
  std::vector<BlockDebug*> all_;
};

}  // namespace slabpool
