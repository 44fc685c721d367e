// Acks that nobody tells this pool of: those that peers wrote into their boards, and those behind work on a stream,
// once the work is done.
//
// What must stay true: whoever has looked (collect_acks) finds counted whatever came before, also what another
// thread was just taking in: a peer that was answered "released" may tell the owner so, and the memory is there. An
// ack counts once. Of a stream's, only what is certain ends it: the work is done, or the GPU will never do any.
#include <algorithm>

#include "slabpool/acks/from_streams.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {
namespace {

// Allocations come in thousands while a stream is at work: they look at streams this often at most. All other
// calls, and an allocation that fails, look each time.
constexpr std::int64_t kBetweenLooks = 10'000;

}  // namespace

void Pool::collect_acks_slowly(bool all) noexcept {
  if (!usable_here()) return;
  cuda::StreamAcks* acks = streams_.load(std::memory_order_acquire);
  const bool streams = acks != nullptr && acks->pending() != 0 && (all || is_time_to_look());
  const bool news = streams || (shared_ != nullptr && shared_->news());
  // Acquire, after the look: who finds an ack gone from its board, or from those under way, finds the thread that
  // has it still at work, or sees what it did. So the mutex is left alone by all who have nothing to wait for.
  if (news || (all && taking_.load(std::memory_order_acquire))) {
    std::unique_lock lock(taking_mutex_, std::defer_lock);
    if (all) {
      lock.lock();
    } else if (!lock.try_lock()) {
      return;
    }
    taking_.store(true, std::memory_order_relaxed);  // published by the taking of an ack
    if (shared_ != nullptr) collect_from_peers();
    if (streams) collect_from_streams(*acks, all);
    taking_.store(false, std::memory_order_release);
  }
  if (shared_ != nullptr && table_.any_lease()) hear_peers();
}

// What peers wrote is a wish to acknowledge, and nothing more: it goes the way of any ack, if a request of
// exactly that generation has the slot.
void Pool::collect_from_peers() noexcept {
  shared_->collect([&](std::uint32_t device, std::uint32_t slot, std::uint64_t generation) {
    const RequestRecord* record = table_.record(slot);
    if (record == nullptr || generation == 0 ||
        record->generation.load(std::memory_order_acquire) != generation) {
      return;
    }
    (void)ack({slot, generation}, device);
  });
}

void Pool::hear_peers() noexcept {
  const std::int64_t now = now_ns();
  shared_->each_heard([&](std::uint32_t device, std::int64_t claimed) {
    // A peer that claims to have been heard in the future would never fall silent.
    const std::int64_t heard = std::min(claimed, now);
    if (heard > devices_.last_heard(device)) devices_.heard(device, heard);
  });
}

// Relaxed, here and in setting it: that it is time decides nothing but who looks.
bool Pool::is_time_to_look() const noexcept {
  return now_ns() - streams_looked_ns_.load(std::memory_order_relaxed) >= kBetweenLooks;
}

void Pool::collect_from_streams(cuda::StreamAcks& acks, bool all) noexcept {
  streams_looked_ns_.store(now_ns(), std::memory_order_relaxed);
  acks.collect(all, [&](const cuda::StreamAcks::Ended& ended) {
    if (ended.lost != nullptr) note_lost(ended.lost);
    if (ended.counts) take_ack({ended.slot, ended.generation}, ended.device, ended.lost != nullptr);
  });
  if (shared_ != nullptr || acks.pending() != 0) return;
  // Nothing to look for any more. An ack that is added at this moment is counted before it sets the bit: either it
  // is set after this, or the count is seen here. (All sequentially consistent.)
  quirks_.fetch_and(~kFarAcks, std::memory_order_seq_cst);
  if (acks.pending() != 0) quirks_.fetch_or(kFarAcks, std::memory_order_seq_cst);
}

// An ack whose work is over: as ack(), but one that has become pointless meanwhile is nothing, and not counted.
void Pool::take_ack(Handle handle, std::uint32_t device, bool lost) noexcept {
  const RequestRecord* record = table_.record(handle.slot);
  if (record == nullptr || record->generation.load(std::memory_order_acquire) != handle.generation)
    return;
  const HolderSet::Left left =
      table_.holders(handle.slot)
          .leave(static_cast<std::uint32_t>(handle.generation), device_bit(device));
  if (left != HolderSet::Left::others_hold && left != HolderSet::Left::last) return;
  if (table_.any_lease() && !lost) devices_.heard(device, now_ns());
  caches_.mine().count(Count::acks);
  log(lost ? EventKind::lost : EventKind::ack, handle.generation, device, 0);
  // As in ack().
  if (record->first_child.load(std::memory_order_seq_cst) != 0) {
    std::vector<Handle> over;
    table_.leave_children(handle, device_bit(device), over);
    finish_all(over);
  }
  if (left == HolderSet::Left::last) (void)finish(handle);
}

}  // namespace slabpool
