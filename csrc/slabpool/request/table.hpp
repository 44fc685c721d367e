// The requests of one pool: opening, leaving, and choosing the one thread that returns the blocks.
//
// A device's ack is one compare-and-swap on the holders' word and takes no lock, unless it is the last or the request has
// children. Every change of the set of requests (open, close, child, add, end) is under one mutex.
// Invariants:
//   claim(h) succeeds exactly once for each request h;
//   open_ + draining_ == the number of requests that are not retired and not kept;
//   a slot that was made is in free_slots_ or in a closed chunk exactly if its record's generation is 0, and its record in the
//   list by age otherwise;
//   a request that is neither retired nor kept is in the chain of its id and in that of its generation, a group in the first.
// Files: table (opening, acks, the end), slots (records for requests), host (how the host leaves), budget, levels, keep (what
// sessions keep), adopt (tensors that change requests), move_charge (of both).
// Order of locks: the pool's (collecting acks, then growing), the table's mutex, the budget mutex, the RequestBlocks locks,
// then the depot's. No lock declared here is held while blocks are returned.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "slabpool/base/mutex.hpp"
#include "slabpool/base/status.hpp"
#include "slabpool/memory/virtual_array.hpp"
#include "slabpool/request/device_registry.hpp"
#include "slabpool/request/free_slots.hpp"
#include "slabpool/request/holder_set.hpp"
#include "slabpool/request/levels.hpp"
#include "slabpool/request/record.hpp"
#include "slabpool/request/slot.hpp"
#include "slabpool/request/watchers.hpp"
#include "slabpool/slab/depot.hpp"

namespace slabpool {

enum class AckResult : std::int32_t { pending = 0, released = 1, duplicate = 2, late = 3 };

class RequestTable {
 public:
  // `slots`, if given, are zeroed and may be read by peers; the caller keeps them. Nonces are made from `secret`. `watchers`,
  // if given, hear of hosts that leave with kTell.
  RequestTable(Depot& depot, DeviceRegistry& devices, SlotTable* slots = nullptr,
               std::uint64_t secret = 0, std::uint64_t first_generation = 1,
               HostWatchers* watchers = nullptr);
  RequestTable(const RequestTable&) = delete;
  RequestTable& operator=(const RequestTable&) = delete;
  ~RequestTable();

  // Null: the slot was never used. A record stays readable while the table lives. Inlined by force, as HolderSet::try_leave().
  [[gnu::always_inline]] RequestRecord* record(std::uint32_t slot) const noexcept {
    if (slot >= kMaxRequests) return nullptr;
    // Acquire pairs with new_slot(): the records of the chunk are made.
    RequestRecord* chunk = chunks_[slot / kChunk].load(std::memory_order_acquire);
    return chunk != nullptr ? &chunk[slot % kChunk] : nullptr;
  }
  HolderSet holders(std::uint32_t slot) noexcept { return {slots_[slot].holders, more_[slot]}; }
  HolderView holders(std::uint32_t slot) const noexcept { return {slots_[slot].holders, more_[slot]}; }
  // Of the request in a slot; see RequestSlot.
  std::atomic<std::uint32_t>& first_child(std::uint32_t slot) noexcept {
    return slots_[slot].first_child;
  }
  // The seal of a reference to bytes of a request that is not over; see RequestSlot.
  std::uint64_t seal(Handle handle, std::uint64_t offset, std::uint64_t nbytes) const noexcept {
    return RequestSlot::seal(nonce(handle.generation), handle.generation, offset, nbytes);
  }

  // exhausted: the reserve is not available now. quota_exceeded: nor in a quota above, which is written to `refused` (may be
  // null). request_closed: the parent or the group is closed. too_deep: more than kMaxLevels levels. name_in_use: an open
  // group has this id. Throws std::bad_alloc.
  Status open(const OpenSpec& spec, std::int64_t now_ns, Handle& handle, LevelNeed* refused = nullptr);

  // The calls below claim the requests that are over by them and add them to `over`, descendants first. The caller ends
  // them: it returns their blocks and calls retire(). None of these calls allocates.

