// A scenario of calls, run again and again: each time another allocation of it fails.
//
// forth() is a call that may need memory: when its allocation fails it is refused, nothing has changed, and the same call
// succeeds when it is made again. back() is a call that returns memory, reports or looks: it allocates nothing at all.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>

#include <functional>
#include <new>
#include <string>

#include "slabpool/pool/pool.hpp"
#include "support/failing_new.hpp"
#include "support/pool_help.hpp"

namespace slabpool::test {

inline std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  EXPECT_NE(folder, nullptr);
  while (folder != nullptr && readdir(folder) != nullptr) ++count;
  if (folder != nullptr) (void)closedir(folder);
  return count;
}

// What a refused call must not change.
struct Footing {
  std::uint64_t live, retained, in_doubt, reserved, held, open, draining, kept, acks;
  std::size_t reported, devices, descriptors;
  bool operator==(const Footing&) const = default;

  static Footing of(Pool& pool) {
    const Stats s = pool.stats();
    expect_adds_up(s);
    const char* wrong = pool.verify();
    EXPECT_EQ(wrong, nullptr) << wrong;
    return {s.live,
            s.retained,
            s.in_doubt,
            s.reserved,
            s.allocations - s.frees,
            s.requests_open,
            s.requests_draining,
            pool.kept_bytes(),
            s.acks,
            pool.requests(0).size(),
            pool.devices().size(),
            open_descriptors()};
  }
};

class Steps {
 public:
  // `call` returns a Status, or true for success; std::bad_alloc is a refusal too.
  template <typename Call>
  void forth(Pool& pool, const char* name, Call&& call) {
    SCOPED_TRACE(name);
    const Footing before = Footing::of(pool);
    const std::uint64_t failed = failing_new::state.failed;
    if (attempt(call)) return;
    ASSERT_EQ(failing_new::state.failed, failed + 1) << "refused without a failed allocation";
    ++refusals;
    EXPECT_EQ(Footing::of(pool), before) << "a refused call has changed the pool";
    EXPECT_TRUE(attempt(call)) << "the same call again";
  }

  template <typename Call>
  void back(Pool& pool, const char* name, Call&& call) {
    SCOPED_TRACE(name);
    const std::uint64_t made = failing_new::state.made;
    {
      const failing_new::Armed armed;
      call();
    }
    EXPECT_EQ(failing_new::state.made, made) << "a call on the way back allocates";
    expect_adds_up(pool.stats());
  }

  std::uint64_t refusals = 0;

 private:
  template <typename Call>
  static bool attempt(Call& call) {
    const failing_new::Armed armed;
    try {
      if constexpr (std::is_same_v<std::invoke_result_t<Call&>, bool>) {
        return call();
      } else {
        const Status status = call();
        EXPECT_TRUE(status == Status::ok || status == Status::system_refused)
            << static_cast<int>(status);
        return status == Status::ok;
      }
    } catch (const std::bad_alloc&) {
      return false;
    }
  }
};

// Runs scenario(steps) with the k-th of its allocations failing, for k = 1, 2, ... until none fails. Returns how many
// allocations failed.
inline std::uint64_t each_allocation_fails(const std::function<void(Steps&)>& scenario) {
  std::uint64_t refusals = 0;
  for (std::uint64_t k = 1;; ++k) {
    SCOPED_TRACE("allocation " + std::to_string(k));
    const std::size_t descriptors = open_descriptors();
    failing_new::fail(k);
    Steps steps;
    scenario(steps);
    const bool failed = failing_new::state.failed != 0;
    failing_new::fail(0);
    EXPECT_EQ(open_descriptors(), descriptors) << "a descriptor leaks";
    refusals += steps.refusals;
    if (!failed || testing::Test::HasFailure()) return refusals;
  }
}

}  // namespace slabpool::test
