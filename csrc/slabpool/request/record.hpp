// What the pool's owner knows of one request, beside the bits of its holders.
//
// A record belongs to a slot and serves one request after another. It stays readable while the pool lives, so that an old
// handle can always be compared with it: as a record of zero bytes, once its pages went back to the system.
// Invariants:
//   generation == g            the request g is not over
//   generation == g|kReleased  g is over: its blocks are going back, or views retain some of them
//   generation == 0            the slot is free
//   `parent` != 0 only while the parent is not retired
//   used, used_drawn of a level == its `charged`, `charged_drawn` + the sums of both over the records whose `level` it is
//                                  + the sums of counts() over the levels whose `upper` it is   (where charged_for != 0)
//   (used_drawn may be less, after memory was taken off a level that no longer knows what it was drawn from)
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slabpool/base/source_location.hpp"
#include "slabpool/request/blocks.hpp"
#include "slabpool/request/handle.hpp"
#include "slabpool/slab/reserve.hpp"
#include "slabpool/slab/size_class.hpp"

namespace slabpool {

// How to open a request.
struct OpenSpec {
  std::string_view id;
  std::span<const std::uint32_t> devices;
  std::optional<Handle> parent;  // or the group that it is to be under
  std::uint64_t reserve = 0;
  std::uint64_t quota = 0;
  std::int64_t lease_ns = 0;
  // Of the opening, and of what is allocated in it where the call names none; of a group, for reports.
  std::int32_t priority = 0;
  bool kept = false;      // memory that a session keeps: no id finds it, and it is counted apart
  bool is_group = false;  // then `kept` too
  SourceLocation where;
};

// What a request or a level counts for one level further up: bytes, and how many of them are drawn from the promise of that
// level or of one above it.
struct Share {
  std::uint64_t bytes = 0;
  std::uint64_t drawn = 0;
  bool operator==(const Share&) const = default;
};

struct alignas(64) RequestRecord {
  static constexpr std::uint64_t kReleased = std::uint64_t{1} << 63;
  static constexpr bool is_released(std::uint64_t generation) noexcept {
    return (generation & kReleased) != 0;
  }

  // Changed by RequestTable::claim() once for each request, otherwise under the table's mutex.
  std::atomic<std::uint64_t> generation{0};
  RequestBlocks blocks;
  // Generation of the last request here whose blocks went back, except those that views retain.
  std::atomic<std::uint64_t> ended{0};

  // Written at open, under the table's mutex.
  std::uint32_t slot = 0;
  std::int64_t opened_ns = 0;
  std::int64_t lease_ns = 0;  // 0: none
  SourceLocation opened_at;
  std::string id;
  // Whether it was opened with a reserve of its own. Relaxed: a hint for the order of waiters.
  std::atomic<bool> has_reserve{false};
  // Of an attempt without a waiter. Relaxed: such an attempt may read that of a later request here, and then fails because
  // its own is over.
  std::atomic<std::int32_t> priority{0};
  std::uint64_t parent_generation = 0;

  // Links, guarded by the table's mutex. Slot + 1, 0 for none.
  std::size_t hash = 0;
  std::uint32_t hash_next = 0;
  std::uint32_t hash_prev = 0;
  std::uint32_t generation_next = 0;
  std::uint32_t parent = 0;
  std::uint32_t next_sibling = 0;  // of a group with a reserve, which has none: the next such group
  std::uint32_t prev_sibling = 0;
  // Written under the mutex, before the host's bit is cleared; accepts() reads it without.
  std::atomic<bool> host_left{false};

  // Groups (groups.cpp), guarded by the table's mutex except `is_group`, which is written at open. A group is a kept record
  // without a block, which every record under it pins.
  bool is_group = false;
  std::uint32_t group = 0;     // the one that it is under: slot + 1, 0 for none
  std::uint32_t requests = 0;  // under this group, without children
  std::uint32_t sessions = 0;

  // The ring of records in use by age, guarded by the table's mutex: see RequestTable::by_age_.
  RequestRecord* older = nullptr;
  RequestRecord* newer = nullptr;

  // A session's memory (keep.cpp), guarded by the table's mutex except `kept` itself, which is written at open.
  // Requests that may still read a kept request pin it: it is not over before they are.
  bool kept = false;
  // On the list of sessions that became idle. Not reset: an entry may outlive its session (RequestTable::take_idle()).
  bool listed_idle = false;
  std::uint32_t pins = 0;
  std::int64_t idle_since_ns = 0;  // of a kept request without pins
  std::vector<Handle> pinned;      // by this request
  std::uint32_t next_idle = 0;     // on that list: slot + 1, 0 for none

