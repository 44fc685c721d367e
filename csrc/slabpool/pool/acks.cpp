// Acks: every way in which a device leaves a request.
//
// Invariants:
//   an ack counts a device, not a message: HolderSet::try_leave() clears a bit once;
//   a queued ack is a hold like any other until its work is done; it counts for the request and the device it was made
//   for, and for nothing that was opened or named since;
//   a number that goes to another name is on its way nowhere: callers hold it, or exclude retire_devices(), from the look-up of
//   its name until the ack counts, and polled acks are collected with PolledAcks::mutex_, which retire_devices() takes;
//   of several callers that may find that they were last, one gives the blocks back (RequestTable::claim).
#include "slabpool/acks/from_streams.hpp"
#include "slabpool/acks/polled_acks.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"
#include "slabpool/shared/owner.hpp"

namespace slabpool {

inline Pool::Counted Pool::count_ack(Handle handle, std::uint32_t device, AckOrigin origin) noexcept {
  // An ack by a call is always a sign of life. An ack behind a stream is one only if it counts, because the device may
  // have been lost since it was queued.
  if (origin == AckOrigin::call && table_.any_lease()) devices_.heard(device, now_ns());
  if (handle.slot >= kMaxRequests) [[unlikely]]
    return {HolderSet::Left::absent, false};
  const HolderSet::Left left =
      table_.holders(handle.slot).try_leave(handle.generation, device_bit(device));
  if (left == HolderSet::Left::absent) [[unlikely]]
    return {left, false};
  return after_leaving(handle, device, origin, left);
}

// The holder has left the request: counts that, and ends what is over by it.
inline Pool::Counted Pool::after_leaving(Handle handle, std::uint32_t device, AckOrigin origin,
                                         HolderSet::Left left) noexcept {
  if (origin == AckOrigin::stream && table_.any_lease()) devices_.heard(device, now_ns());
  const bool acknowledged = origin == AckOrigin::call || origin == AckOrigin::stream;
  caches_.count(Count::acks);
  log(acknowledged ? EventKind::ack : EventKind::lost, handle.generation, device, 0);
  // Sequentially consistent, as is the clearing of the bit: see RequestTable::link_child().
  if (table_.first_child(handle.slot).load(std::memory_order_seq_cst) != 0) [[unlikely]] {
    ClaimedList over;
    table_.leave_children(handle, device_bit(device), over);
    end_all(over);
  }
  return {left, left == HolderSet::Left::last && finish(handle)};
}

// The hot path, which calls nothing: others hold on, and there are no children. A thread that has a cache is not in a fork's
// child.
Pool::Acked Pool::ack(Handle handle, std::uint32_t device) noexcept {
  ThreadCache* const cache = cache_without(~kLog & kFlags);
  if (cache == nullptr || table_.any_lease() || handle.slot >= kMaxRequests) [[unlikely]]
    return ack_slowly(handle, device);
  const HolderSet::Left left =
      table_.holders(handle.slot).try_leave(handle.generation, device_bit(device));
  // Sequentially consistent: see after_leaving().
  if (left != HolderSet::Left::others_hold ||
      table_.first_child(handle.slot).load(std::memory_order_seq_cst) != 0) [[unlikely]]
    return ack_further(handle, device, left);
  cache->count(Count::acks);
  return {Status::ok, AckResult::pending};
}

Pool::Acked Pool::ack_slowly(Handle handle, std::uint32_t device) noexcept {
  if (!usable_here()) return {Status::forked, AckResult::late};
  return answer(handle, device, count_ack(handle, device, AckOrigin::call));
}

Pool::Acked Pool::ack_further(Handle handle, std::uint32_t device, HolderSet::Left left) noexcept {
  if (left == HolderSet::Left::absent) return answer(handle, device, {left, false});
  return answer(handle, device, after_leaving(handle, device, AckOrigin::call, left));
}

inline Pool::Acked Pool::answer(Handle handle, std::uint32_t device, Counted counted) noexcept {
  if (counted.left == HolderSet::Left::absent) [[unlikely]]
    return not_held(handle, device);
  return {Status::ok, counted.released ? AckResult::released : AckResult::pending};
}

// The answer to an ack that changes nothing.
Pool::Acked Pool::not_held(Handle handle, std::uint32_t device) noexcept {
  const HolderSet::Left left =
      table_.record(handle.slot) == nullptr
          ? HolderSet::Left::gone
          : table_.holders(handle.slot).why_absent(handle.generation, device_bit(device));
  // A slot that was not used again still has the bits of a request that is over, and the answer must not depend on that.
  if (left == HolderSet::Left::gone || table_.is_over(handle)) {
    caches_.count(Count::late_acks);
    return {Status::ok, AckResult::late};
  }
  if (left == HolderSet::Left::never) return {Status::unknown_device, AckResult::late};
  caches_.count(Count::duplicate_acks);
  return {Status::ok, AckResult::duplicate};
}

// ---- by id

Pool::Named Pool::named(std::string_view id, std::uint32_t device,
                        std::optional<std::uint64_t> generation) noexcept {
  collect_acks();
  const RequestTable::Waiting waiting = table_.find_waiting(
      id, device, generation,
      [&](std::uint64_t of, std::uint32_t by) { return polled_->is_queued(of, by); });
  if (waiting.count > 1) return {false, {}, {Status::ambiguous, AckResult::late}};
  if (waiting.count == 1) return {true, waiting.handle, {}};
  // Only a generation whose ack is queued behind a stream matches: this call repeats that ack, or counts it at once.
  if (waiting.queued > 1) return {false, {}, {Status::ambiguous, AckResult::late}};
  if (waiting.queued == 1) return {true, waiting.acknowledged, {}};
  if (waiting.found && !waiting.named) return {false, {}, {Status::unknown_device, AckResult::late}};
  caches_.count(Count::late_acks);
  return {false, {}, {Status::ok, AckResult::late}};
}

Pool::Acked Pool::ack_id(std::string_view id, std::uint32_t device,
                         std::optional<std::uint64_t> generation) noexcept {
  if (!usable_here()) return {Status::forked, AckResult::late};
  const Named one = named(id, device, generation);
  return one.found ? ack(one.handle, device) : one.answer;
}

// ---- behind a stream

Pool::Acked Pool::ack_after(Handle handle, std::uint32_t device, const cuda::StreamName& on,
                            Error& error) noexcept {
  const auto failed = [&](Status status) {
    error.status = status;
    return Acked{status, AckResult::late};
  };
  if (!usable_here()) return failed(Status::forked);
  // Answers that need no stream come first, as in ack(), whatever the driver says of the stream.
  if (table_.record(handle.slot) == nullptr ||
      !table_.holders(handle.slot).holds(handle.generation, device_bit(device)))
    return not_held(handle, device);
  FromStreams* streams = polled_->make_streams(error);
  if (streams == nullptr) return failed(Status::system_refused);
  cuda::StreamName name = on;
  if (name.device < 0) name.device = options_.device;
  const FromStreams::Answer answer = streams->add(handle, device, name);
  if (answer.added == FromStreams::Added::refused) {
    try {
      if (const cuda::Driver* driver = cuda::Driver::get())
        error.text = std::string(answer.call) + ": " + driver->describe(answer.result);
    } catch (const std::bad_alloc&) {  // the status says enough
    }
    if (answer.result == cuda::kOutOfMemory) return failed(Status::system_refused);
    if (!cuda::Driver::is_sticky(answer.result)) return failed(Status::invalid_argument);
    if (answer.place.context != nullptr) context_lost(answer.place.context);
    return failed(Status::device_lost);
  }
  if (table_.any_lease()) devices_.heard(device, now_ns());
  if (answer.added == FromStreams::Added::duplicate) {
    caches_.count(Count::duplicate_acks);
    return {Status::ok, AckResult::duplicate};
  }
  if (answer.added == FromStreams::Added::done) return ack(handle, device);
  set_polling(true);
  // Streams never wake waiters. A waiter that registered before this is woken here and starts to poll; one that registers
  // later finds the queued ack.
  if (queue_.has_waiters()) queue_.start_polling();
  return {Status::ok, AckResult::pending};
}

Pool::Acked Pool::ack_id_after(std::string_view id, std::uint32_t device,
                               std::optional<std::uint64_t> generation, const cuda::StreamName& on,
                               Error& error) noexcept {
  if (!usable_here()) return {Status::forked, AckResult::late};
  const Named one = named(id, device, generation);
  return one.found ? ack_after(one.handle, device, on, error) : one.answer;
}

std::uint64_t Pool::stream_acks() const noexcept { return polled_->queued_on_streams(); }
bool Pool::must_poll() const noexcept { return stream_acks() != 0 || caches_.left_some(); }

void Pool::wait_for_streams() noexcept {
  if (usable_here()) polled_->wait_for_streams();
}

// ---- polled

void Pool::collect_polled(bool all) noexcept {
  if (!usable_here()) return;
  polled_->collect(all);
  if (shared_ != nullptr && table_.any_lease()) polled_->hear(devices_);
}

// As ack(), if a request of exactly that generation has the slot. A peer's repeated ack counts as a duplicate; an ack
// behind a stream that has become pointless meanwhile counts as nothing.
void Pool::count_polled(Handle handle, std::uint32_t device, AckOrigin origin) noexcept {
  const RequestRecord* record = table_.record(handle.slot);
  if (record == nullptr || handle.generation == 0 ||
      record->generation.load(std::memory_order_acquire) != handle.generation)
    return;
  if (origin == AckOrigin::call) {
    (void)ack(handle, device);
  } else {
    (void)count_ack(handle, device, origin);
  }
}

void Pool::set_polling(bool on) noexcept {
  if (on) {
    slow_path_flags_.fetch_or(kPolledAcks, std::memory_order_seq_cst);
  } else {
    slow_path_flags_.fetch_and(~kPolledAcks, std::memory_order_seq_cst);
  }
}

// ---- devices that come and go

Status Pool::add_device(Handle handle, std::uint32_t device) noexcept {
  if (!usable_here()) return Status::forked;
  const auto held = [&] {
    return handle.slot < kMaxRequests &&
           table_.holders(handle.slot).holds(handle.generation, device_bit(device));
  };
  if (shared_ != nullptr) {
    collect_acks();
    if (device < kMaxDevices && !table_.is_over(handle) && !held())
      shared_->forget_ack(device, handle.slot, handle.generation);
  }
  // If the device no longer holds the request (it acknowledged in another way, or was lost), a queued ack must not count
  // for the new hold.
  if (FromStreams* streams = polled_->streams(); streams != nullptr && !held())
    streams->forget(handle.generation, device);
  return table_.add_device(handle, device);
}

std::uint64_t Pool::device_lost(std::uint32_t device) noexcept {
  if (!usable_here()) return 0;
  collect_acks();
  // Requests that are opened on the device later name it anew, so the device is back.
  std::uint64_t held = 0;
  ClaimedList over;
  table_.leave_all(device_bit(device), over, [&](std::uint64_t generation) {
    log(EventKind::lost, generation, device, 0);
    ++held;
  });
  end_all(over);
  return held;
}

void Pool::heartbeat(std::uint32_t device) noexcept { devices_.heard(device, now_ns()); }

void Pool::retire_devices(std::vector<std::uint32_t>& retired) {
  if (!usable_here()) return;
  collect_acks();  // a device whose ack has arrived waits for nothing
  polled_->between_collections([&] {
    for (const bool left : {true, false}) {
      devices_.retire(
          retired,
          [&](const HolderMarks& wanted, HolderMarks& used) {
            (void)table_.mark_holders(left, wanted, used);
          },
          [&](const HolderMarks& gone) {
            if (!left) table_.forget_named(gone);
          });
      if (!retired.empty()) return;
    }
  });
}

AckResult Pool::ack_retired(Handle handle) noexcept {
  if (!usable_here()) return AckResult::late;
  const bool late = table_.is_over(handle);
  caches_.count(late ? Count::late_acks : Count::duplicate_acks);
  return late ? AckResult::late : AckResult::duplicate;
}

void Pool::context_lost(void* context) noexcept {
  if (memory_->kind() != MemoryKind::device && memory_->kind() != MemoryKind::managed) return;
  const cuda::Driver* driver = cuda::Driver::get();
  cuda::Result result = cuda::kSuccess;
  if (driver == nullptr || driver->context(options_.device, result) != context) return;
  // Sequentially consistent, as in WaitQueue::enter(): a waiter that registers now either is woken, or finds the device lost.
  if ((slow_path_flags_.fetch_or(kLost, std::memory_order_seq_cst) & kLost) != 0) return;
  queue_.wake_all();  // no memory will come back
}

}  // namespace slabpool
