// Opening requests, holders that leave, and the end: see table.hpp.
#include "slabpool/request/table.hpp"

#include <algorithm>
#include <new>

#include "slabpool/base/assert.hpp"

namespace slabpool {

RequestTable::RequestTable(Depot& depot, DeviceRegistry& devices, SlotTable* slots, std::uint64_t secret,
                           std::uint64_t first_generation, HostWatchers* watchers)
    : depot_(depot),
      devices_(devices),
      slots_(kMaxRequests, slots != nullptr ? slots->slots : nullptr),
      more_(kMaxRequests, slots != nullptr ? slots->more : nullptr),
      secret_(secret),
      watchers_(watchers),
      chunks_(new std::atomic<RequestRecord*>[kMaxRequests / kChunk] {}),
      next_generation_(first_generation) {
  by_age_.older = by_age_.newer = &by_age_;
}

RequestRecord* RequestTable::live_record(Handle handle) const noexcept {
  RequestRecord* r = record(handle.slot);
  return r != nullptr && handle.generation != 0 &&
                 r->generation.load(std::memory_order_acquire) == handle.generation
             ? r
             : nullptr;
}

// ---- indexes: chains through the records, so that opening a request allocates nothing

inline void RequestTable::index(RequestRecord& r) noexcept {
  r.hash = std::hash<std::string_view>{}(r.id);
  if (r.is_group) [[unlikely]]
    r.hash = ~r.hash;  // so that no request's id finds it
  std::uint32_t& head = by_id_[bucket_of(r.hash)];
  r.hash_prev = 0;
  r.hash_next = head;
  if (head != 0) record(head - 1)->hash_prev = r.slot + 1;
  head = r.slot + 1;
}

inline void RequestTable::unindex(RequestRecord& r) noexcept {
  (r.hash_prev != 0 ? record(r.hash_prev - 1)->hash_next : by_id_[bucket_of(r.hash)]) = r.hash_next;
  if (r.hash_next != 0) record(r.hash_next - 1)->hash_prev = r.hash_prev;
}

inline void RequestTable::index_generation(RequestRecord& r, std::uint64_t generation) noexcept {
  std::uint32_t& head = by_generation_[bucket_of_generation(generation)];
  r.generation_next = head;
  head = r.slot + 1;
}

inline void RequestTable::unindex_generation(RequestRecord& r, std::uint64_t generation) noexcept {
  // Linked one way, because chains are short: eight records where every slot is in use.
  std::uint32_t* link = &by_generation_[bucket_of_generation(generation)];
  while (*link != r.slot + 1) link = &record(*link - 1)->generation_next;
  *link = r.generation_next;
}

// ---- life

void RequestTable::free_slot(RequestRecord& r) noexcept {
  r.generation.store(0, std::memory_order_release);
  r.older->newer = r.newer;
  r.newer->older = r.older;
  free_slots_.push(r.slot);
}

void RequestTable::link_child(RequestRecord& child, RequestRecord& parent,
                              std::uint64_t parent_generation) noexcept {
  child.parent = parent.slot + 1;
  child.parent_generation = parent_generation;
  child.next_sibling = first_child(parent.slot).load(std::memory_order_relaxed);
  if (child.next_sibling != 0) record(child.next_sibling - 1)->prev_sibling = child.slot + 1;
  // Sequentially consistent, as are the check of the parent's bits after it and both in an ack: an ack of the parent that
  // does not see this child is seen by that check.
  first_child(parent.slot).store(child.slot + 1, std::memory_order_seq_cst);
}

// Names the devices beyond the first word; false if one was given twice.
bool RequestTable::add_more(HolderSet set, std::uint64_t generation,
                            std::span<const std::uint32_t> devices) noexcept {
  for (const std::uint32_t device : devices) {
    const HolderBit bit = device_bit(device);
    if (bit.word == 0) continue;
    if (set.was_named(generation, bit)) {
      set.cut(generation);
      return false;
    }
    set.add(generation, bit);
  }
  return true;
}

Status RequestTable::open(const OpenSpec& spec, std::int64_t now_ns, Handle& handle,
                          LevelNeed* refused) {
  std::uint64_t first = kHost.mask;  // holders of the first word; few requests have more
  bool more = false;
  for (const std::uint32_t device : spec.devices) {
    if (device >= kMaxDevices) return Status::too_many_devices;
    const HolderBit bit = device_bit(device);
    if (bit.word != 0) {
      more = true;
    } else {
      if ((first & bit.mask) != 0) return Status::duplicate_device;
      first |= bit.mask;
    }
  }
  ReserveRef reserve;
  if (spec.reserve != 0) {
    reserve = depot_.open_reserve(pages_for(spec.reserve), reserve_above(spec));
    if (reserve.reserve == nullptr) return Status::exhausted;
  }
  const std::lock_guard lock(mutex_);
  // Undone on every way out but the last, bad_alloc included.
  struct Undo {
    RequestTable& table;
    ReserveRef reserve;
    RequestRecord* slot = nullptr;
    ~Undo() {
      if (reserve.reserve != nullptr) table.depot_.close_reserve(reserve);
      if (slot != nullptr) table.free_slots_.push(slot->slot);
    }
  } undo{*this, reserve};
  RequestRecord* above = nullptr;
  if (spec.parent) {
    above = live_record(*spec.parent);
    if (above == nullptr || above->host_left) return Status::request_closed;
    if (spec.kept && !above->kept) return Status::invalid_argument;
    // A group has no devices, and what is under it names any.
    for (const std::uint32_t device : spec.devices) {
      if (!holders(above->slot).holds(spec.parent->generation, device_bit(device)) && !above->is_group)
        return Status::unknown_device;
    }
  }
  if (next_generation_ > kMaxGeneration) return Status::too_many_requests;  // never one twice
  RequestRecord* r = new_slot();
  if (r == nullptr) return Status::too_many_requests;
  undo.slot = r;
  if (more && !more_.open(r->slot, r->slot + 1)) throw std::bad_alloc();
  r->reset(spec, above, now_ns);
  const Handle made{r->slot, next_generation_++};
  HolderSet set = holders(r->slot);
  set.open(made.generation, first);
  if (more && !add_more(set, made.generation, spec.devices)) return Status::duplicate_device;
  if (r->has_budget.load(std::memory_order_relaxed)) {
    const Status status = start_budget(*r, made, spec, above, reserve, refused);
    if (status != Status::ok) {
      set.cut(made.generation);
      return status;
    }
  }
  undo.reserve = {};
  undo.slot = nullptr;
  handle = made;
  // Release: a reader of this generation sees the record as it was opened, and a peer the slot.
  r->generation.store(made.generation, std::memory_order_release);
  r->older = by_age_.older;
  r->newer = &by_age_;
  by_age_.older->newer = r;
  by_age_.older = r;
  // Release: a reader of this nonce no longer finds the generation before it.
  slots_[r->slot].nonce.store(nonce(made.generation), std::memory_order_release);
  slots_[r->slot].generation.store(made.generation, std::memory_order_release);
  if (above != nullptr && !above->is_group) {
    link_child(*r, *above, spec.parent->generation);
    for (const std::uint32_t device : spec.devices) {
      if (!holders(above->slot).holds_now(spec.parent->generation, device_bit(device)))
        (void)set.leave(made.generation, device_bit(device));  // never the last: the host holds
    }
  }
  if (r->lease_ns != 0) change(leased_, 1);
  if (r->kept) {
    if (r->is_session()) ++sessions_;
    if (r->is_group) index(*r);
    return Status::ok;
  }
  index(*r);
  index_generation(*r, made.generation);
  change(open_, 1);
  return Status::ok;
}

// True if the holder held the request.
bool RequestTable::bit_leaves_one(RequestRecord& r, HolderBit bit, ClaimedList& over) noexcept {
  const Handle own{r.slot, r.generation.load(std::memory_order_relaxed)};
  if (RequestRecord::is_released(own.generation)) return false;
  const HolderSet::Left left = holders(r.slot).leave(own.generation, bit);
  if (left == HolderSet::Left::last) claim_into(r, own, over);
  return left == HolderSet::Left::last || left == HolderSet::Left::others_hold;
}

void RequestTable::leave_children(Handle handle, HolderBit bit, ClaimedList& over) noexcept {
  const std::lock_guard lock(mutex_);
  if (RequestRecord* r = live_record(handle))
    each_below(*r, [&](RequestRecord& child) { (void)bit_leaves_one(child, bit, over); });
}

void RequestTable::cut_one(RequestRecord& r, ClaimedList& over) noexcept {
  const Handle own{r.slot, r.generation.load(std::memory_order_relaxed)};
  if (own.generation == 0 || RequestRecord::is_released(own.generation)) return;
  host_leaves_one(r, kCancel | kTell, over);
  (void)holders(r.slot).cut(own.generation);
  claim_into(r, own, over);
}

void RequestTable::cut_locked(RequestRecord& r, ClaimedList& over) noexcept {
  each_below(r, [&](RequestRecord& child) { cut_one(child, over); });
  cut_one(r, over);
}

void RequestTable::cut(Handle handle, ClaimedList& over) noexcept {
  const std::lock_guard lock(mutex_);
  if (RequestRecord* r = live_record(handle)) cut_locked(*r, over);
}

Status RequestTable::add_device(Handle handle, std::uint32_t device) {
  if (device >= kMaxDevices) return Status::too_many_devices;
  const std::lock_guard lock(mutex_);
  RequestRecord* r = live_record(handle);
  if (r == nullptr || r->host_left) return Status::request_closed;
  HolderSet set = holders(handle.slot);
  if (set.holds(handle.generation, device_bit(device))) return Status::duplicate_device;
  const auto holds_parent = [&] {
    if (r->parent == 0) return true;
    const RequestRecord& parent = *record(r->parent - 1);
    return holders(parent.slot).holds(parent.handle().generation, device_bit(device));
  };
  if (!holds_parent()) return Status::unknown_device;
  if (device_bit(device).word != 0 && !more_.open(handle.slot, handle.slot + 1))
    return Status::system_refused;
  set.add(handle.generation, device_bit(device));
  // As in open(): the device may have left the parent meanwhile.
  if (!holds_parent()) (void)set.leave(handle.generation, device_bit(device));
  return Status::ok;
}

RequestRecord* RequestTable::claim(Handle handle) noexcept {
  RequestRecord* r = record(handle.slot);
  return r != nullptr && claim_record(*r, handle) ? r : nullptr;
}

void RequestTable::unlink_child(RequestRecord& r) noexcept {
  if (r.parent == 0) return;
  RequestRecord& parent = *record(r.parent - 1);
  if (r.prev_sibling != 0) {
    record(r.prev_sibling - 1)->next_sibling = r.next_sibling;
  } else {
    first_child(parent.slot).store(r.next_sibling, std::memory_order_relaxed);
  }
  if (r.next_sibling != 0) record(r.next_sibling - 1)->prev_sibling = r.prev_sibling;
  r.parent = r.next_sibling = r.prev_sibling = 0;
}

Handle RequestTable::retire(RequestRecord& r, ClaimedList& over) noexcept {
  const std::lock_guard lock(mutex_);
  SLABPOOL_ASSERT(RequestRecord::is_released(r.generation.load(std::memory_order_relaxed)),
                  "only a claimed request is retired", r.slot);
  const Handle handle = r.handle();
  const std::uint64_t generation = handle.generation;
  // Every holder of this request has left, and a child's holders are among them: an ack of the parent that has not
  // reached the child yet finds the child over.
  while (const std::uint32_t child = first_child(r.slot).load(std::memory_order_relaxed)) {
    RequestRecord& c = *record(child - 1);
    cut_locked(c, over);
    unlink_child(c);
  }
  unlink_child(r);
  if (!r.kept) {
    unindex(r);
    unindex_generation(r, generation);
    change(r.host_left ? draining_ : open_, -1);
  } else if (r.is_session()) {
    --sessions_;
    if (r.is_group) {
      unindex(r);
      unlink_promised(r);
      r.is_group = false;
    }
  }
  if (!r.pinned.empty()) [[unlikely]]
    unpin_all(r, over);
  if (r.group != 0) [[unlikely]]
    leave_group(r, over);
  if (r.lease_ns != 0) change(leased_, -1);
  // Sequentially consistent, and a full barrier: the caller asks for waiters next, and one that has registered reads this
  // without the mutex (has_ended).
  (void)r.ended.exchange(generation, std::memory_order_seq_cst);
  if (r.blocks.retire()) free_slot(r);
  return handle;
}

void RequestTable::recycle(RequestRecord& r) noexcept {
  const std::lock_guard lock(mutex_);
  free_slot(r);
}

// ---- questions

bool RequestTable::is_open(Handle handle) const noexcept {
  const RequestRecord* r = live_record(handle);
  // The host's bit of a kept request stays set until the last pin goes.
  return r != nullptr && !r->host_left.load(std::memory_order_relaxed) &&
         holders(handle.slot).holds(handle.generation, kHost);
}

bool RequestTable::is_over(Handle handle) const noexcept { return live_record(handle) == nullptr; }

bool RequestTable::has_ended(Handle handle) const noexcept {
  const RequestRecord* r = record(handle.slot);
  if (r == nullptr || handle.generation == 0) return true;
  const std::uint64_t now = r->generation.load(std::memory_order_acquire);
  if (now == handle.generation) return false;
  // Acquire pairs with retire(): the blocks are back.
  return now != (handle.generation | RequestRecord::kReleased) ||
         r->ended.load(std::memory_order_acquire) == handle.generation;
}

bool RequestTable::holds_any(HolderBit bit) noexcept {
  const std::lock_guard lock(mutex_);
  bool found = false;
  (void)walk(0, 1, [&](const RequestRecord& r) {
    found = holders(r.slot).holds(r.handle().generation, bit);
    return found ? 1U : 0U;  // the first one ends the walk
  });
  return found;
}

std::size_t RequestTable::mark_holders(bool left, const HolderMarks& wanted, HolderMarks& used) {
  enough_.reserve(kMaxDevices);
  std::size_t looked = 0;
  // Whether the request holds one that was not found yet.
  const auto mark = [&](const RequestRecord& r, bool also_left) {
    ++looked;
    const Handle own = r.handle();
    return !is_over(own) &&
           std::as_const(*this).holders(r.slot).mark(own.generation, also_left, wanted, used);
  };
  std::size_t kept = 0;
  for (std::size_t i = 0; i < enough_.size();) {
    const std::lock_guard lock(mutex_);
    for (const std::size_t end = std::min(i + kWalkBatch, enough_.size()); i < end; ++i)
      if (mark(*record(enough_[i]), false)) enough_[kept++] = enough_[i];
  }
  enough_.resize(kept);
  for (std::uint32_t slot = 0; slot != FreeSlots::kNone && !used.contain(wanted);) {
    const std::lock_guard lock(mutex_);
    slot = walk(slot, kWalkBatch, [&](const RequestRecord& r) {
      // Each adds a holder, so there are at most kMaxDevices.
      if (mark(r, left) && !left) enough_.push_back(r.slot);
      return 1U;
    });
  }
  return looked;
}

void RequestTable::forget_named(const HolderMarks& gone) noexcept {
  for (std::uint32_t slot = 0; slot != FreeSlots::kNone;) {
    const std::lock_guard lock(mutex_);
    slot = walk(slot, kWalkBatch, [&](RequestRecord& r) {
      holders(r.slot).forget_named(r.handle().generation, gone);
      return 1U;
    });
  }
}

RequestTable::Notable RequestTable::find_notable() noexcept {
  Notable found;
  const std::uint32_t in_use = slots_in_use();
  found.holders = in_use - sessions_;
  // The oldest. Those that hold nothing of their own (sessions) are passed over, as long as there are few.
  RequestRecord* r = by_age_.newer;
  for (std::uint32_t looked = 0; r != &by_age_ && looked < kOldestLooked; ++looked, r = r->newer) {
    if (found.oldest_count == kNotable) break;
    if (!r->is_session()) found.oldest[found.oldest_count++] = r;
  }
  found.looked = found.oldest_count;
  const auto consider = [&](RequestRecord* one) {
    ++found.looked;
    if (one == nullptr || one->generation.load(std::memory_order_relaxed) == 0 || one->is_session())
      return;
    const std::uint64_t bytes = one->blocks.bytes();
    std::uint32_t at = found.largest_count;
    for (std::uint32_t i = 0; i < found.largest_count; ++i)
      if (found.largest[i] == one) return;
    if (at == kNotable) {
      if (found.bytes[--at] >= bytes) return;
    } else {
      ++found.largest_count;
    }
    for (; at > 0 && found.bytes[at - 1] < bytes; --at) {
      found.largest[at] = found.largest[at - 1];
      found.bytes[at] = found.bytes[at - 1];
    }
    found.largest[at] = one;
    found.bytes[at] = bytes;
  };
  // The largest: those of the last call, those that grew since, the oldest, and the next few in order of their slots.
  for (const std::uint32_t slot : largest_)
    if (slot != 0) consider(record(slot - 1));
  for (const std::atomic<std::uint32_t>& slot : grown_)
    if (const std::uint32_t one = slot.load(std::memory_order_relaxed); one != 0)
      consider(record(one - 1));
  for (std::uint32_t i = 0; i < found.oldest_count; ++i) consider(found.oldest[i]);
  for (std::uint32_t left = std::min(kNextLooked, in_use); left != 0;) {
    look_from_ = walk(look_from_, left, [&](RequestRecord& one) {
      consider(&one);
      --left;
      return 1U;
    });
    if (look_from_ == FreeSlots::kNone) look_from_ = 0;
  }
  for (std::uint32_t i = 0; i < kNotable; ++i)
    largest_[i] = i < found.largest_count ? found.largest[i]->slot + 1 : 0;
  large_from_.store(found.largest_count == kNotable ? found.bytes[kNotable - 1] : 0,
                    std::memory_order_relaxed);
  return found;
}

RequestTable::Holds RequestTable::holds() {
  Holds found = Holds::none;
  each([&](const RequestRecord& r, const HolderView& set) {
    const Handle own = r.handle();
    if (r.is_group && !is_over(own)) return;  // what it is for is looked at itself
    if (!is_over(own) && !set.empty(own.generation)) {
      found = Holds::some;
    } else if (found == Holds::none && r.ended.load(std::memory_order_acquire) != own.generation) {
      found = Holds::ending;
    }
  });
  return found;
}

bool RequestTable::in_doubt(const RequestRecord& r, const HolderView& set,
                            std::int64_t now_ns) const noexcept {
  if (r.lease_ns == 0) return false;
  const Handle own = r.handle();
  if (is_over(own)) return false;
  bool silent = false;
  set.each_device(own.generation, [&](std::uint32_t device) {
    const std::int64_t since = std::max(r.opened_ns, devices_.last_heard(device));
    silent = silent || now_ns - since > r.lease_ns;
  });
  return silent;
}

std::uint32_t RequestTable::views_of(Handle handle) const noexcept {
  const RequestRecord* r = record(handle.slot);
  if (r == nullptr) return 0;
  RequestBlocks::ViewCount count(r->blocks);
  // The count ends with the request, so if it is this one's now, it is this one's to its end.
  if (r->handle().generation != handle.generation) return 0;
  while (count.next()) {
  }
  return count.views();
}

}  // namespace slabpool
