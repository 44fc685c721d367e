// Helpers for tests of a whole pool.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool::test {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

inline std::unique_ptr<Pool> make_pool(PoolOptions options) {
  Error error;
  auto pool = Pool::create(options, error);
  EXPECT_EQ(error.status, Status::ok) << error.text;
  return pool;
}
inline std::unique_ptr<Pool> make_pool(std::uint64_t capacity) {
  PoolOptions options;
  options.capacity = capacity;
  return make_pool(options);
}

// A spec for opening a request, together with the data it points to.
struct Opening {
  std::string_view id = "sa";
  std::vector<std::uint32_t> devices{};
  std::optional<Handle> parent{};
  std::uint64_t reserve = 0;
  std::uint64_t quota = 0;
  std::int64_t lease_ns = 0;
  std::int32_t priority = 0;

  OpenSpec spec() const {
    OpenSpec s;
    s.id = id;
    s.devices = devices;
    s.parent = parent;
    s.reserve = reserve;
    s.quota = quota;
    s.lease_ns = lease_ns;
    s.priority = priority;
    s.where = {"test.cpp", 7};
    return s;
  }
};

inline Handle open(Pool& pool, const Opening& how) {
  Handle handle;
  EXPECT_EQ(pool.open(how.spec(), handle), Status::ok);
  return handle;
}

inline AllocateSpec bytes(std::uint64_t nbytes, Handle request = {}) {
  AllocateSpec spec;
  spec.nbytes = nbytes;
  spec.request = request;
  return spec;
}
// A request's block without a view.
inline AllocateSpec kept(std::uint64_t nbytes, Handle request) {
  AllocateSpec spec = bytes(nbytes, request);
  spec.view = false;
  return spec;
}

inline std::int64_t in_seconds(std::int64_t seconds) { return now_ns() + seconds * 1'000'000'000; }

inline std::uint64_t held(const Stats& s) { return s.live + s.retained + s.in_doubt; }

// Checks law 6 on the pool's figures.
inline void expect_adds_up(const Stats& s) {
  EXPECT_EQ(s.committed, s.live + s.retained + s.in_doubt + s.cached);
  EXPECT_LE(s.committed, s.capacity);
  EXPECT_GE(s.peak_committed, s.committed);
}

// Checks that nothing is held, every block was returned as often as it was handed out, and all structures are valid.
inline void expect_all_returned(Pool& pool) {
  const Stats s = pool.stats();
  expect_adds_up(s);
  EXPECT_EQ(s.live, 0U);
  EXPECT_EQ(s.retained, 0U);
  EXPECT_EQ(s.in_doubt, 0U);
  EXPECT_EQ(s.reserved, 0U);
  EXPECT_EQ(s.allocations, s.frees);
  EXPECT_EQ(s.requests_open, 0U);
  EXPECT_EQ(s.requests_draining, 0U);
  EXPECT_EQ(s.requests_in_doubt, 0U);
  EXPECT_TRUE(pool.requests(0).empty());
  const char* wrong = pool.verify();
  EXPECT_EQ(wrong, nullptr) << wrong;
  (void)pool.trim();
  EXPECT_EQ(pool.stats().committed, 0U);
  wrong = pool.verify();
  EXPECT_EQ(wrong, nullptr) << wrong;
}

// A pool of 16 MiB and helpers to use it; each checks that the figures add up.
class PoolFixture : public testing::Test {
 protected:
  static constexpr std::uint64_t kCapacity = 16 * kMiB;

  Block* take(const AllocateSpec& spec) {
    const Allocation made = pool->allocate(spec);
    EXPECT_EQ(made.status, Status::ok);
    expect_adds_up(pool->stats());
    return made.block;
  }
  AckResult ack(Handle handle, std::uint32_t device) {
    const Pool::Acked acked = pool->ack(handle, device);
    EXPECT_EQ(acked.status, Status::ok);
    expect_adds_up(pool->stats());
    return acked.result;
  }
  void close(Handle handle) { pool->close_request(handle, false); }
  RequestInfo info(Handle handle) {
    RequestInfo found;
    EXPECT_TRUE(pool->describe(handle, found));
    return found;
  }

  std::unique_ptr<Pool> pool = make_pool(kCapacity);
};

}  // namespace slabpool::test
