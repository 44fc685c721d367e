// Acks that follow a CUDA stream: each is an event behind the stream's queued work, and counts once that work is done.
//
// Invariants:
//   at most one ack of a device for a request is queued at a time;
//   a queued ack is reported once, unless forget() came first;
//   pending_acks() == marks whose end was not reported yet.
// Streams never wake waiters: they poll (see WaitQueue::wait).
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "slabpool/acks/ack_source.hpp"
#include "slabpool/cuda/stream_marks.hpp"
#include "slabpool/request/slot.hpp"

namespace slabpool {

class FromStreams final : public AckSource {
 public:
  explicit FromStreams(const cuda::Driver& driver) noexcept : marks_(driver) {}

  enum class Added {
    pending,    // queued; it will be reported
    done,       // the work is done already: it will not be reported
    duplicate,  // one is queued already
    refused,    // by the driver: `result` and `call` say why
  };
  struct Answer {
    Added added = Added::refused;
    cuda::Result result = cuda::kSuccess;
    cuda::Place place{};
    const char* call = "";
  };
  Answer add(Handle handle, std::uint32_t device, const cuda::StreamName& on) noexcept;

  // Whether an ack of the device for this generation is queued.
  bool has(std::uint64_t generation, std::uint32_t device) const noexcept;
  // A queued ack will not count, because the device is about to be named anew.
  void forget(std::uint64_t generation, std::uint32_t device) noexcept;
  // Sequentially consistent: see PolledAcks::collect().
  std::uint64_t pending_acks() const noexcept { return marks_.pending(); }

  // `all` false: true once in 10 us, because allocations come in thousands while a stream works.
  bool pending(bool all) noexcept override;
  void collect(AckSink& sink, bool all) noexcept override;
  void wait() noexcept override { marks_.wait(); }

 private:
  struct Key {
    std::uint64_t generation;
    std::uint32_t device;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    std::size_t operator()(const Key& key) const noexcept {
      return mix_bits(key.generation ^ std::uint64_t{key.device} << 40);
    }
  };
  // Takes a queued ack off the list; false if it was forgotten, and the number may belong to a later ack.
  bool end(const Key& key, std::uint64_t number) noexcept;

  cuda::StreamMarks marks_;
  // Relaxed: it decides only how often streams are polled.
  std::atomic<std::int64_t> polled_ns_{0};
  mutable std::mutex mutex_;  // a leaf in the order of locks
  // Each with a number of its own, so that a forgotten ack is not taken for a later one of the same device.
  std::unordered_map<Key, std::uint64_t, Hash> queued_;
  std::uint64_t last_number_ = 0;
};

}  // namespace slabpool