  // A device that leaves a request leaves its children too. Called after HolderSet::try_leave() on the request itself.
  void leave_children(Handle handle, HolderBit bit, ClaimedList& over) noexcept;
  // How the host leaves. One word of both, so that the usual way, 0, is one test.
  static constexpr unsigned kCancel = 1;  // it gives up: devices may stop early (cancel.cpp)
  static constexpr unsigned kTell = 2;    // peers may wait for it
  // The host leaves the request and all descendants. False if the host had left before or the request is over.
  bool close(Handle handle, unsigned how, ClaimedList& over) noexcept;
  // The same with kCancel, for the one request of the id that the host holds. Children count only if their generation is
  // given. Returns how many there are; if it is not 1, nothing has changed.
  std::uint32_t cancel_id(std::string_view id, std::optional<std::uint64_t> generation,
                          ClaimedList& over, Handle& handle) noexcept;
  // Every holder of the request and of its descendants leaves at once.
  void cut(Handle handle, ClaimedList& over) noexcept;
  // The host leaves every request, and so do the devices for which stays(device) is false. A kept request stays while a
  // request that stays pins it.
  template <typename Stays>
  void close_all(Stays&& stays, ClaimedList& over) noexcept;
  // A device leaves every request that is open when the call starts, and what descends from them. Calls left(generation)
  // under the mutex for each request that it held, descendants first. The mutex is released now and then, as in each().
  template <typename Left>
  void leave_all(HolderBit bit, ClaimedList& over, Left&& left) noexcept;

  // Whether a device holds any request. Under one hold of the mutex, because a device may be named for one request while
  // it leaves another.
  bool holds_any(HolderBit bit) noexcept;

  // Adds to `used` the holders of requests that are not over; with `left`, also those that have left one. Stops once `used`
  // contains `wanted`. It looks first at the requests that held `wanted` in the last call without `left`: while they
  // hold it, a call looks at no more than kMaxDevices requests. Returns at how many it looked. The mutex is released as in
  // each(). One thread at a time. Throws std::bad_alloc.
  std::size_t mark_holders(bool left, const HolderMarks& wanted, HolderMarks& used);
  // The holders in `gone` hold no request. Their numbers are about to be other devices', which no request has named yet.
  void forget_named(const HolderMarks& gone) noexcept;

  // unknown_device: a child may name only devices that hold its parent.
  Status add_device(Handle handle, std::uint32_t device);

  // The record for one caller, once the last holder has left; that caller then returns the blocks and calls retire(). Null
  // for all others.
  RequestRecord* claim(Handle handle) noexcept;
  // Forgets a claimed request whose blocks went back. Its slot is free once no block is retained. Children that were not
  // over yet (their parent's end is theirs) are added to `over`. The result is the request, because another one may be in
  // the record at once.
  Handle retire(RequestRecord& record, ClaimedList& over) noexcept;
  // Whether a request that ended since the last call has left a session without pins.
  bool take_unpinned() noexcept {
    return unpinned_.load(std::memory_order_relaxed) &&
           unpinned_.exchange(false, std::memory_order_relaxed);
  }
  // Frees the slot; called by the thread for which RequestBlocks::returned_retained() returned true.
  void recycle(RequestRecord& record) noexcept;

  bool is_open(Handle handle) const noexcept;  // the host holds
  bool is_over(Handle handle) const noexcept;  // every holder has left
  // True once the request is over and its blocks went back, except those that views retain.
  bool has_ended(Handle handle) const noexcept;
  // Whether the host has cancelled it. Of a request that is over: false once a later one in its slot is cancelled.
  bool is_cancelled(Handle handle) const noexcept;

