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

namespace {

constexpr Subject subject_of(Handle handle) noexcept { return {handle.slot, handle.generation}; }

Wanted quota_of_level(const LevelNeed& need) noexcept {
  return {Resource::quota, need.bytes, subject_of(need.at)};
}

}  // namespace

// Whether no waiter of a quota above stands before a caller. One that is refused is blocked on that quota.
bool Pool::passes_quotas(const LevelNeeds& needs, Subject request, Waiter* waiter,
                         std::int32_t priority) noexcept {
  // The first cannot be served while this request holds what it holds: it may pass, and go on. Asked before passes(),
  // which would put the waiter in the quota's list: the attempt would end in another list, and ask for one more, for ever.
  const auto first_needs_it = [&](const Wanted& wanted) {
    if (waiter == nullptr || request.generation == 0) return false;
    const std::uint64_t first = queue_.first_amount(wanted);
    return holds_needed(wanted.of, request, first) ||
           quota_circle(wanted.of, request, first) == Circle::yes;
  };
  for (unsigned i = 0; i < needs.count; ++i) {
    const Wanted wanted = quota_of_level(needs.of[i]);
    if (!first_needs_it(wanted) && !passes(waiter, wanted, priority)) return false;
  }
  return true;
}

// A quota, or the limit of what sessions keep, has refused.
void Pool::blocked_on_quota(Waiter* waiter, const LevelNeed& refused) noexcept {
  if (waiter == nullptr) return;
  const bool kept = refused.at.generation == 0 || table_.is_session(refused.at);
  queue_.block(*waiter, kept ? Wanted{Resource::kept, refused.bytes} : quota_of_level(refused));
}

Status Pool::charge(RequestRecord& record, Handle request, Share more, Waiter* waiter) noexcept {
  const bool asks = queue_.has_waiters();
  LevelNeeds needs;
  if (asks) {
    if (!table_.needs_of(record, request, more, needs)) return Status::request_closed;
    if (needs.never != nullptr) {
      blocked_on_quota(waiter, *needs.never);
      return Status::quota_exceeded;
    }
    if (record.kept && !passes(waiter, {Resource::kept, more.bytes})) return Status::waiters_ahead;
    const Subject holder = record.kept ? Subject{} : subject_of(request);
    if (!passes_quotas(needs, holder, waiter, priority_of(&record))) return Status::waiters_ahead;
  }
  LevelNeed refused;
  const Status status = table_.charge(record, request, more, refused);
  if (status == Status::quota_exceeded) {
    blocked_on_quota(waiter, refused);
    // Sessions of a group give way for its quota: for nothing, if the memory is set aside for another waiter.
    const std::uint64_t memory = more.bytes - more.drawn;
    if (asks && refused.is_group && memory != 0 &&
        !queue_.would_pass(waiter, {Resource::memory, memory}, priority_of(&record)))
      return Status::waiters_ahead;
  }
  if (status == Status::ok)
    for (unsigned i = 0; i < needs.count; ++i) queue_.has_charged(subject_of(needs.of[i].at), waiter);
  return status;
}

// A waiter may have found the quota used up by an attempt that failed meanwhile.
// `returned`: bytes went back, also to the promise that they were drawn from.
void Pool::uncharge(RequestRecord& record, Handle request, Share less, bool returned) noexcept {
  Levels back;
  table_.uncharge(record, request, less, back);
  back.refilled = returned && less.drawn != 0;
  if (queue_.has_waiters()) notify_quotas(back, {.kept = record.kept});
}

bool Pool::holds_needed(Subject of, Subject request, std::uint64_t needs) noexcept {
  const RequestRecord* record = table_.record(request.slot);
  if (record == nullptr) return false;
  const std::uint64_t quota = table_.quota_of({of.slot, of.generation}).bytes;
  return needs > quota - std::min(quota, table_.charged_of(*record, {request.slot, request.generation}));
}

Pool::Circle Pool::quota_circle(Subject of, Subject request, std::uint64_t needs) noexcept {
  const auto held_by = [&](Handle handle) {
    const RequestRecord* record = table_.record(handle.slot);
    return record == nullptr ? 0 : table_.charged_of(*record, handle);
  };
  if (held_by({request.slot, request.generation}) == 0) return Circle::nothing;
  const RequestTable::Quota quota = table_.quota_of({of.slot, of.generation});
  Handle waiting[kMostInCircle];
  std::uint32_t count = 0;
  waiting[count++] = {request.slot, request.generation};
  std::uint32_t served = 0;  // of `waiting`, from the end: those that need no more than is left
  queue_.each([&](const Waiter& waiter) {
    const Wanted& wanted = waiter.blocked_on();
    if (wanted.resource != Resource::quota || wanted.of != of || waiter.request.generation == 0) return;
    if (count + served == kMostInCircle) return;
    const Handle handle{waiter.request.slot, waiter.request.generation};
    waiting[count++] = handle;
    if (wanted.amount <= quota.left && count + served < kMostInCircle)
      waiting[kMostInCircle - ++served] = handle;
  });
  const auto too_much = [&](std::uint64_t held) {
    return needs > quota.bytes - std::min(quota.bytes, held);
  };
  for (std::uint32_t i = 1; i <= served; ++i)
    if (too_much(held_by(waiting[kMostInCircle - i]))) return Circle::no;
  std::uint64_t held = 0;
  for (const Handle *h = waiting, *end = unique(waiting, count); h != end; ++h) held += held_by(*h);
  return too_much(held) ? Circle::yes : Circle::no;
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
  const std::uint64_t set = (memory ? kWaiting : 0) | (slots ? kSlotsWait : 0);
  slow_path_flags_.fetch_or(set, std::memory_order_seq_cst);
  slow_path_flags_.fetch_and(~((kWaiting | kSlotsWait) & ~set), std::memory_order_seq_cst);
}

