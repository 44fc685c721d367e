#include "slabpool/acks/from_streams.hpp"

#include <new>

#include "slabpool/base/clock.hpp"

namespace slabpool {
namespace {

constexpr std::int64_t kBetweenPolls = 10'000;  // ns

}  // namespace

FromStreams::Answer FromStreams::add(Handle handle, std::uint32_t device,
                                     const cuda::StreamName& on) noexcept {
  Answer answer;
  answer.result = marks_.find(on, answer.place, answer.call);
  if (answer.result != cuda::kSuccess) return answer;
  const Key key{handle.generation, device};
  std::uint64_t number = 0;
  try {
    const std::lock_guard lock(mutex_);
    const auto [at, is_new] = queued_.try_emplace(key, last_number_ + 1);
    if (!is_new) {
      answer.added = Added::duplicate;
      return answer;
    }
    number = ++last_number_;
  } catch (const std::bad_alloc&) {
    answer.result = cuda::kOutOfMemory;
    answer.call = "malloc";
    return answer;
  }
  bool done = false;
  const cuda::StreamMarks::Payload payload{
      {handle.generation, std::uint64_t{handle.slot} << 32 | device, number}};
  answer.result = marks_.mark(answer.place, payload, true, done, answer.call);
  if (answer.result == cuda::kSuccess && !done) {
    answer.added = Added::pending;
    return answer;
  }
  (void)end(key, number);
  if (answer.result == cuda::kSuccess) answer.added = Added::done;
  return answer;
}

bool FromStreams::has(std::uint64_t generation, std::uint32_t device) const noexcept {
  const std::lock_guard lock(mutex_);
  return queued_.contains({generation, device});
}

void FromStreams::forget(std::uint64_t generation, std::uint32_t device) noexcept {
  const std::lock_guard lock(mutex_);
  queued_.erase({generation, device});
}

bool FromStreams::end(const Key& key, std::uint64_t number) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = queued_.find(key);
  if (found == queued_.end() || found->second != number) return false;
  queued_.erase(found);
  return true;
}

bool FromStreams::pending(bool all) noexcept {
  return marks_.pending() != 0 &&
         (all || now_ns() - polled_ns_.load(std::memory_order_relaxed) >= kBetweenPolls);
}

void FromStreams::collect(AckSink& sink, bool all) noexcept {
  polled_ns_.store(now_ns(), std::memory_order_relaxed);
  marks_.collect(all, [&](const cuda::StreamMarks::Completed& completed) {
    const auto slot = static_cast<std::uint32_t>(completed.payload.words[1] >> 32);
    const auto device = static_cast<std::uint32_t>(completed.payload.words[1]);
    const Handle handle{slot, completed.payload.words[0]};
    const bool counts = end({handle.generation, device}, completed.payload.words[2]);
    if (completed.lost != nullptr) sink.context_lost(completed.lost);
    if (counts)
      sink.count_polled(handle, device,
                        completed.lost != nullptr ? AckOrigin::context_lost : AckOrigin::stream);
  });
}

}  // namespace slabpool
