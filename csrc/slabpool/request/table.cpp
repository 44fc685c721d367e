#include "slabpool/request/table.hpp"

#include <algorithm>
#include <functional>

namespace slabpool {

RequestTable::RequestTable(Depot& depot, DeviceRegistry& devices, RequestSlot* slots,
                           std::uint64_t secret)
    : depot_(depot),
      devices_(devices),
      slots_(kMaxRequests, slots),
      secret_(secret),
      chunks_(new std::atomic<RequestRecord*>[kMaxRequests / kChunk] {}),
      buckets_(8192) {}

RequestTable::~RequestTable() {
  for (std::uint32_t i = 0; i < kMaxRequests / kChunk; ++i)
    delete[] chunks_[i].load(std::memory_order_relaxed);
}

RequestRecord* RequestTable::live_record(Handle handle) const noexcept {
  RequestRecord* r = record(handle.slot);
  return r != nullptr && handle.generation != 0 &&
                 r->generation.load(std::memory_order_acquire) == handle.generation
             ? r
             : nullptr;
}

RequestRecord* RequestTable::new_slot() {
  if (!free_slots_.empty()) {
    RequestRecord* r = record(free_slots_.back());
    free_slots_.pop_back();
    return r;
  }
  if (slots_made_ == kMaxRequests) return nullptr;
  if (slots_made_ % kChunk == 0) {
    // Room for every slot made, so that giving one back never allocates.
    if (free_slots_.capacity() < slots_made_ + kChunk) free_slots_.reserve(2 * (slots_made_ + kChunk));
    auto* chunk = new RequestRecord[kChunk];
    chunks_[slots_made_ / kChunk].store(chunk, std::memory_order_release);
  }
  RequestRecord* r = record(slots_made_);
  r->slot = slots_made_++;
  return r;
}

// ---- index by id: chains through the records, so that opening a request allocates nothing

void RequestTable::index(RequestRecord& r) noexcept {
  r.hash = std::hash<std::string_view>{}(r.id);
  std::uint32_t& head = buckets_[r.hash % buckets_.size()];
  r.hash_prev = 0;
  r.hash_next = head;
  if (head != 0) record(head - 1)->hash_prev = r.slot + 1;
  head = r.slot + 1;
}

void RequestTable::unindex(RequestRecord& r) noexcept {
  (r.hash_prev != 0 ? record(r.hash_prev - 1)->hash_next : buckets_[r.hash % buckets_.size()]) =
      r.hash_next;
  if (r.hash_next != 0) record(r.hash_next - 1)->hash_prev = r.hash_prev;
}

// ---- life

Status RequestTable::open(const OpenSpec& spec, Handle& handle) {
  for (const std::uint32_t device : spec.devices) {
    if (device >= kMaxDevices) return Status::too_many_devices;
  }
  // They would bound nothing: a child draws on the budget of the request it descends from.
  if (spec.parent && (spec.reserve != 0 || spec.quota != 0)) return Status::invalid_argument;
  ReserveRef reserve;
  if (spec.reserve != 0) {
    reserve = depot_.open_reserve(pages_for(spec.reserve));
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
      if (slot != nullptr) table.free_slots_.push_back(slot->slot);
    }
  } undo{*this, reserve};
  RequestRecord* parent = nullptr;
  if (spec.parent) {
    parent = live_record(*spec.parent);
    if (parent == nullptr || parent->host_left) return Status::request_closed;
    for (const std::uint32_t device : spec.devices) {
      if (!holders(parent->slot).holds(tag(spec.parent->generation), device_bit(device))) {
        return Status::unknown_device;
      }
    }
  }
  RequestRecord* r = new_slot();
  if (r == nullptr) return Status::too_many_requests;
  undo.slot = r;
  r->id.assign(spec.id);
  const std::uint64_t generation = next_generation_++;
  HolderSet& set = holders(r->slot);
  set.open(tag(generation), 1);
  for (const std::uint32_t device : spec.devices) {
    if (set.was_named(tag(generation), device_bit(device))) {
      set.cut(tag(generation));
      return Status::duplicate_device;
    }
    set.add(tag(generation), device_bit(device));
  }
  r->first_child.store(0, std::memory_order_relaxed);
  r->nbytes.store(0, std::memory_order_relaxed);
  r->retained_views.store(0, std::memory_order_relaxed);
  r->keep.store(1, std::memory_order_relaxed);
  r->blocks = nullptr;
  r->opened_ns = spec.now_ns;
  r->lease_ns = parent != nullptr ? parent->lease_ns : spec.lease_ns;
  r->opened_at = spec.where;
  r->parent = 0;
  r->next_sibling = r->prev_sibling = 0;
  r->parent_generation = 0;
  r->host_left.store(false, std::memory_order_relaxed);
  r->cancelled = false;
  r->kept = spec.kept;
  r->pins = 0;
  r->idle_since_ns = spec.now_ns;
  undo.reserve = {};
  undo.slot = nullptr;
  handle = {r->slot, generation};
  const bool budget = parent != nullptr ? parent->has_budget.load(std::memory_order_relaxed)
                                        : spec.quota != 0 || spec.reserve != 0;
  r->has_budget.store(budget, std::memory_order_relaxed);
  if (budget) {
    const std::lock_guard budget_lock(budget_mutex_);
    r->charged_for = generation;
    r->root = parent != nullptr ? parent->root : handle;
    r->quota = spec.quota;
    r->reserve = reserve;
    r->charged = r->used = 0;
  }
  // Release: whoever reads this generation sees the record as it was opened, and a peer the slot.
  r->generation.store(generation, std::memory_order_release);
  // Release: whoever reads this nonce no longer finds the generation before it.
  slots_[r->slot].nonce.store(nonce(generation), std::memory_order_release);
  slots_[r->slot].generation.store(generation, std::memory_order_release);
  if (parent != nullptr) {
    r->parent = parent->slot + 1;
    r->parent_generation = spec.parent->generation;
    r->next_sibling = parent->first_child.load(std::memory_order_relaxed);
    if (r->next_sibling != 0) record(r->next_sibling - 1)->prev_sibling = r->slot + 1;
    // Sequentially consistent, as is the bit below and both in an ack: an ack of the parent that does
    // not see this child is seen by it.
    parent->first_child.store(r->slot + 1, std::memory_order_seq_cst);
    for (const std::uint32_t device : spec.devices) {
      if (!holders(parent->slot).holds(tag(spec.parent->generation), device_bit(device))) {
        (void)set.leave(tag(generation), device_bit(device));  // never the last: the host holds
      }
    }
  }
  if (r->lease_ns != 0) leased_.fetch_add(1, std::memory_order_relaxed);
  if (r->kept) return Status::ok;
  index(*r);
  open_.fetch_add(1, std::memory_order_relaxed);
  return Status::ok;
}

