// All sources of acks of one pool that must be polled, and the one thread that collects at a time.
//
// Invariants:
//   after collect(true) every ack that had arrived before the call counts, also one that another thread was just counting.
//   So a peer that was answered "released" may report that to the owner, and the memory is there, unless another device
//   is just publishing its ack (docs/design/ack-model.md);
//   an ack counts once; a stream's ack ends only when the work is done, or when the GPU will never do any.
// mutex_ is the first of the pool's locks: acks are counted, and memory goes back, while it is held.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "slabpool/acks/ack_source.hpp"
#include "slabpool/base/error.hpp"

namespace slabpool {

class DeviceRegistry;
class FromPeers;
class FromStreams;
class SharedOwner;

class PolledAcks {
 public:
  // `owner` may be null: no peers. Both arguments outlive this. Throws std::bad_alloc.
  PolledAcks(AckSink& sink, SharedOwner* owner);
  PolledAcks(const PolledAcks&) = delete;
  PolledAcks& operator=(const PolledAcks&) = delete;
  ~PolledAcks();

  // Counts the acks that arrived. `all` false, for callers that come often: each source may skip a poll, and a mutex that
  // another thread holds is left alone.
  void collect(bool all) noexcept;
  // Calls f while no thread collects: no ack is on its way from a source to its request.
  template <typename F>
  void between_collections(F&& f) {
    const std::lock_guard lock(mutex_);
    f();
  }
  // The signs of life of peers.
  void hear(DeviceRegistry& devices) noexcept;

  // Null until a stream was named. Acquire pairs with make_streams().
  FromStreams* streams() const noexcept { return streams_.load(std::memory_order_acquire); }
  // Null if there is no driver, or no memory; `error` says which.
  FromStreams* make_streams(Error& error) noexcept;
  std::uint64_t queued_on_streams() const noexcept;
  bool is_queued(std::uint64_t generation, std::uint32_t device) const noexcept;
  // Returns when every ack that is queued on a stream now has arrived.
  void wait_for_streams() noexcept;

 private:
  AckSink& sink_;
  std::unique_ptr<FromPeers> peers_;            // null: no peers
  std::atomic<FromStreams*> streams_{nullptr};  // made once, by compare-and-swap; owned
  std::mutex mutex_;
  std::atomic<bool> collecting_{false};  // by the holder of mutex_
};

}  // namespace slabpool
