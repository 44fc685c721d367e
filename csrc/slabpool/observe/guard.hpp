// Finds writes past the end of a block, in pools with debug on.
//
// Each block gets kGuard bytes of a known pattern behind what the user asked for; they are looked at
// when it comes back, and what the user saw is then filled with a poison, so that a read through a
// stale pointer is noticed. The pool only reports; it never acts on the damage.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "slabpool/request/record.hpp"
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

  // Called for a block with at least nbytes + kGuard bytes. May throw std::bad_alloc; nothing is then done.
  void arm(Block& block, std::uint64_t nbytes, std::uint64_t generation, SourceLocation where);
  // Instead of arm(), for a block whose end moves: it will only be poisoned. May throw as well.
  void skip(Block& block);
  // Checks and poisons a block that nobody holds any more.
  void disarm(Block& block) noexcept;
  std::vector<Corruption> found() const;

 private:
  void add_record(Block& block);

  mutable std::mutex mutex_;  // a leaf in the order of locks
  std::vector<Corruption> found_;
  std::vector<BlockDebug*> all_;
};

}  // namespace slabpool
