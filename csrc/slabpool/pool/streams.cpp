// Acks that follow a stream: accepting them. How they come to count: polled_acks.cpp.
//
// What must stay true: an ack that is under way is a hold like any other, until it counts; it counts once, for the
// request and the device it was made for, and for nothing that was opened or named since.
#include <algorithm>
#include <new>

#include "slabpool/acks/from_streams.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/base/fork.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {
namespace {

void tell(std::string* why, const std::string& text) noexcept {
  if (why == nullptr) return;
  try {
    *why = text;
  } catch (const std::bad_alloc&) {  // the status tells enough
  }
}

}  // namespace

std::uint64_t Pool::stream_acks() const noexcept {
  const cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire);
  return acks != nullptr ? acks->pending() : 0;
}

cuda::StreamAcks* Pool::stream_acks_made(std::string* why) noexcept {
  // Acquire pairs with the release of whoever made it.
  cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire);
  if (acks != nullptr) return acks;
  Error error;
  const cuda::Driver* driver = cuda::Driver::get(error);
  if (driver == nullptr) {
    tell(why, error.text);
    return nullptr;
  }
  auto* made = new (std::nothrow) cuda::StreamAcks(*driver);
  if (made == nullptr) return nullptr;
  if (streams_.compare_exchange_strong(acks, made, std::memory_order_acq_rel, std::memory_order_acquire))
    return made;
  delete made;
  return acks;
}

Pool::Acked Pool::ack_after(Handle handle, std::uint32_t device, const cuda::StreamName& on,
                            std::string* why) noexcept {
  if (epoch_ != fork_epoch()) return {Status::forked, AckResult::late};
  // What needs no stream is answered first, as ack() does: whether the stream is any good changes nothing then.
  const auto tag = static_cast<std::uint32_t>(handle.generation);
  const HolderSet::Left now = table_.record(handle.slot) == nullptr
                                  ? HolderSet::Left::gone
                                  : table_.holders(handle.slot).look(tag, device_bit(device));
  if (now != HolderSet::Left::others_hold) return not_held(now, handle);
  cuda::StreamAcks* acks = stream_acks_made(why);
  if (acks == nullptr) return {Status::system_refused, AckResult::late};
  cuda::StreamName name = on;
  if (name.device < 0) name.device = options_.device;
  const cuda::StreamAcks::Answer answer = acks->add(handle.slot, handle.generation, device, name);
  if (answer.added == cuda::StreamAcks::Added::refused) {
    if (const cuda::Driver* driver = cuda::Driver::get())
      tell(why, std::string(answer.call) + ": " + driver->describe(answer.result));
    if (answer.result == cuda::kOutOfMemory) return {Status::system_refused, AckResult::late};
    if (!cuda::Driver::is_sticky(answer.result)) return {Status::invalid_argument, AckResult::late};
    if (answer.place.context != nullptr) note_lost(answer.place.context);
    return {Status::device_lost, AckResult::late};
  }
  if (table_.any_lease()) devices_.heard(device, now_ns());
  if (answer.added == cuda::StreamAcks::Added::duplicate) {
    caches_.mine().count(Count::duplicate_acks);
    return {Status::ok, AckResult::duplicate};
  }
  if (answer.added == cuda::StreamAcks::Added::done) return ack(handle, device);
  // Sequentially consistent, as is the count of acks that are under way: see collect_from_streams().
  quirks_.fetch_or(kFarAcks, std::memory_order_seq_cst);
  // Whoever sleeps does so until he is woken, and a stream wakes nobody: from now on he looks by himself. Either he
  // was counted before, and is woken here, or he finds the ack under way.
  if (waiters_.load(std::memory_order_seq_cst) != 0) wake_waiters();
  return {Status::ok, AckResult::pending};
}

Pool::Acked Pool::ack_id_after(std::string_view id, std::uint32_t device,
                               std::optional<std::uint64_t> generation, const cuda::StreamName& on,
                               std::string* why) noexcept {
  if (!usable_here()) return {Status::forked, AckResult::late};
  const Named one = named(id, device, generation);
  return one.found ? ack_after(one.handle, device, on, why) : one.answer;
}

void Pool::wait_for_streams() noexcept {
  if (!usable_here()) return;
  if (cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire)) acks->wait();
}

// If it is the context of this pool's memory, nothing can be allocated any more.
void Pool::note_lost(cuda::Context context) noexcept {
  if (memory_->kind() != MemoryKind::device && memory_->kind() != MemoryKind::managed) return;
  const cuda::Driver* driver = cuda::Driver::get();
  cuda::Result result = cuda::kSuccess;
  if (driver == nullptr || driver->context(options_.device, result) != context) return;
  if ((quirks_.fetch_or(kLost, std::memory_order_relaxed) & kLost) != 0) return;
  // Those who wait for memory wait for nothing.
  if (waiters_.load(std::memory_order_seq_cst) != 0) wake_waiters();
}

}  // namespace slabpool
