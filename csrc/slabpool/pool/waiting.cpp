// Waiting in the queue, and what wakes a waiter. The order of waiters is the queue's: wait/queue.hpp.
#include "slabpool/pool/waiting.hpp"

#include <algorithm>

namespace slabpool {

bool Pool::may_come(Status status, const Waiter& waiter) const noexcept {
  const Wanted& wanted = waiter.blocked_on();
  switch (wanted.resource) {
    case Resource::memory:
      return no_room(status);
    case Resource::addresses:
      return pages_for(wanted.amount) << kPageBits <= depot_.address_space();
    case Resource::quota:
      return wanted.amount <= table_.quota_of({wanted.of.slot, wanted.of.generation}).bytes;
    case Resource::slots:
    case Resource::kept:
    case Resource::end:
      break;
  }
  return true;
}

// Not inline: bindings see the exported Pool, and not the queue.
void Pool::enter(Waiter& waiter) noexcept { queue_.enter(waiter); }
void Pool::leave(Waiter& waiter) noexcept { queue_.leave(waiter); }
bool Pool::wait(Waiter& waiter, std::int64_t until_ns) noexcept { return queue_.wait(waiter, until_ns); }
bool Pool::is_first(const Waiter& waiter) noexcept { return queue_.is_first(waiter); }
Waiter* Pool::take_woken(WakeTarget& target) noexcept { return queue_.take(target); }
bool Pool::take_again(Waiter& waiter) noexcept { return queue_.take_again(waiter); }
std::uint32_t Pool::waiting() const noexcept { return queue_.waiting(); }
std::uint64_t Pool::wakeups() const noexcept { return queue_.wakeups(); }

void Pool::enter_end(Waiter& waiter, Handle request) noexcept {
  queue_.enter(waiter, {Resource::end, 0, {request.slot, request.generation}});
}

void Pool::blocked(Waiter* waiter, Resource resource, std::uint64_t amount, Handle of) noexcept {
  if (waiter != nullptr) queue_.block(*waiter, {resource, amount, {of.slot, of.generation}});
}

// ---- quotas

Status Pool::charge(RequestRecord& record, Handle request, std::uint64_t bytes, ReserveRef& reserve,
                    Waiter* waiter) noexcept {
  const bool asks = queue_.has_waiters();
  Handle root;
  const auto wanted = [&] {
    return record.kept ? Wanted{Resource::kept, bytes}
                       : Wanted{Resource::quota, bytes, {root.slot, root.generation}};
  };
  if (asks || waiter != nullptr) {
    root = table_.root_of(record, request);
    if (root.generation == 0) return Status::request_closed;
  }
  // The first cannot be served while this request holds what it holds: it may pass, and go on. Asked before passes(),
  // which would put the waiter in the quota's list: the attempt would end in another list, and ask for one more, for ever.
  const auto first_needs_it = [&] {
    return waiter != nullptr && !record.kept &&
           holds_needed({root.slot, root.generation}, {request.slot, request.generation},
                        queue_.first_amount(wanted()));
  };
  if (asks && !first_needs_it() && !passes(waiter, wanted())) return Status::waiters_ahead;
  const Status status = table_.charge(record, request, bytes, reserve);
  if (status == Status::quota_exceeded && waiter != nullptr) queue_.block(*waiter, wanted());
  if (status == Status::ok && asks && !record.kept)
    queue_.has_charged({root.slot, root.generation}, waiter);
  return status;
}

// A waiter may have found the quota used up by an attempt that failed meanwhile.
void Pool::uncharge(RequestRecord& record, Handle request, std::uint64_t bytes) noexcept {
  const Handle root = queue_.has_waiters() ? table_.root_of(record, request) : Handle{};
  table_.uncharge(record, request, bytes);
  if (queue_.has_waiters()) queue_.wake({.kept = record.kept, .quota = {root.slot, root.generation}});
}

bool Pool::holds_needed(Subject of, Subject request, std::uint64_t needs) noexcept {
  const Handle handle{request.slot, request.generation};
  const RequestRecord* record = table_.record(request.slot);
  return record != nullptr && !record->kept &&
         needs > table_.quota_of({of.slot, of.generation}).bytes - table_.charged_of(*record, handle);
}

// ---- waking

// Allocated and not returned, and promised: pages of which a part is in use count as free here, so this is no less than
// what an attempt finds.
std::uint64_t Pool::free_bytes() noexcept {
  const std::uint64_t used = used_bytes();
  return used < options_.capacity ? options_.capacity - used : 0;
}

// Sequentially consistent, as the count of waiters: what is allocated or opened after this asks the queue.
void Pool::waits(bool memory, bool slots) noexcept {
  const std::uint32_t set = (memory ? kWaiting : 0) | (slots ? kSlotsWait : 0);
  slow_path_flags_.fetch_or(set, std::memory_order_seq_cst);
  slow_path_flags_.fetch_and(~((kWaiting | kSlotsWait) & ~set), std::memory_order_seq_cst);
}

// While a watch is high this runs at every return: without waiters it saves no registers.
void Pool::notify_returned(bool addresses) noexcept {
  look_at_return();
  if (!queue_.has_waiters()) return;
  queue_.wake({.memory = true, .addresses = addresses});
}

void Pool::notify_quota(Handle root) noexcept {
  look_at_return();
  queue_.wake({.memory = true, .quota = {root.slot, root.generation}});
}

void Pool::notify_end(const RequestRecord& record) noexcept {
  look_at_return();
  if (!queue_.has_waiters()) return;
  News news;
  news.memory = news.addresses = news.slots = true;
  news.kept = record.kept;
  news.any_memory = table_.take_unpinned();  // a session may be idle now, and give way
  // If the slot has another request by now, that one is later.
  news.ended = {record.slot, record.ended.load(std::memory_order_acquire)};
  queue_.wake(news);
}

void Pool::notify_closed() noexcept {
  look_at_return();
  queue_.cancel_if([&](const Subject& of) { return !table_.is_open({of.slot, of.generation}); });
  queue_.wake({.memory = true, .kept = true});
}

void Pool::notify_moved(Handle from) noexcept {
  const RequestRecord* record = table_.record(from.slot);
  notify_quota(table_.root_of(*record, from));
}

// ---- looking

std::vector<WaiterInfo> Pool::waiters() {
  std::vector<WaiterInfo> all;
  const std::int64_t now = now_ns();
  queue_.each([&](const Waiter& waiter) { all.push_back(WaitQueue::info_of(waiter, now)); });
  for (WaiterInfo& info : all) name(info);
  return all;
}

// The id of the request in which a waiter allocates; "" if it is over.
void Pool::name(WaiterInfo& info) {
  if (!info.id.empty() || info.request.generation == 0) return;
  table_.at({info.request.slot, info.request.generation},
            [&](const RequestRecord& r, const HolderView&) {
              info.id = r.id;
              info.kept = r.kept;
            });
}

Ahead Pool::ahead_of(const Waiter& waiter) {
  Ahead ahead;
  ahead.first.reserve(kNamedAhead);
  const std::int64_t now = now_ns();
  ahead.count = queue_.ahead(waiter, kNamedAhead, [&](const Waiter& other) {
    ahead.first.push_back(WaitQueue::info_of(other, now));
  });
  for (WaiterInfo& info : ahead.first) name(info);
  return ahead;
}

bool Pool::holds_something(Subject request) const noexcept {
  if (request.generation == 0) return false;
  const RequestRecord* record = table_.record(request.slot);
  return record != nullptr && record->accepts({request.slot, request.generation}) &&
         (record->blocks.bytes() != 0 || record->has_budget.load(std::memory_order_relaxed));
}

bool Pool::passes(Waiter* waiter, const Wanted& wanted) noexcept {
  if (waiter == nullptr) return queue_.passes(wanted);
  if (wanted.resource == Resource::memory)
    waiter->holds.store(holds_something(waiter->request), std::memory_order_relaxed);
  return queue_.passes(*waiter, wanted);
}

bool Pool::in_circle() noexcept {
  Handle waiting[kMostInCircle];
  std::uint32_t count = 0;
  const Waiter* first = nullptr;  // of those that wait for memory; not used after the walk
  std::int32_t priority = 0;
  std::uint64_t needs = 0;
  queue_.each([&](const Waiter& waiter) {
    if (waiter.blocked_on().resource != Resource::memory) return;
    if (first == nullptr || waiter.priority > priority) {
      first = &waiter;
      priority = waiter.priority;
      needs = waiter.blocked_on().amount;
    }
    // One that the host has left waits no longer, and is in no circle.
    const bool holds = holds_something(waiter.request);
    waiter.holds.store(holds, std::memory_order_relaxed);
    if (holds && count < kMostInCircle)
      waiting[count++] = {waiter.request.slot, waiter.request.generation};
  });
  if (first == nullptr) return false;
  // One request may wait in several threads; a reserve may be that of several requests.
  const auto by_generation = [](Handle a, Handle b) { return a.generation < b.generation; };
  const auto unique = [&](Handle* handles, std::uint32_t n) {
    std::sort(handles, handles + n, by_generation);
    return std::unique(handles, handles + n,
                       [](Handle a, Handle b) { return a.generation == b.generation; });
  };
  std::uint64_t held = 0;
  std::uint32_t roots = 0;
  for (const Handle *h = waiting, *end = unique(waiting, count); h != end; ++h) {
    const RequestRecord* record = table_.record(h->slot);
    if (record == nullptr || record->handle().generation != h->generation) continue;
    held += record->blocks.bytes();
    if (!record->has_budget.load(std::memory_order_relaxed)) continue;
    const Handle root = table_.root_of(*record, *h);
    if (root.generation != 0) waiting[roots++] = root;  // no more than were read
  }
  for (const Handle *root = waiting, *end = unique(waiting, roots); root != end; ++root)
    held += depot_.left_of(table_.reserve_of(*root));
  return held >= options_.capacity || needs > options_.capacity - held;
}

}  // namespace slabpool
