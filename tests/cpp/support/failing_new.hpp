// operator new that can fail: for one test program, whose failing_new_test.cpp replaces the global operators.
//
// Allocations count only on a thread that is inside an Armed scope. The counters are the program's, so a scenario can arm
// one call after the other, on several threads in turn.
#pragma once

#include <cstdint>
#include <limits>

namespace slabpool::test::failing_new {

struct State {
  std::uint64_t made = 0;    // armed allocations so far, failed ones included
  std::uint64_t failed = 0;  // of these
  std::uint64_t first =
      std::numeric_limits<std::uint64_t>::max();  // the first one that fails, counted from 1
  std::uint64_t count = 0;                        // how many in a row fail
};
inline State state;
inline thread_local bool armed = false;

// From now on the k-th armed allocation fails, or `count` from the k-th on. 0: none.
inline void fail(std::uint64_t k, std::uint64_t count = 1) {
  state = {};
  if (k != 0) state.first = k;
  state.count = count;
}
inline void fail_all() { fail(1, std::numeric_limits<std::uint64_t>::max()); }

class Armed {
 public:
  Armed() noexcept { armed = true; }
  ~Armed() { armed = false; }
  Armed(const Armed&) = delete;
  Armed& operator=(const Armed&) = delete;
};

// By the operators: whether this allocation fails.
inline bool fails() noexcept {
  if (!armed) return false;
  const std::uint64_t now = ++state.made;
  if (now < state.first || now - state.first >= state.count) return false;
  ++state.failed;
  return true;
}

}  // namespace slabpool::test::failing_new