  // The budget of a request that has_budget (budget.cpp), and its levels (levels.hpp). charge(): ok, quota_exceeded (`refused`
  // says by what), or request_closed; `more.drawn` is what the caller draws from reserve_of(). uncharge(): the bytes were not
  // available after all, or went back. Both calls that return bytes add the levels that have more room to `back`.
  Status charge(RequestRecord& record, Handle handle, Share more, LevelNeed& refused) noexcept;
  void uncharge(RequestRecord& record, Handle handle, Share less, Levels& back) noexcept;
  void return_budget(RequestRecord& record, Levels& back) noexcept;  // at the end
  // The levels that got bytes by calls which say nothing of them, since the last call of this.
  void take_back(Levels& back) noexcept;
  // False if a quota refuses a charge now: `refused` says which.
  bool allows(const RequestRecord& record, Handle handle, Share more, LevelNeed& refused) const noexcept;
  // What charge() would need of each quota. False once the budget was returned.
  bool needs_of(const RequestRecord& record, Handle handle, Share more,
                LevelNeeds& needs) const noexcept;
  // What such a request is charged, and promised beside that, without its descendants. 0 of what a session keeps.
  std::uint64_t charged_of(const RequestRecord& record, Handle handle) const noexcept;
  // The quota of a level, and what is left of it; both are all bytes if it has none, or is over.
  struct Quota {
    std::uint64_t bytes = ~std::uint64_t{0};
    std::uint64_t left = ~std::uint64_t{0};
  };
  Quota quota_of(Handle level) const noexcept;
  bool is_session(Handle level) const noexcept;  // and no group
  // Bytes set aside by a level itself and not drawn.
  std::uint64_t reserved_by(const RequestRecord& record, Handle handle) const noexcept;
  // What was promised at the nearest level that has a reserve, if any.
  ReserveRef reserve_of(const RequestRecord& record, Handle handle) const noexcept;
  // Calls f(level, reserve) for each level of a request that is no group and has a reserve.
  template <typename F>
  void each_reserve(const RequestRecord& r, Handle handle, F&& f) const noexcept {
    const std::lock_guard lock(budget_mutex_);
    if (r.charged_for != handle.generation) return;
    for (Handle at = r.level; const RequestRecord* level = budget_of(at); at = level->upper)
      if (level->reserve.reserve != nullptr && !level->is_group) f(at, level->reserve);
  }

  // ---- groups (groups.cpp)
  struct Group {
    std::uint64_t used = 0;
    std::uint64_t quota = 0;     // 0: none
    std::uint64_t promised = 0;  // its reserve
    std::uint64_t reserved = 0;  // set aside in it and not drawn
    std::uint32_t requests = 0;  // without children
    std::uint32_t sessions = 0;
  };
  Group group_figures(const RequestRecord& group) const noexcept;  // under the mutex, as in each()
  // The group that a record is under; null: none. Under the mutex.
  const RequestRecord* group_of(const RequestRecord& r) const noexcept {
    return r.group != 0 ? record(r.group - 1) : nullptr;
  }

  // Moves a block from a request that is not over to another one that the host holds. The first gets a view of it until it is
  // over, because its devices may read the block; none if no device holds it. Anything but ok: nothing has changed; for
  // quota_exceeded `refused` says what must go. With `needs` nothing changes either: quotas whose waiters have to be asked
  // first are added there. Throws std::bad_alloc.
  enum class Adopted : std::int32_t {
    ok = 0,
    closed = 1,          // the host has closed `to`
    released = 2,        // `from` is over
    quota_exceeded = 3,  // that of `to`, or of the request it descends from
    not_its = 4,         // the block is not one of `from`, or `from` is a session's
  };
  Adopted adopt(Block& block, Handle from, Handle to, LevelNeeds* needs, LevelNeed& refused);

  // ---- what sessions keep (keep.cpp): a root for each session, whose quota is its budget, and in it a child for each
  // block.

  // Moves a block of a request that is not over to the kept child `to`, charges it there instead, and pins the child and
  // its root by `from`. `instead_of`, a sibling that is about to be closed, is not charged any more. quota_exceeded: `refused`, the
  // root or its group; exhausted: the limit of all kept memory; invalid_argument: not a block of that request, or of one
  // that is kept. With `needs` nothing changes, as in adopt(): waiters_ahead. Throws std::bad_alloc.
  Status keep(Block& block, Handle from, Handle to, const Handle* instead_of, LevelNeeds* needs,
              LevelNeed& refused);
  // Kept requests live on until `by` is over. request_closed: one of them is over. Throws std::bad_alloc.
  Status pin(Handle by, std::span<const Handle> kept);
  bool pins(Handle by, std::uint32_t slot) const noexcept;  // whether `by` pins the request in this slot
  // Whether a device holds the request or, of a kept one, a request that pins it. Visits all requests in the latter case.
  bool devices_hold(Handle handle) const noexcept;
  struct Kept {
    std::uint64_t bytes = 0;  // charged
    std::uint64_t quota = 0;
    std::uint32_t pins = 0;
    std::int64_t idle_since_ns = 0;
    std::uint64_t drawn = 0;  // of the bytes, from promises above
  };
  bool kept(Handle root, Kept& figures) const noexcept;  // false: the session is closed
  // A session whose last pin has gone since it was taken here the last time. False: there is none.
  bool take_idle(Handle& root) noexcept;
  // Whether what the session keeps counts in this level: the session itself, or its group.
  bool charged_to(Handle session, Handle level) const noexcept;
  // By how much a charge would exceed the quota of the lowest level that refuses it, which is written too.
  std::uint64_t over_quota(Handle handle, Share more, Handle& level) const noexcept;
  // quota_exceeded: the session keeps more.
  Status set_quota(Handle root, std::uint64_t quota) noexcept;
  // The limit and the figure of all kept memory.
  void set_kept_quota(std::uint64_t quota) noexcept;
  std::uint64_t kept_bytes() const noexcept;

