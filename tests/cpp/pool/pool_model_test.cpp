// Many random requests, one step at a time: after each step the pool's figures equal those of a simple
// model, and no view has changed.
#include "slabpool/pool/pool.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "support/fake_memory.hpp"
#include "support/pool_help.hpp"

namespace slabpool {
namespace {

using test::bytes;
using test::expect_all_returned;
using test::kept;
using test::open;

class PoolModel : public test::PoolFixture {};

TEST_F(PoolModel, AtRandomTheFiguresAreThoseOfAModel) {
  struct Model {
    Handle handle;
    std::vector<std::uint32_t> pending;
    bool open = true;
    std::uint64_t bytes = 0;
  };
  struct View {
    Block* block;
    unsigned char fill;
  };
  std::mt19937_64 random(11);
  std::vector<Model> requests;
  std::vector<View> views;
  for (int step = 0; step < 20'000 && !HasFailure(); ++step) {
    const auto dice = random() % 100;
    if (dice < 15 && requests.size() < 40) {
      Model one;
      for (std::uint32_t device = 0; device < 5; ++device) {
        if (random() % 2 == 0) one.pending.push_back(device * 20);
      }
      one.handle = open(*pool, {.devices = one.pending});
      requests.push_back(one);
    } else if (dice < 55 && !requests.empty()) {
      Model& one = requests[random() % requests.size()];
      const bool view = random() % 2 == 0;
      const Allocation made = pool->allocate(view ? bytes(random() % 200'000, one.handle)
                                                  : kept(random() % 200'000, one.handle));
      if (!one.open) {
        EXPECT_EQ(made.status, Status::request_closed);
      } else if (made.block != nullptr) {
        one.bytes += made.block->bytes;
        const auto fill = static_cast<unsigned char>(random());
        std::memset(made.block->data, fill, made.block->bytes);
        if (view) views.push_back({made.block, fill});
      } else {
        EXPECT_EQ(made.status, Status::exhausted);
      }
    } else if (dice < 75 && !views.empty()) {
      const std::size_t i = random() % views.size();
      EXPECT_TRUE(test::all_bytes(views[i].block->data, views[i].fill, views[i].block->bytes));
      pool->drop_view(*views[i].block);
      views[i] = views.back();
      views.pop_back();
    } else if (!requests.empty()) {
      const std::size_t i = random() % requests.size();
      Model& one = requests[i];
      if (one.pending.empty() || (one.open && random() % 3 == 0)) {
        close(one.handle);
        one.open = false;
      } else {
        const std::size_t d = random() % one.pending.size();
        const AckResult result = ack(one.handle, one.pending[d]);
        one.pending.erase(one.pending.begin() + static_cast<std::ptrdiff_t>(d));
        EXPECT_EQ(result == AckResult::released, one.pending.empty() && !one.open);
      }
      EXPECT_EQ(pool->released(one.handle), one.pending.empty() && !one.open);
      if (pool->released(one.handle)) requests.erase(requests.begin() + static_cast<std::ptrdiff_t>(i));
    }
    const Stats s = pool->stats();
    test::expect_adds_up(s);
    std::uint64_t live = 0;
    std::uint64_t open_ones = 0;
    for (const Model& one : requests) {
      live += one.bytes;
      open_ones += one.open ? 1 : 0;
    }
    EXPECT_EQ(s.live, live);
    EXPECT_EQ(s.requests_open, open_ones);
    EXPECT_EQ(s.requests_draining, requests.size() - open_ones);
    std::uint64_t retained = 0;
    for (const RequestInfo& record : pool->requests(0)) {
      if (record.state == RequestState::released) retained += record.nbytes;
    }
    EXPECT_EQ(s.retained, retained);
    if (step % 100 == 0) {
      EXPECT_EQ(pool->verify(), nullptr);
    }
  }
  for (const Model& one : requests) {
    close(one.handle);
    for (const std::uint32_t device : one.pending) (void)ack(one.handle, device);
  }
  for (const View& view : views) pool->drop_view(*view.block);
  expect_all_returned(*pool);
}

}  // namespace
}  // namespace slabpool
