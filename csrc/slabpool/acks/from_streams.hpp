// Acks that follow a stream: which are under way, and which have come.
//
// Knows marks on streams, and of requests and devices nothing but their numbers: what an ack does is the pool's
// part. What must stay true: of one device in one request one ack is under way at a time, and it is told once,
// unless it was forgotten.
#pragma once

#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "slabpool/cuda/stream_marks.hpp"
#include "slabpool/request/slot.hpp"

namespace slabpool::cuda {

class SLABPOOL_API StreamAcks {
 public:
  explicit StreamAcks(const Driver& driver) noexcept : marks_(driver) {}

  enum class Added {
    pending,    // it will be told
    done,       // the work is done already: nobody will be told
    duplicate,  // one is under way
    refused,    // by the driver: `result` and `call` say why
  };
  struct Answer {
    Added added = Added::refused;
    Result result = kSuccess;
    Place place{};
    const char* call = "";
  };
  Answer add(std::uint32_t slot, std::uint64_t generation, std::uint32_t device,
             const StreamName& on) noexcept;

  // Whether one is under way.
  bool has(std::uint64_t generation, std::uint32_t device) const noexcept;
  // What is under way will not be told: the device is about to be named anew.
  void forget(std::uint64_t generation, std::uint32_t device) noexcept;

  struct Ended {
    std::uint32_t slot;
    std::uint64_t generation;
    std::uint32_t device;
    bool counts;   // false: it was forgotten
    Context lost;  // null: the work is done. Else the context that does none any more
  };
  // Calls f(Ended) for acks whose work is over. `all`: as in StreamMarks::collect().
  template <typename F>
  void collect(bool all, F&& f) noexcept {
    marks_.collect(all, [&](const StreamMarks::Completed& told) {
      const std::uint64_t generation = told.payload.words[0];
      const auto slot = static_cast<std::uint32_t>(told.payload.words[1] >> 32);
      const auto device = static_cast<std::uint32_t>(told.payload.words[1]);
      f(Ended{slot, generation, device, end({generation, device}, told.payload.words[2]), told.lost});
    });
  }
  void wait() noexcept { marks_.wait(); }
  // Sequentially consistent.
  std::uint64_t pending() const noexcept { return marks_.pending(); }

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
  bool end(const Key& key, std::uint64_t number) noexcept;

  StreamMarks marks_;
  mutable std::mutex mutex_;  // a leaf in the order of locks
  // Each with a number of its own: one that was forgotten is not taken for the next of the same device.
  std::unordered_map<Key, std::uint64_t, Hash> under_way_;
  std::uint64_t next_ = 0;
};

}  // namespace slabpool::cuda