  // The generations of an id that are not over and wait for a device. Children count only if their generation is given.
  struct Waiting {
    std::uint32_t count = 0;  // generations that wait, and whose ack is not queued
    Handle handle;            // one of them
    std::uint32_t queued =
        0;  // generations that the device holds while its ack is queued behind work on a stream
    Handle acknowledged;       // one of them
    bool found = false;        // some generation of the id is not over
    bool named = false;        // and the device was named for it
    std::uint32_t looked = 0;  // records looked at
  };
  // `is_queued(generation, device)` is called with the table's mutex held.
  // A call that gives the generation takes the same time whatever the number of generations.
  template <typename IsQueued>
  Waiting find_waiting(std::string_view id, std::uint32_t device,
                       std::optional<std::uint64_t> generation, IsQueued&& is_queued);

  // Calls f(record, holders) under the mutex for every request that is not over or still retains bytes. The mutex is
  // released after every kWalkBatch records, so the reports are not of one instant: a request that is open during the
  // whole call is reported once, and one that is opened or ends meanwhile once or not at all.
  template <typename F>
  void each(F&& f) {
    for (std::uint32_t slot = 0; slot != FreeSlots::kNone;) slot = each_from(slot, f);
  }
  // The part of each() under one hold of the mutex: from `slot` on. Returns the slot to go on from, FreeSlots::kNone at
  // the end.
  template <typename F>
  std::uint32_t each_from(std::uint32_t slot, F&& f) {
    const std::lock_guard lock(mutex_);
    return walk(slot, kWalkBatch, [&](const RequestRecord& r) {
      f(r, std::as_const(*this).holders(r.slot));
      return 1U;
    });
  }
  static constexpr std::uint32_t kWalkBatch = 64;
  // The requests that a refusal names, found in a time that does not grow with their number: the oldest, and the largest
  // of those looked at. A call looks at the largest of the call before it, at those that took a block from the depot
  // since and became larger than these, at the oldest, and at the next kNextLooked in order of their slots. So with up
  // to kNextLooked requests they are the largest, and with n they are after n / kNextLooked calls, wherever blocks moved
  // by the threads' caches alone.
  static constexpr std::uint32_t kNotable = 5;
  static constexpr std::uint32_t kNextLooked = 32;
  static constexpr std::uint32_t kOldestLooked = 16;
  struct Notable {
    RequestRecord* oldest[kNotable];
    RequestRecord* largest[kNotable];  // in order of their bytes
    std::uint64_t bytes[kNotable];     // of `largest`
    std::uint32_t oldest_count = 0;
    std::uint32_t largest_count = 0;
    std::uint32_t holders = 0;  // requests and kept tensors, of any size
    std::uint32_t looked = 0;   // records looked at
  };
  // The groups that a refusal names: those with the most left of their reserve, of up to kGroupsLooked looked at. The next
  // call looks at the next ones, and at those that this one found.
  static constexpr std::uint32_t kNamedGroups = 3;
  static constexpr std::uint32_t kGroupsLooked = 32;
  struct PromisedGroups {
    const RequestRecord* at[kNamedGroups + 1];
    std::uint64_t left[kNamedGroups + 1];
    std::uint32_t count = 0;
  };
  // Calls f(groups) under the mutex; f may throw.
  template <typename F>
  void promised_groups(F&& f) {
    const std::lock_guard lock(mutex_);
    if (first_promised_ != 0) f(find_promised());
  }
  // Calls f(notable) under the mutex; f may throw.
  template <typename F>
  void notable(F&& f) {
    const std::lock_guard lock(mutex_);
    f(find_notable());
  }
  // A request took a block from the depot: the next refusal may have to name it.
  void note_grown(const RequestRecord& record) noexcept {
    // Relaxed: hints for a report.
    if (record.blocks.bytes() > large_from_.load(std::memory_order_relaxed))
      grown_[record.slot % kGrown].store(record.slot + 1, std::memory_order_relaxed);
  }
  // Of what a session keeps: since when no request uses the session (ns), 0 while one does. False: the session is closed,
  // or this is a request. Under the mutex.
  bool session_idle_since(const RequestRecord& r, std::int64_t& since_ns) const noexcept {
    if (!r.kept || r.parent == 0) return false;
    const RequestRecord& session = *record(r.parent - 1);
    since_ns = session.pins != 0 ? 0 : session.idle_since_ns;
    return !session.host_left;
  }