// Calls f for every descendant, each before the one it descends from. No recursion: how deep a line of children
// goes is the user's to say, and not the stack's.
template <typename F>
void RequestTable::each_below(RequestRecord& top, F&& f) {
  const auto deepest = [&](RequestRecord* r) {
    while (const std::uint32_t child = r->first_child.load(std::memory_order_relaxed))
      r = record(child - 1);
    return r;
  };
  for (RequestRecord* r = deepest(&top); r != &top;) {
    // Read first: f may be what makes the record somebody else's to end, though not before the mutex is free.
    RequestRecord* next =
        r->next_sibling != 0 ? deepest(record(r->next_sibling - 1)) : record(r->parent - 1);
    f(*r);
    r = next;
  }
}

void RequestTable::bit_leaves_below(RequestRecord& r, HolderBit bit, std::vector<Handle>& over) {
  each_below(r, [&](RequestRecord& child) {
    const std::uint64_t generation = child.generation.load(std::memory_order_relaxed);
    if ((generation & RequestRecord::kReleased) == 0 &&
        holders(child.slot).leave(tag(generation), bit) == HolderSet::Left::last) {
      over.push_back({child.slot, generation});
    }
  });
}

void RequestTable::leave_children(Handle handle, HolderBit bit, std::vector<Handle>& over) {
  const std::lock_guard lock(mutex_);
  if (RequestRecord* r = live_record(handle)) bit_leaves_below(*r, bit, over);
}

