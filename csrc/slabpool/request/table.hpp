// The requests of one pool: opening, leaving, and finding the one thread that returns the blocks.
//
// A device's ack is one compare-and-swap on the holders' word and takes no lock, unless it is the last
// or the request has children. All that changes the set of requests (open, close, child, add, the end)
// is under one mutex. Exactly one caller's claim() succeeds for each request.
// Order of locks: the pool's (for taking acks in, then for growing), table mutex, budget mutex, a record's lock, then the
// depot's. None of this file's is held while blocks go back.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "slabpool/base/status.hpp"
#include "slabpool/memory/virtual_array.hpp"
#include "slabpool/request/device_registry.hpp"
#include "slabpool/request/holder_set.hpp"
#include "slabpool/request/record.hpp"
#include "slabpool/request/slot.hpp"
#include "slabpool/slab/depot.hpp"

namespace slabpool {

enum class AckResult : std::int32_t { pending = 0, released = 1, duplicate = 2, late = 3 };

struct OpenSpec {
  std::string_view id;
  std::span<const std::uint32_t> devices;
  std::optional<Handle> parent;
  std::uint64_t reserve = 0;
  std::uint64_t quota = 0;
  std::int64_t lease_ns = 0;
  std::int64_t now_ns = 0;
  bool kept = false;   // memory that a session keeps: found by no id, and counted apart
  bool counts = true;  // whether running out is counted: not for whoever makes room and tries again
  SourceLocation where;
};

class RequestTable {
 public:
  // With `slots` the part that peers may read stands there, kMaxRequests zeroed slots that the caller
  // keeps; `secret` is what nonces are made from.
  RequestTable(Depot& depot, DeviceRegistry& devices, RequestSlot* slots = nullptr,
               std::uint64_t secret = 0);
  RequestTable(const RequestTable&) = delete;
  RequestTable& operator=(const RequestTable&) = delete;
  ~RequestTable();

  // Null: no such slot yet. Inlined by force, as HolderSet::leave(): part of every ack.
  [[gnu::always_inline]] RequestRecord* record(std::uint32_t slot) const noexcept {
    if (slot >= kMaxRequests) return nullptr;
    // Acquire pairs with new_slot(): the records of the chunk are made.
    RequestRecord* chunk = chunks_[slot / kChunk].load(std::memory_order_acquire);
    return chunk != nullptr ? &chunk[slot % kChunk] : nullptr;
  }
  HolderSet& holders(std::uint32_t slot) noexcept { return slots_[slot].holders; }
  const HolderSet& holders(std::uint32_t slot) const noexcept { return slots_[slot].holders; }
  // The mark of a reference to bytes of a request that is not over; see RequestSlot.
  std::uint64_t seal(Handle handle, std::uint64_t offset, std::uint64_t nbytes) const noexcept {
    return RequestSlot::seal(nonce(handle.generation), handle.generation, offset, nbytes);
  }

  // exhausted: the reserve is not to be had now. A child has no reserve or quota of its own.
  Status open(const OpenSpec& spec, Handle& handle);

  // A device's leave() on a request that may have children is theirs too: adds those that are over by
  // it. Called after HolderSet::leave() on the request itself.
  void leave_children(Handle handle, HolderBit bit, std::vector<Handle>& over);
  // The host leaves, here and in all descendants. Requests that are over by it are added to `over`,
  // descendants first. False if it had left before or the request is gone.
  bool close(Handle handle, bool cancel, std::vector<Handle>& over);
  // Every holder leaves at once.
  void cut(Handle handle, std::vector<Handle>& over);

  // unknown_device: a child may name only devices that hold its parent.
  Status add_device(Handle handle, std::uint32_t device);

  // True for one caller, once the last holder has left; the record then is the caller's to finish.
  bool claim(Handle handle) noexcept;
  // Forgets a claimed request whose blocks went back. Its slot is free once no block is retained.
  // Returns children that were left over (their parent's end is theirs), to be finished.
  std::vector<Handle> retire(RequestRecord& record);
  // Frees the slot; by whoever brings `keep` to zero.
  void recycle(RequestRecord& record) noexcept;

  bool is_open(Handle handle) const noexcept;    // the host holds
  bool is_over(Handle handle) const noexcept;    // every holder has left
  bool has_ended(Handle handle) const noexcept;  // and its blocks went back, but for what views retain
  bool is_cancelled(Handle handle) const noexcept;

  // Budget of a request with quota or reserve. charge: ok, quota_exceeded, or request_closed; `reserve`
  // is then what was promised to it, if anything. uncharge() for bytes that could not be had.
  Status charge(RequestRecord& record, Handle handle, std::uint64_t bytes, ReserveRef& reserve);
  void uncharge(RequestRecord& record, Handle handle, std::uint64_t bytes) noexcept;
  void return_budget(RequestRecord& record) noexcept;  // at the end

  // ---- what sessions keep (keep.cpp): a root for each session, whose quota is its budget, and in it
  // a child for each block.

