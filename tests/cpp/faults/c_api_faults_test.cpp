// The k-th allocation fails, for every k, in every function of the C interface. Each of them that fails says so with
// SLABPOOL_SYSTEM_REFUSED, and succeeds when it is called again.
#include "slabpool/c_api.h"

#include <gtest/gtest.h>

#include <string>

#include "support/fault_steps.hpp"

namespace slabpool::test {
namespace {

// The name of a request or device that no short string holds.
constexpr const char* kLong = "a name that is longer than a short string";

class CScenario {
 public:
  explicit CScenario(Steps& steps) : steps_(steps) {}

  void run() {
    create();
    ASSERT_NE(pool_, nullptr);
    std::uint32_t device = 0;
    forth("slabpool_device", [&] { return slabpool_device(pool_, kLong, &device); });
    slabpool_request parent{};
    slabpool_request_options asked{};
    asked.size = sizeof asked;
    asked.id = kLong;
    asked.devices = &device;
    asked.device_count = 1;
    asked.reserve = kMiB;
    forth("slabpool_request_open", [&] { return slabpool_request_open(pool_, &asked, &parent); });
    slabpool_request child{};
    slabpool_request_options below{};
    below.size = sizeof below;
    below.devices = &device;
    below.device_count = 1;
    below.parent = parent;
    forth("slabpool_request_open of a child",
          [&] { return slabpool_request_open(pool_, &below, &child); });
    slabpool_block* block = nullptr;
    slabpool_allocate_options wanted{};
    wanted.size = sizeof wanted;
    wanted.nbytes = 5000;
    wanted.request = child;
    forth("slabpool_allocate", [&] { return slabpool_allocate(pool_, &wanted, &block); });
    slabpool_block* growing = nullptr;
    std::uint64_t usable = 0;
    forth("slabpool_growing_open", [&] { return slabpool_growing_open(pool_, child, kMiB, &growing); });
    forth("slabpool_growing_grow",
          [&] { return slabpool_growing_grow(pool_, child, growing, 100'000, 0, &usable); });
    back("slabpool_request_add_device", SLABPOOL_DUPLICATE_DEVICE,
         [&] { return slabpool_request_add_device(pool_, child, device); });
    slabpool_request_info info{};
    info.size = sizeof info;
    forth("slabpool_request_describe", [&] { return slabpool_request_describe(pool_, child, &info); });
    std::size_t count = 0;
    forth("slabpool_request_pending",
          [&] { return slabpool_request_pending(pool_, child, nullptr, 0, &count); });
    EXPECT_EQ(count, 1U);
    slabpool_stats stats{};
    stats.size = sizeof stats;
    back("slabpool_pool_stats", SLABPOOL_OK, [&] { return slabpool_pool_stats(pool_, &stats); });
    back("slabpool_heartbeat", SLABPOOL_OK, [&] { return slabpool_heartbeat(pool_, device); });
    back("slabpool_pool_close", SLABPOOL_POOL_BUSY, [&] { return slabpool_pool_close(pool_, 0); });
    back("slabpool_view_drop", SLABPOOL_OK, [&] {
      slabpool_view_hold(pool_, growing);
      slabpool_view_drop(pool_, growing);
      slabpool_view_drop(pool_, growing);
      return SLABPOOL_OK;
    });
    back("slabpool_request_close", SLABPOOL_OK, [&] { return slabpool_request_close(pool_, child, 0); });
    slabpool_ack_result result = SLABPOOL_ACK_LATE;
    back("slabpool_ack", SLABPOOL_OK, [&] { return slabpool_ack(pool_, child, device, &result); });
    EXPECT_EQ(result, SLABPOOL_ACK_RELEASED);
    back("slabpool_ack_id", SLABPOOL_OK,
         [&] { return slabpool_ack_id(pool_, kLong, device, 0, &result); });
    EXPECT_EQ(result, SLABPOOL_ACK_PENDING);
    const std::string very_long(5000, 'x');
    forth("slabpool_ack_id of a very long id",
          [&] { return slabpool_ack_id(pool_, very_long.c_str(), device, 0, &result); });
    back("slabpool_request_close", SLABPOOL_OK,
         [&] { return slabpool_request_close(pool_, parent, 1); });
    back("slabpool_request_wait", SLABPOOL_OK, [&] { return slabpool_request_wait(pool_, parent, 1); });
    back("slabpool_device_lost", SLABPOOL_OK,
         [&] { return slabpool_device_lost(pool_, device, nullptr); });
    slabpool_view_drop(pool_, block);
    expect_all_returned(*of());
    back("slabpool_pool_trim", SLABPOOL_OK, [&] {
      (void)slabpool_pool_trim(pool_);
      return SLABPOOL_OK;
    });
    back("slabpool_pool_close", SLABPOOL_OK, [&] { return slabpool_pool_close(pool_, 1); });
    EXPECT_EQ(slabpool_pool_destroy(pool_), SLABPOOL_OK);
  }

 private:
  Pool* of() { return reinterpret_cast<Pool*>(pool_); }

  void create() {
    slabpool_pool_options options{};
    options.size = sizeof options;
    options.capacity = 16 * kMiB;
    const std::uint64_t failed = failing_new::state.failed;
    const auto attempt = [&] {
      const failing_new::Armed armed;
      return slabpool_pool_create(&options, &pool_);
    };
    slabpool_status status = attempt();
    if (failing_new::state.failed != failed) {
      EXPECT_TRUE(status == SLABPOOL_OK || status == SLABPOOL_SYSTEM_REFUSED) << status;
      if (status == SLABPOOL_SYSTEM_REFUSED) {
        EXPECT_EQ(errno, ENOMEM);
        ++steps_.refusals;
        status = attempt();
      }
    }
    EXPECT_EQ(status, SLABPOOL_OK);
  }

  template <typename Call>
  void forth(const char* name, Call&& call) {
    steps_.forth(*of(), name, [&] { return static_cast<Status>(call()); });
  }
  template <typename Call>
  void back(const char* name, slabpool_status expected, Call&& call) {
    steps_.back(*of(), name, [&] { EXPECT_EQ(call(), expected) << name; });
  }

  Steps& steps_;
  slabpool_pool* pool_ = nullptr;
};

TEST(EachAllocationInC, FailsInEveryFunction) {
  EXPECT_GT(each_allocation_fails([](Steps& steps) { CScenario(steps).run(); }), 20U);
}

}  // namespace
}  // namespace slabpool::test