void RequestTable::host_leaves_one(RequestRecord& r, bool cancel, std::vector<Handle>& over) {
  const std::uint64_t generation = r.generation.load(std::memory_order_relaxed);
  if (r.host_left || (generation & RequestRecord::kReleased) != 0) return;
  r.host_left.store(true, std::memory_order_relaxed);  // published by the clearing of the bit
  r.cancelled = cancel;
  if (r.kept) {
    const std::lock_guard budget_lock(budget_mutex_);
    forget_charge(r);
    if (r.pins != 0) return;  // its bit goes with the last pin
  } else {
    open_.fetch_sub(1, std::memory_order_relaxed);
    draining_.fetch_add(1, std::memory_order_relaxed);
  }
  if (holders(r.slot).leave(tag(generation), kHost) == HolderSet::Left::last)
    over.push_back({r.slot, generation});
}

bool RequestTable::close(Handle handle, bool cancel, std::vector<Handle>& over) {
  const std::lock_guard lock(mutex_);
  RequestRecord* r = live_record(handle);
  if (r == nullptr || r->host_left) return false;
  each_below(*r, [&](RequestRecord& child) { host_leaves_one(child, cancel, over); });
  host_leaves_one(*r, cancel, over);
  return true;
}

void RequestTable::cut_one(RequestRecord& r, std::vector<Handle>& over) {
  const std::uint64_t generation = r.generation.load(std::memory_order_relaxed);
  if (generation == 0 || (generation & RequestRecord::kReleased) != 0) return;
  host_leaves_one(r, true, over);
  (void)holders(r.slot).cut(tag(generation));
  over.push_back({r.slot, generation});  // maybe twice; claim() lets one through
}

void RequestTable::cut_locked(RequestRecord& r, std::vector<Handle>& over) {
  each_below(r, [&](RequestRecord& child) { cut_one(child, over); });
  cut_one(r, over);
}

void RequestTable::cut(Handle handle, std::vector<Handle>& over) {
  const std::lock_guard lock(mutex_);
  if (RequestRecord* r = live_record(handle)) cut_locked(*r, over);
}

Status RequestTable::add_device(Handle handle, std::uint32_t device) {
  if (device >= kMaxDevices) return Status::too_many_devices;
  const std::lock_guard lock(mutex_);
  RequestRecord* r = live_record(handle);
  if (r == nullptr || r->host_left) return Status::request_closed;
  HolderSet& set = holders(handle.slot);
  if (set.holds(tag(handle.generation), device_bit(device))) return Status::duplicate_device;
  const auto holds_parent = [&] {
    if (r->parent == 0) return true;
    const RequestRecord& parent = *record(r->parent - 1);
    return holders(parent.slot)
        .holds(tag(parent.generation.load(std::memory_order_relaxed)), device_bit(device));
  };
  if (!holds_parent()) return Status::unknown_device;
  set.add(tag(handle.generation), device_bit(device));
  // As in open(): the device may have let go of the parent meanwhile.
  if (!holds_parent()) (void)set.leave(tag(handle.generation), device_bit(device));
  return Status::ok;
}

bool RequestTable::claim(Handle handle) noexcept {
  RequestRecord* r = record(handle.slot);
  if (r == nullptr || !holders(handle.slot).empty(tag(handle.generation))) return false;
  std::uint64_t expected = handle.generation;
  // Acquire and release: the winner goes on with all that the holders did; is_over() sees it ended.
  if (!r->generation.compare_exchange_strong(expected, handle.generation | RequestRecord::kReleased,
                                             std::memory_order_acq_rel, std::memory_order_relaxed)) {
    return false;
  }
  // Peers are told before the slot can get another request. Relaxed: they ask the holders as well.
  slots_[handle.slot].generation.store(0, std::memory_order_relaxed);
  return true;
}

void RequestTable::unlink_child(RequestRecord& r) noexcept {
  if (r.parent == 0) return;
  RequestRecord& parent = *record(r.parent - 1);
  if (r.prev_sibling != 0) {
    record(r.prev_sibling - 1)->next_sibling = r.next_sibling;
  } else {
    parent.first_child.store(r.next_sibling, std::memory_order_relaxed);
  }
  if (r.next_sibling != 0) record(r.next_sibling - 1)->prev_sibling = r.prev_sibling;
  r.parent = r.next_sibling = r.prev_sibling = 0;
}

