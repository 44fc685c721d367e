// A table of requests without a pool. A pool finishes the requests of its table; here finish() does the same, without
// the blocks.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string_view>
#include <vector>

#include "slabpool/request/table.hpp"
#include "support/fake_memory.hpp"

namespace slabpool::test {

class TableFixture : public testing::Test {
 protected:
  static constexpr std::uint64_t kCapacity = std::uint64_t{1} << 20;

  Status try_open(Handle& handle, std::string_view id, const std::vector<std::uint32_t>& on = {},
                  std::optional<Handle> parent = {}, std::uint64_t reserve = 0,
                  std::uint64_t quota = 0) {
    OpenSpec spec;
    spec.id = id;
    spec.devices = on;
    spec.parent = parent;
    spec.reserve = reserve;
    spec.quota = quota;
    return table.open(spec, 0, handle);
  }
  Handle open(std::string_view id, const std::vector<std::uint32_t>& on = {},
              std::optional<Handle> parent = {}, std::uint64_t reserve = 0, std::uint64_t quota = 0) {
    Handle handle;
    EXPECT_EQ(try_open(handle, id, on, parent, reserve, quota), Status::ok);
    return handle;
  }
  HolderSet::Left leave(Handle handle, std::uint32_t device) {
    return table.holders(handle.slot).leave(handle.generation, device_bit(device));
  }
  bool finish(Handle handle) {
    if (!table.claim(handle)) return false;
    ClaimedList over;
    over.push(*table.record(handle.slot));
    (void)end_all(over);
    return true;
  }
  // Ends the claimed requests, and those that are over by it. Returns them in the order in which they ended.
  std::vector<Handle> end_all(ClaimedList& over) {
    std::vector<Handle> ended;
    while (RequestRecord* record = over.pop()) {
      ended.push_back(record->handle());
      (void)record->blocks.release(retained);
      Levels back;
      if (record->has_budget.load()) table.return_budget(*record, back);
      table.retire(*record, over);
    }
    return ended;
  }
  void close(Handle handle) {
    ClaimedList over;
    (void)table.close(handle, false, over);
    (void)end_all(over);
  }
  std::uint64_t used(Handle handle) { return table.record(handle.slot)->used; }
  bool holds(Handle handle, std::uint32_t device) {
    return table.holders(handle.slot).holds(handle.generation, device_bit(device));
  }

  // As Pool::named() asks, without acks queued behind streams.
  RequestTable::Waiting find_waiting(std::string_view id, std::uint32_t device,
                                     std::optional<std::uint64_t> generation) {
    return table.find_waiting(id, device, generation,
                              [](std::uint64_t, std::uint32_t) { return false; });
  }
  // A block of a request that a view keeps, as views make them; null: the request does not accept it.
  Block* attach_viewed(Handle handle) {
    Block* block = depot.take_blocks(0, 1, Depot::Effort::hard).chain;
    block->request.store(handle.slot + 1);
    block->start(Block::kRequest | Block::kView);
    RequestRecord& record = *table.record(handle.slot);
    const Status status = record.blocks.attach(*block, [&] { return record.accepts(handle); });
    return status == Status::ok ? block : nullptr;
  }

  std::atomic<std::uint64_t> retained{0};
  test::FakeMemory memory{std::size_t{64} << 20};
  Depot depot{memory, kCapacity, false};
  DeviceRegistry devices;
  RequestTable table{depot, devices};
};

}  // namespace slabpool::test
