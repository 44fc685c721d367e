#include "slabpool/acks/from_streams.hpp"

#include <new>

namespace slabpool::cuda {

StreamAcks::Answer StreamAcks::add(std::uint32_t slot, std::uint64_t generation, std::uint32_t device,
                                   const StreamName& on) noexcept {
  Answer answer;
  answer.result = marks_.find(on, answer.place, answer.call);
  if (answer.result != kSuccess) return answer;
  const Key key{generation, device};
  std::uint64_t number = 0;
  try {
    const std::lock_guard lock(mutex_);
    const auto [at, is_new] = under_way_.try_emplace(key, next_ + 1);
    if (!is_new) {
      answer.added = Added::duplicate;
      return answer;
    }
    number = ++next_;
  } catch (const std::bad_alloc&) {
    answer.result = kOutOfMemory;
    answer.call = "malloc";
    return answer;
  }
  bool done = false;
  const StreamMarks::Payload payload{{generation, std::uint64_t{slot} << 32 | device, number}};
  answer.result = marks_.mark(answer.place, payload, true, done, answer.call);
  if (answer.result == kSuccess && !done) {
    answer.added = Added::pending;
    return answer;
  }
  (void)end(key, number);
  if (answer.result == kSuccess) answer.added = Added::done;
  return answer;
}

bool StreamAcks::has(std::uint64_t generation, std::uint32_t device) const noexcept {
  const std::lock_guard lock(mutex_);
  return under_way_.contains({generation, device});
}

void StreamAcks::forget(std::uint64_t generation, std::uint32_t device) noexcept {
  const std::lock_guard lock(mutex_);
  under_way_.erase({generation, device});
}

bool StreamAcks::end(const Key& key, std::uint64_t number) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = under_way_.find(key);
  if (found == under_way_.end() || found->second != number) return false;
  under_way_.erase(found);
  return true;
}

}  // namespace slabpool::cuda