  // Moves a block of a request that is not over to a kept child, which that request (and its root) is then
  // pinned by; charges it there and not here. `instead_of`, a sibling that is about to be closed, is not
  // charged any more. quota_exceeded: the root's quota; exhausted: the limit of all that is kept;
  // invalid_argument: not a block of that request, or of one that is kept. Throws std::bad_alloc.
  Status keep(Block& block, Handle from, Handle to, const Handle* instead_of);
  // Kept requests live on until `by` is over. request_closed: one of them is over. Throws std::bad_alloc.
  Status pin(Handle by, std::span<const Handle> kept);
  bool pins(Handle by, std::uint32_t slot) const noexcept;  // whether it pins the one in this slot
  struct Kept {
    std::uint64_t bytes = 0;  // charged
    std::uint64_t quota = 0;
    std::uint32_t pins = 0;
    std::int64_t idle_since_ns = 0;
  };
  bool kept(Handle root, Kept& told) const noexcept;  // false: over
  // quota_exceeded: it has more.
  Status set_quota(Handle root, std::uint64_t quota) noexcept;
  // Of all that is kept: the limit, and how much it is.
  void set_kept_quota(std::uint64_t quota) noexcept;
  std::uint64_t kept_bytes() const noexcept;

  // All generations of an id not yet over that wait for a device. `named`: some live generation of the
  // id, or this very one, was opened with that device.
  struct Waiting {
    std::uint32_t count = 0;  // generations found waiting (children only if asked for by generation)
    Handle handle;            // one of them
    // Of those that hold the device: its ack is under way, so they are not among the others.
    std::uint32_t under_way = 0;
    Handle acknowledged;  // one of these
    bool found = false;   // some generation of the id is not over
    bool named = false;
  };
  // `is_under_way` (may be null) tells, of a generation that holds the device, whether its ack is; it is called
  // with the table's mutex held.
  using IsUnderWay = bool (*)(const void* of, std::uint64_t generation, std::uint32_t device);
  Waiting find_waiting(std::string_view id, std::uint32_t device,
                       std::optional<std::uint64_t> generation, IsUnderWay is_under_way = nullptr,
                       const void* of = nullptr);
  std::vector<Handle> held_by(std::uint32_t device);

  // Calls f(record, holders) under the mutex for every request that is not over or still retains bytes.
  template <typename F>
  void each(F&& f) {
    const std::lock_guard lock(mutex_);
    for (std::uint32_t slot = 0; slot < slots_made_; ++slot) {
      RequestRecord& r = *record(slot);
      if (r.generation.load(std::memory_order_acquire) != 0) f(r, holders(slot));
    }
  }
  // The same for one request, if it is not over or still retains bytes.
  template <typename F>
  void at(Handle handle, F&& f) {
    const std::lock_guard lock(mutex_);
    RequestRecord* r = record(handle.slot);
    if (r == nullptr) return;
    const std::uint64_t generation = r->generation.load(std::memory_order_acquire);
    if ((generation & ~RequestRecord::kReleased) == handle.generation && handle.generation != 0)
      f(*r, holders(handle.slot));
  }
  // Device silent for longer than the request's lease that still holds it?
  bool in_doubt(const RequestRecord& record, const HolderSet& holders,
                std::int64_t now_ns) const noexcept;

  struct Counts {
    std::uint64_t open;
    std::uint64_t draining;
  };
  Counts counts() const noexcept {
    // Relaxed: figures.
    return {open_.load(std::memory_order_relaxed), draining_.load(std::memory_order_relaxed)};
  }
  // Whether somebody holds a request, and if nobody does, whether one is still ending: its last holder has left,
  // and a thread is giving its blocks back.
  enum class Holds { none, ending, some };
  Holds holds();
  bool any_lease() const noexcept { return leased_.load(std::memory_order_relaxed) != 0; }

 private:
  static constexpr std::uint32_t kChunk = 64;
  static std::uint32_t tag(std::uint64_t generation) noexcept {
    return static_cast<std::uint32_t>(generation);
  }

  std::uint64_t nonce(std::uint64_t generation) const noexcept {
    return mix_bits(secret_ + mix_bits(generation));
  }
  RequestRecord* live_record(Handle handle) const noexcept;  // null unless not over
  RequestRecord* budget_of(Handle root) const noexcept;      // null once it was returned
  RequestRecord* new_slot();
  void index(RequestRecord& record) noexcept;
  void unindex(RequestRecord& record) noexcept;
  void unlink_child(RequestRecord& record) noexcept;
  template <typename F>
  void each_below(RequestRecord& top, F&& f);
  void host_leaves_one(RequestRecord& record, bool cancel, std::vector<Handle>& over);
  void bit_leaves_below(RequestRecord& record, HolderBit bit, std::vector<Handle>& over);
  void cut_one(RequestRecord& record, std::vector<Handle>& over);
  void cut_locked(RequestRecord& record, std::vector<Handle>& over);  // with its descendants
  void pin_locked(RequestRecord& by, RequestRecord& kept) noexcept;
  void unpin_all(RequestRecord& by, std::vector<Handle>& over) noexcept;
  void charge_kept(RequestRecord& kept, std::uint64_t bytes) noexcept;  // under the budget mutex
  void forget_charge(RequestRecord& kept) noexcept;                     // likewise

  Depot& depot_;
  DeviceRegistry& devices_;
  VirtualArray<RequestSlot> slots_;
  const std::uint64_t secret_;
  std::unique_ptr<std::atomic<RequestRecord*>[]> chunks_;
  mutable std::mutex mutex_;
  std::uint32_t slots_made_ = 0;
  std::vector<std::uint32_t> free_slots_;
  std::vector<std::uint32_t> buckets_;  // slot + 1, by hash of the id
  std::uint64_t next_generation_ = 1;
  mutable std::mutex budget_mutex_;
  std::uint64_t kept_quota_ = ~std::uint64_t{0};  // under the budget mutex, as is the next
  std::uint64_t kept_bytes_ = 0;
  std::atomic<std::uint64_t> open_{0};
  std::atomic<std::uint64_t> draining_{0};
  std::atomic<std::uint64_t> leased_{0};
};

}  // namespace slabpool