  // The same for one request, if it is not over or still retains bytes.
  template <typename F>
  void at(Handle handle, F&& f) {
    const std::lock_guard lock(mutex_);
    RequestRecord* r = record(handle.slot);
    if (r != nullptr && handle.generation != 0 && r->handle().generation == handle.generation)
      f(*r, holders(handle.slot));
  }
  // Arrays that point into a request's blocks; 0 if the slot is another request's. Takes no lock of the table.
  std::uint32_t views_of(Handle handle) const noexcept;
  // Whether a device that holds the request has been silent for longer than the request's lease.
  bool in_doubt(const RequestRecord& record, const HolderView& holders,
                std::int64_t now_ns) const noexcept;

  struct Counts {
    std::uint64_t open;
    std::uint64_t draining;
  };
  Counts counts() const noexcept {
    // Relaxed: figures.
    return {open_.load(std::memory_order_relaxed), draining_.load(std::memory_order_relaxed)};
  }
  // some: a request is held. ending: none is held, but a thread is still giving blocks of one back.
  enum class Holds { none, ending, some };
  Holds holds();
  std::uint32_t free_slots() const noexcept {
    const std::lock_guard lock(mutex_);
    return kMaxRequests - slots_in_use();
  }
  // Bytes of records and tables.
  std::uint64_t metadata_bytes() const noexcept;
  // Returns pages of records that no request has to the system. The mutex is released now and then, as in each().
  void trim() noexcept;
  bool any_lease() const noexcept { return leased_.load(std::memory_order_relaxed) != 0; }

 private:
  static constexpr std::uint32_t kChunk = FreeSlots::kGroup;