// While a watch is high this runs at every return: without waiters it saves no registers.
void Pool::notify_returned(bool addresses) noexcept {
  look_at_return();
  if (!queue_.has_waiters()) return;
  queue_.wake({.memory = true, .addresses = addresses});
}

// Each level has waiters of its own.
void Pool::notify_quotas(const Levels& back, News news) noexcept {
  look_at_return();
  if (!queue_.has_waiters()) return;
  for (unsigned i = 0; i < back.count; ++i) {
    news.quota = subject_of(back.at[i]);
    queue_.wake(news);
    news = {};
  }
  if (back.count == 0) queue_.wake(news);
  if (back.refilled) {
    queue_.wake_all();
  } else if (back.more) {
    queue_.wake_all_quotas();
  }
}

void Pool::notify_end(Handle ended, bool kept) noexcept {
  look_at_return();
  if (!queue_.has_waiters()) return;
  News news;
  news.memory = news.addresses = news.slots = true;
  news.kept = kept;
  news.any_memory = table_.take_unpinned();  // a session may be idle now, and give way
  news.ended = subject_of(ended);
  queue_.wake(news);
}

void Pool::notify_closed() noexcept {
  queue_.cancel_if([&](const Subject& of) { return !table_.is_open({of.slot, of.generation}); });
  notify_left();
}

void Pool::notify_left() noexcept {
  Levels back;
  table_.take_back(back);
  notify_quotas(back, {.memory = true, .kept = true});
}

// ---- looking

std::vector<WaiterInfo> Pool::waiters() {
  std::vector<WaiterInfo> all;
  const std::int64_t now = now_ns();
  queue_.each([&](const Waiter& waiter) { all.push_back(WaitQueue::info_of(waiter, now)); });
  for (WaiterInfo& info : all) name(info);
  return all;
}

// The ids of the request in which a waiter allocates ("" if it is over), of its group, and of what has the quota.
void Pool::name(WaiterInfo& info) {
  const auto at = [&](Subject of, auto&& f) {
    if (of.generation != 0)
      table_.at({of.slot, of.generation}, [&](const RequestRecord& r, const HolderView&) { f(r); });
  };
  const bool opens = !info.id.empty();
  at(info.request.generation != 0 ? info.request : info.above, [&](const RequestRecord& r) {
    if (!opens) {
      info.id = r.id;
      info.kept = r.kept;
    }
    const RequestRecord* group = r.is_group ? &r : table_.group_of(r);
    if (group != nullptr) info.group = group->id;
  });
  if (opens) info.request = {};
  at(info.of, [&](const RequestRecord& r) {
    info.of_id = r.id;
    info.of_group = r.is_group;
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
         (record->blocks.bytes() != 0 || record->has_reserve.load(std::memory_order_relaxed));
}

bool Pool::passes(Waiter* waiter, const Wanted& wanted, std::int32_t priority) noexcept {
  if (waiter == nullptr) return queue_.passes(wanted, priority);
  if (wanted.resource == Resource::memory)
    waiter->holds.store(holds_something(waiter->request), std::memory_order_relaxed);
  return queue_.passes(*waiter, wanted);
}

// Sorts handles, and leaves each once. Returns their end.
Handle* Pool::unique(Handle* handles, std::uint32_t count) noexcept {
  std::sort(handles, handles + count, [](Handle a, Handle b) { return a.generation < b.generation; });
  return std::unique(handles, handles + count,
                     [](Handle a, Handle b) { return a.generation == b.generation; });
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
  // One request may wait in several threads; a reserve may be that of several requests. A group's does not come back when
  // a request lets go.
  std::uint64_t held = 0;
  std::uint32_t promises = 0;
  Handle promised[kMostInCircle];
  for (const Handle *h = waiting, *end = unique(waiting, count); h != end; ++h) {
    const RequestRecord* record = table_.record(h->slot);
    if (record == nullptr || record->handle().generation != h->generation) continue;
    held += record->blocks.bytes();
    if (!record->has_budget.load(std::memory_order_relaxed)) continue;
    table_.each_reserve(*record, *h, [&](Handle level, ReserveRef) {
      if (promises < kMostInCircle) promised[promises++] = level;
    });
  }
  for (const Handle *level = promised, *end = unique(promised, promises); level != end; ++level)
    held += table_.reserved_by(*table_.record(level->slot), *level);
  return held >= options_.capacity || needs > options_.capacity - held;
}

}  // namespace slabpool