  // Blocks that moved from here to another request (adopt.cpp), each with a view that this one holds while its devices may
  // read it. Written under the table's mutex and the lock of `blocks` while the request is not over; after that the thread
  // that claimed it has them.
  std::set<Block*> lent;

  // Of this request or the one it descends from. Written at open and read without a lock; a stale answer is
  // harmless, because charge() checks again under the budget mutex. True if `kept`, and under a group.
  std::atomic<bool> has_budget{false};

  // The budget, guarded by the table's budget mutex: see levels.hpp. An allocation may be in progress while its request ends
  // and the slot gets another one, so these fields are used only while `charged_for` equals the caller's generation.
  std::uint64_t charged_for = 0;     // generation; 0 once the budget was returned
  Handle level;                      // that it counts in: itself, if it is one, or the nearest above
  Handle upper;                      // of a level: the next one; generation 0: none
  std::uint32_t depth = 0;           // of a level: levels from it up
  std::uint64_t quota = 0;           // 0: none
  ReserveRef reserve;                // null: none
  std::uint64_t promised = 0;        // bytes of the reserve, while it is open, less what has left it
  std::uint64_t promised_above = 0;  // of these: what was taken out of the promises above
  std::uint64_t charged = 0;         // by this request alone
  std::uint64_t charged_drawn = 0;   // of these: what was drawn from promises, here or above
  std::uint64_t used = 0;            // of a level: by all that count in it
  std::uint64_t used_drawn = 0;      // the same
  // Of a level whose promise is over: what was drawn from it and is not the promises' above.
  std::uint64_t owed = 0;

  // The link of a ClaimedList. Used only by the thread that claimed the request, until it retires the request.
  RequestRecord* next_claimed = nullptr;

  // Starts a new request in a free slot, not yet visible to any reader of `generation`. `above`: its parent, its group, or null.
  // Throws std::bad_alloc, and then nothing has changed.
  void reset(const OpenSpec& spec, const RequestRecord* above, std::int64_t now_ns);

  // The request that the record is about: the generation without its released mark.
  Handle handle() const noexcept {
    return {slot, generation.load(std::memory_order_acquire) & ~kReleased};
  }
  // Of a free slot: frees what its strings and vectors have, so that the record may become zero bytes.
  void empty() noexcept;
  // Makes the strings and vectors of a record of zero bytes.
  void revive(std::uint32_t own_slot) noexcept;
  // Whether this is a session, or a group: it holds nothing itself, its children hold what it keeps.
  bool is_session() const noexcept { return kept && parent_generation == 0; }
  // Whether it is one of its levels itself. Under the budget mutex.
  bool is_level() const noexcept { return level.slot == slot; }
  // What a level counts for in the one above it, and compares with its quota: what is promised to it, and what it uses beside
  // that. Of what is drawn in it, as much is its own promise's as that has; the rest comes from above.
  Share counts() const noexcept { return share(used, used_drawn); }
  Share share(std::uint64_t all, std::uint64_t all_drawn) const noexcept {
    if (promised == 0) return {all, all_drawn - std::min(owed, all_drawn)};
    // Quotas count bytes that were asked for, but the last page of a promise can be drawn too.
    const std::uint64_t within = std::min({all_drawn, all, pages_for(promised) << kPageBits});
    const std::uint64_t floor = std::max(promised, within);
    return {floor + all - within, all_drawn - within + std::min(promised_above, floor)};
  }
  // Whether blocks may be attached to this generation: it is not over, and the host holds it. Under the lock of
  // `blocks` the first is exact. The host may just have left, which is harmless: see RequestBlocks::attach().
  bool accepts(Handle handle) const noexcept {
    return generation.load(std::memory_order_acquire) == handle.generation &&
           !host_left.load(std::memory_order_relaxed);
  }
};

// Requests that this thread has claimed and has to end, in the order in which they are to end. The links lie in the
// records, so a list of any length needs no memory.
class ClaimedList {
 public:
  bool empty() const noexcept { return first_ == nullptr; }
  void push(RequestRecord& record) noexcept {
    record.next_claimed = nullptr;
    (first_ == nullptr ? first_ : last_->next_claimed) = &record;
    last_ = &record;
  }
  // Null: the list is empty.
  RequestRecord* pop() noexcept {
    RequestRecord* record = first_;
    if (record != nullptr) first_ = record->next_claimed;
    return record;
  }

  ClaimedList() noexcept = default;
  ClaimedList(const ClaimedList&) = delete;
  ClaimedList& operator=(const ClaimedList&) = delete;

 private:
  RequestRecord* first_ = nullptr;
  RequestRecord* last_ = nullptr;  // of a list that is not empty
};

}  // namespace slabpool