  std::uint64_t nonce(std::uint64_t generation) const noexcept {
    return mix_bits(secret_ + mix_bits(generation));
  }
  RequestRecord* live_record(Handle handle) const noexcept;  // null if the request is over
  // The calls from here to forget_charge() are under the budget mutex.
  RequestRecord* budget_of(
      Handle level) const noexcept;  // null once the budget was returned, or without one
  Status check(Handle level, Share more, LevelNeed& refused) const noexcept;
  void change(Handle level, Share before, Share after, Levels* back,
              const Leaving* leaving = nullptr) noexcept;
  Status move_charge(Block& block, RequestRecord& source, Handle from, RequestRecord& target, Handle to,
                     RequestRecord* old, LevelNeeds* needs, LevelNeed& refused);
  static void take_off(RequestRecord& r, Share less) noexcept;
  std::uint64_t excess(const LevelNeed& refused) const noexcept;
  ReserveRef end_promise(RequestRecord& r, Levels& back) noexcept;
  ReserveRef nearest_reserve(Handle level) const noexcept;
  void forget_charge(RequestRecord& r, Levels& back) noexcept;
  // A slot that no request has, and its record (slots.cpp). Null: there is none. Throws std::bad_alloc.
  RequestRecord* new_slot();
  void make_chunk(std::uint32_t chunk);
  void open_chunk(std::uint32_t chunk) noexcept;
  bool close_chunk(std::uint32_t chunk) noexcept;
  std::uint32_t slots_in_use() const noexcept {
    return slots_made_ - closed_count_ * kChunk - free_slots_.count();
  }
  Notable find_notable() noexcept;          // under mutex_, as are the next
  PromisedGroups find_promised() noexcept;  // there is one
  void link_promised(RequestRecord& group) noexcept;
  [[gnu::noinline]] void unlink_promised(RequestRecord& group) noexcept;
  static bool add_more(HolderSet set, std::uint64_t generation,
                       std::span<const std::uint32_t> devices) noexcept;
  void free_slot(RequestRecord& record) noexcept;  // under mutex_
  [[gnu::always_inline]] void index(RequestRecord& record) noexcept;
  [[gnu::always_inline]] void unindex(RequestRecord& record) noexcept;
  [[gnu::always_inline]] void index_generation(RequestRecord& record, std::uint64_t generation) noexcept;
  [[gnu::always_inline]] void unindex_generation(RequestRecord& record,
                                                 std::uint64_t generation) noexcept;
  template <typename F>
  std::uint32_t each_of_id(std::string_view id, std::optional<std::uint64_t> generation, F&& f);
  void link_child(RequestRecord& child, RequestRecord& parent, std::uint64_t parent_generation) noexcept;
  void unlink_child(RequestRecord& record) noexcept;
  template <typename F>
  void each_below(RequestRecord& top, F&& f);
  template <typename F>
  std::uint32_t walk(std::uint32_t slot, std::uint32_t most, F&& f);
  template <typename F>
  std::uint32_t with_all_below(RequestRecord& record, F&& f);
  [[gnu::always_inline]] bool claim_record(RequestRecord& record, Handle handle) noexcept;
  [[gnu::always_inline]] void claim_into(RequestRecord& record, Handle handle,
                                         ClaimedList& over) noexcept;
  bool bit_leaves_one(RequestRecord& record, HolderBit bit, ClaimedList& over) noexcept;
  void close_locked(RequestRecord& record, unsigned how, ClaimedList& over) noexcept;
  void host_leaves_one(RequestRecord& record, unsigned how, ClaimedList& over) noexcept;
  [[gnu::always_inline]] inline void let_host_go(RequestRecord& record, Handle own,
                                                 ClaimedList& over) noexcept;
  [[gnu::noinline]] void host_leaves_noted(RequestRecord& record, Handle own, unsigned how,
                                           ClaimedList& over) noexcept;
  void cut_one(RequestRecord& record, ClaimedList& over) noexcept;
  void cut_locked(RequestRecord& record, ClaimedList& over) noexcept;  // with its descendants
  void pin_locked(RequestRecord& by, RequestRecord& kept) noexcept;
  void unpin_all(RequestRecord& by, ClaimedList& over) noexcept;
  [[gnu::noinline]] bool leave_budget(RequestRecord& record) noexcept;
  // Under the mutex, so that no locked add is needed. Relaxed: others read a figure.
  static void change(std::atomic<std::uint64_t>& figure, int by) noexcept {
    figure.store(figure.load(std::memory_order_relaxed) + static_cast<std::uint64_t>(by),
                 std::memory_order_relaxed);
  }
  void count_draining() noexcept {
    change(open_, -1);
    change(draining_, 1);
  }
  [[gnu::noinline]] void list_idle(RequestRecord& session) noexcept;
  [[gnu::noinline]] Status start_budget(RequestRecord& r, Handle self, const OpenSpec& spec,
                                        const RequestRecord* above, ReserveRef reserve,
                                        LevelNeed* refused) noexcept;  // under mutex_
  [[gnu::noinline]] ReserveRef reserve_above(const OpenSpec& spec) const noexcept;
  bool has_group(std::string_view id) const noexcept;
  void join_group(RequestRecord& r, const RequestRecord& above, bool child) noexcept;
  [[gnu::noinline]] void leave_group(RequestRecord& r, ClaimedList& over) noexcept;

