// Finds writes past the end of a block, in pools with debug on.
//
// Each block gets kGuard bytes of a known pattern behind what the user asked for. They are checked when the block comes
// back, and the user's bytes are then filled with a poison, so that a read through a stale pointer is noticed. The pool
// only reports; it never acts on the damage.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "slabpool/base/source_location.hpp"
#include "slabpool/slab/block.hpp"

namespace slabpool {

inline constexpr std::size_t kGuard = 64;

// The line is printed where the block comes back, on any thread, so it is one of a file. Its name is copied: the caller's may
// be gone by then.
struct BlockDebug {
  std::uint64_t nbytes = 0;  // asked for
  std::uint64_t generation = 0;
  std::string file;  // where it was allocated
  std::uint32_t line = 0;
};

struct Corruption {
  std::uint64_t address;
  std::uint64_t nbytes;
  std::uint64_t offset;  // of the first wrong byte, past the end
  std::uint64_t generation;
  std::string file;  // where it was allocated
  std::uint32_t line;
};

class Guard {
 public:
  ~Guard();

  // For a block with at least nbytes + kGuard bytes. Throws std::bad_alloc, and then nothing has changed.
  void arm(Block& block, std::uint64_t nbytes, std::uint64_t generation, const SourceLocation& where);
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