std::vector<Handle> RequestTable::retire(RequestRecord& r) {
  std::vector<Handle> over;
  const std::lock_guard lock(mutex_);
  // Every holder of this request has left, and a child's holders are among them: one whose ack of the
  // parent is still on its way down finds the child already over.
  while (const std::uint32_t child = r.first_child.load(std::memory_order_relaxed)) {
    RequestRecord& c = *record(child - 1);
    cut_locked(c, over);
    unlink_child(c);
  }
  unlink_child(r);
  if (!r.kept) {
    unindex(r);
    (r.host_left ? draining_ : open_).fetch_sub(1, std::memory_order_relaxed);
  }
  if (!r.pinned.empty()) [[unlikely]]
    unpin_all(r, over);
  if (r.lease_ns != 0) leased_.fetch_sub(1, std::memory_order_relaxed);
  r.ended.store(r.generation.load(std::memory_order_relaxed) & ~RequestRecord::kReleased,
                std::memory_order_release);
  // Acquire and release: whoever frees the slot does so after everything others did with the record.
  if (r.keep.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    r.generation.store(0, std::memory_order_release);
    free_slots_.push_back(r.slot);
  }
  return over;
}

void RequestTable::recycle(RequestRecord& r) noexcept {
  const std::lock_guard lock(mutex_);
  r.generation.store(0, std::memory_order_release);
  free_slots_.push_back(r.slot);
}

// ---- questions

bool RequestTable::is_open(Handle handle) const noexcept {
  const RequestRecord* r = live_record(handle);
  // The host's bit of a kept one may stay for a while after it left.
  return r != nullptr && !r->host_left.load(std::memory_order_relaxed) &&
         holders(handle.slot).holds(tag(handle.generation), kHost);
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

RequestTable::Holds RequestTable::holds() {
  Holds found = Holds::none;
  each([&](const RequestRecord& r, const HolderSet& set) {
    const std::uint64_t generation = r.generation.load(std::memory_order_acquire);
    const std::uint64_t own = generation & ~RequestRecord::kReleased;
    if (generation == own && !set.empty(tag(own))) {
      found = Holds::some;
    } else if (found == Holds::none && r.ended.load(std::memory_order_acquire) != own) {
      found = Holds::ending;
    }
  });
  return found;
}

bool RequestTable::is_cancelled(Handle handle) const noexcept {
  const std::lock_guard lock(mutex_);
  const RequestRecord* r = live_record(handle);
  return r != nullptr && r->cancelled;
}

bool RequestTable::in_doubt(const RequestRecord& r, const HolderSet& set,
                            std::int64_t now_ns) const noexcept {
  if (r.lease_ns == 0) return false;
  const std::uint64_t generation = r.generation.load(std::memory_order_acquire);
  if ((generation & RequestRecord::kReleased) != 0) return false;
  bool silent = false;
  set.each_device(tag(generation), [&](std::uint32_t device) {
    const std::int64_t since = std::max(r.opened_ns, devices_.last_heard(device));
    silent = silent || now_ns - since > r.lease_ns;
  });
  return silent;
}

RequestTable::Waiting RequestTable::find_waiting(std::string_view id, std::uint32_t device,
                                                 std::optional<std::uint64_t> generation,
                                                 IsUnderWay is_under_way, const void* of) {
  Waiting waiting;
  const std::size_t hash = std::hash<std::string_view>{}(id);
  const std::lock_guard lock(mutex_);
  for (std::uint32_t next = buckets_[hash % buckets_.size()]; next != 0;) {
    const RequestRecord& r = *record(next - 1);
    next = r.hash_next;
    const std::uint64_t own = r.generation.load(std::memory_order_relaxed);
    if (r.hash != hash || r.id != id || (own & RequestRecord::kReleased) != 0) continue;
    if (generation ? own != *generation : r.parent_generation != 0) continue;
    waiting.found = true;
    const HolderSet& set = holders(r.slot);
    waiting.named = waiting.named || set.was_named(tag(own), device_bit(device));
    if (generation || set.holds(tag(own), device_bit(device))) {
      if (!generation && is_under_way != nullptr && is_under_way(of, own, device)) {
        ++waiting.under_way;
        waiting.acknowledged = {r.slot, own};
        continue;
      }
      ++waiting.count;
      waiting.handle = {r.slot, own};
    }
  }
  return waiting;
}

std::vector<Handle> RequestTable::held_by(std::uint32_t device) {
  std::vector<Handle> found;
  each([&](const RequestRecord& r, const HolderSet& set) {
    const std::uint64_t generation = r.generation.load(std::memory_order_relaxed);
    if (set.holds(tag(generation), device_bit(device))) found.push_back({r.slot, generation});
  });
  return found;
}

}  // namespace slabpool