  Depot& depot_;
  DeviceRegistry& devices_;
  VirtualArray<RequestSlot> slots_;
  // Opened for a slot when a request there names a device beyond the first word.
  VirtualArray<MoreHolders> more_;
  const std::uint64_t secret_;
  HostWatchers* const watchers_;  // null in a pool without peers
  std::unique_ptr<std::atomic<RequestRecord*>[]> chunks_;
  mutable Mutex mutex_;
  std::uint32_t slots_made_ = 0;
  // Chunks whose pages trim() has returned: a bit for each.
  std::uint64_t closed_chunks_[kMaxRequests / kChunk / 64] = {};
  std::uint32_t closed_count_ = 0;
  FreeSlots free_slots_;
  std::uint32_t first_idle_ = 0;  // slot + 1 of the session that became idle last, 0 for none
  // Both ends of the ring of records in use: `newer` is the oldest of them, `older` the newest.
  RequestRecord by_age_;
  // Slots of the requests in which mark_holders() found all that it wanted. Its callers exclude each other.
  std::vector<std::uint32_t> enough_;
  std::uint32_t sessions_ = 0;  // in use
  // For find_notable(): slot + 1 of the largest that it found last, and of those that grew since; and where it goes on.
  static constexpr std::uint32_t kGrown = 8;
  std::uint32_t largest_[kNotable]{};
  std::uint32_t look_from_ = 0;
  // Groups with a reserve: a ring through their links of siblings. Slot + 1 of where find_promised() goes on, 0 for none;
  // and of those that it found last.
  std::uint32_t first_promised_ = 0;
  std::uint32_t promised_[kNamedGroups]{};
  std::atomic<std::uint32_t> grown_[kGrown]{};
  std::atomic<std::uint64_t> large_from_{0};  // bytes of the smallest of `largest_`
  // Heads of chains through the records: slot + 1.
  static constexpr std::uint32_t kBuckets = 8192;
  static constexpr std::uint32_t bucket_of(std::uint64_t hash) noexcept { return hash % kBuckets; }
  // Multiplied by 2^64 over the golden ratio: generations that follow each other at any distance are spread evenly.
  static constexpr std::uint32_t bucket_of_generation(std::uint64_t generation) noexcept {
    return static_cast<std::uint32_t>(generation * 0x9e3779b97f4a7c15ULL >> 51) % kBuckets;
  }
  std::uint32_t by_id_[kBuckets]{};  // by hash of the id
  std::uint32_t by_generation_[kBuckets]{};
  std::uint64_t next_generation_;
  mutable std::mutex budget_mutex_;
  std::uint64_t kept_quota_ = ~std::uint64_t{0};  // under the budget mutex, as is the next
  std::uint64_t kept_bytes_ = 0;
  Levels back_;  // for take_back(), also under the budget mutex
  std::atomic<std::uint64_t> open_{0};
  std::atomic<std::uint64_t> draining_{0};
  std::atomic<std::uint64_t> leased_{0};
  std::atomic<bool> unpinned_{false};
};

inline bool RequestTable::claim_record(RequestRecord& r, Handle handle) noexcept {
  if (!holders(handle.slot).empty(handle.generation)) return false;
  std::uint64_t expected = handle.generation;
  // Acquire and release: the winner sees everything that the holders did; is_over() sees the request as over.
  if (!r.generation.compare_exchange_strong(expected, handle.generation | RequestRecord::kReleased,
                                            std::memory_order_acq_rel, std::memory_order_relaxed)) {
    return false;
  }
  // Peers see this before the slot can get another request. Relaxed: they check the holders as well.
  slots_[handle.slot].generation.store(0, std::memory_order_relaxed);
  return true;
}

// Claims a request that has no holder left. Another thread, whose ack was the last, may have claimed it before.
inline void RequestTable::claim_into(RequestRecord& r, Handle handle, ClaimedList& over) noexcept {
  if (claim_record(r, handle)) over.push(r);
}

// Calls f for every descendant, each before the one it descends from. Without recursion, because users may nest children
// deeper than a stack.
template <typename F>
void RequestTable::each_below(RequestRecord& top, F&& f) {
  const auto deepest = [&](RequestRecord* r) {
    while (const std::uint32_t child = first_child(r->slot).load(std::memory_order_relaxed))
      r = record(child - 1);
    return r;
  };
  for (RequestRecord* r = deepest(&top); r != &top;) {
    // Read before f, which may remove the last holder: another thread may then end the record, but not while this one
    // holds the mutex.
    RequestRecord* next =
        r->next_sibling != 0 ? deepest(record(r->next_sibling - 1)) : record(r->parent - 1);
    f(*r);
    r = next;
  }
}

// Calls f for records in use, in order of their slots, from `slot` on, until the results of f add up to `most`. Returns
// the slot to go on from, FreeSlots::kNone at the end.
template <typename F>
std::uint32_t RequestTable::walk(std::uint32_t slot, std::uint32_t most, F&& f) {
  for (std::uint32_t done = 0; done < most; ++slot) {
    slot = free_slots_.next(slot);
    if (slot == FreeSlots::kNone) return slot;
    RequestRecord& r = *record(slot);
    if (r.generation.load(std::memory_order_relaxed) != 0) done += f(r);
  }
  return slot;
}

// For a record without a parent: calls f for its descendants, then for the record itself; returns how many. For others
// does nothing and returns 1. A walk that does this for each record in use reaches all of them, because a parent is not
// retired before its children are unlinked, and they are over then.
template <typename F>
std::uint32_t RequestTable::with_all_below(RequestRecord& r, F&& f) {
  if (r.parent != 0) return 1;
  std::uint32_t done = 1;
  each_below(r, [&](RequestRecord& child) {
    ++done;
    f(child);
  });
  f(r);
  return done;
}

template <typename Stays>
void RequestTable::close_all(Stays&& stays, ClaimedList& over) noexcept {
  const std::lock_guard lock(mutex_);
  const auto leave = [&](RequestRecord& r) {
    host_leaves_one(r, kCancel | kTell, over);
    holders(r.slot).each_device(r.handle().generation, [&](std::uint32_t device) {
      if (!stays(device)) (void)bit_leaves_one(r, device_bit(device), over);
    });
  };
  // No limit: nothing else is done with a pool that closes.
  (void)walk(0, ~0U, [&](RequestRecord& r) { return with_all_below(r, leave); });
}

template <typename Left>
void RequestTable::leave_all(HolderBit bit, ClaimedList& over, Left&& left) noexcept {
  const auto leave = [&](RequestRecord& r) {
    const std::uint64_t generation = r.handle().generation;
    if (bit_leaves_one(r, bit, over)) left(generation);
  };
  std::uint64_t opened_later = 0;
  for (std::uint32_t slot = 0; slot != FreeSlots::kNone;) {
    const std::lock_guard lock(mutex_);
    if (opened_later == 0) opened_later = next_generation_;
    slot = walk(slot, kWalkBatch, [&](RequestRecord& r) {
      return r.handle().generation < opened_later ? with_all_below(r, leave) : 1U;
    });
  }
}

// Calls f(record, handle) for the requests of an id that are not over: the one of that generation, or without one all that
// are no children. Under the mutex. Returns at how many records it looked.
template <typename F>
std::uint32_t RequestTable::each_of_id(std::string_view id, std::optional<std::uint64_t> generation,
                                       F&& f) {
  std::uint32_t looked = 0;
  const std::size_t hash = std::hash<std::string_view>{}(id);
  const auto look = [&](RequestRecord& r, const Handle& own) {
    if (r.hash == hash && r.id == id && !RequestRecord::is_released(own.generation)) f(r, own);
  };
  for (std::uint32_t next = generation ? by_generation_[bucket_of_generation(*generation)]
                                       : by_id_[bucket_of(hash)];
       next != 0; ++looked) {
    RequestRecord& r = *record(next - 1);
    next = generation ? r.generation_next : r.hash_next;
    const Handle own{r.slot, r.generation.load(std::memory_order_relaxed)};
    if (generation ? own.generation == *generation : r.parent_generation == 0) look(r, own);
  }
  return looked;
}

template <typename IsQueued>
RequestTable::Waiting RequestTable::find_waiting(std::string_view id, std::uint32_t device,
                                                 std::optional<std::uint64_t> generation,
                                                 IsQueued&& is_queued) {
  Waiting waiting;
  const std::lock_guard lock(mutex_);
  waiting.looked = each_of_id(id, generation, [&](const RequestRecord& r, const Handle& own) {
    waiting.found = true;
    const HolderSet set = holders(r.slot);
    waiting.named = waiting.named || set.was_named(own.generation, device_bit(device));
    if (!generation && !set.holds(own.generation, device_bit(device))) return;
    if (!generation && is_queued(own.generation, device)) {
      ++waiting.queued;
      waiting.acknowledged = own;
    } else {
      ++waiting.count;
      waiting.handle = own;
    }
  });
  return waiting;
}

}  // namespace slabpool
