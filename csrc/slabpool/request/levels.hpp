// The levels of a budget: the records whose quota and reserve count for one request, from the nearest one up.
//
// A level is a request with a quota or a reserve, a session, or a group. A request counts in the nearest level from itself up,
// a level in the one above it, up to a group. What a level counts for above it is what is promised to it, and what it and all
// below it hold beside that: what was promised can always be drawn (RequestRecord::counts()).
#pragma once

#include <cstdint>

#include "slabpool/request/handle.hpp"

namespace slabpool {

// More levels above one request are refused, so that a charge takes bounded time.
inline constexpr unsigned kMaxLevels = 8;

// Levels to which bytes came back, for the waiters of their quotas.
struct Levels {
  Handle at[kMaxLevels];
  unsigned count = 0;
  bool more = false;  // there were others
  bool refilled =
      false;  // a promise got some back: what a waiter needs beyond it may be less than it was

  void add(Handle level) noexcept {
    for (unsigned i = 0; i < count; ++i)
      if (at[i].slot == level.slot && at[i].generation == level.generation) return;
    if (count == kMaxLevels) {
      more = true;
    } else {
      at[count++] = level;
    }
  }
  void add(const Levels& others) noexcept {
    for (unsigned i = 0; i < others.count; ++i) add(others.at[i]);
    more = more || others.more;
    refilled = refilled || others.refilled;
  }
};

// What a charge needs of one level, or was refused by. Generation 0 of a refusal: the limit of all that sessions keep.
struct LevelNeed {
  Handle at;
  std::uint64_t bytes = 0;  // by which the level would count for more
  bool is_group = false;
  std::uint64_t excess = 0;  // of a move that was refused: bytes that must leave the level first
};

// What a charge needs of each level that has a quota and is no session.
struct LevelNeeds {
  LevelNeed of[kMaxLevels];
  unsigned count = 0;
  const LevelNeed* never = nullptr;  // one of these that can never have its bytes
};

}  // namespace slabpool
