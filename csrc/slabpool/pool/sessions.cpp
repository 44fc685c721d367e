// What sessions keep: a block moves to a request that stays, and goes back once no request pins it.
#include <algorithm>

#include "slabpool/pool/pool.hpp"

namespace slabpool {

Status Pool::open_session(std::string_view id, std::uint64_t quota, SourceLocation where,
                          Handle& session, std::optional<Handle> group) noexcept {
  OpenSpec spec;
  spec.id = id;
  spec.quota = quota;
  spec.kept = true;
  spec.parent = group;
  spec.where = where;
  return quota == 0 ? Status::invalid_argument : open(spec, session);
}

Handle Pool::owner_of(const Block& block) const noexcept {
  const std::uint32_t request = block.request.load(std::memory_order_relaxed);
  if (request == 0) return {};
  return table_.record(request - 1)->handle();
}

Status Pool::keep(const KeepSpec& spec, Handle& kept) noexcept {
  OpenSpec opening;
  opening.id = spec.id;
  opening.parent = spec.session;
  opening.kept = true;
  opening.where = spec.where;
  Status status = open(opening, kept);
  if (status != Status::ok) return status;
  LevelNeed refused;
  const Handle* const instead_of = spec.instead_of ? &*spec.instead_of : nullptr;
  try {
    if (queue_.has_waiters()) {
      LevelNeeds needs;
      status = table_.keep(*spec.block, spec.from, kept, instead_of, &needs, refused);
      if (status == Status::waiters_ahead) {
        const RequestRecord& record = *table_.record(kept.slot);
        status = passes(nullptr, {Resource::kept, spec.block->bytes}, priority_of(&record))
                     ? asks_quotas(needs, record, {})
                     : Status::waiters_ahead;
      }
    }
    if (status == Status::ok)
      status = table_.keep(*spec.block, spec.from, kept, instead_of, nullptr, refused);
  } catch (const std::bad_alloc&) {
    status = Status::system_refused;
  }
  if (status != Status::ok) {
    close_request(kept, false);
    return status;
  }
  log(EventKind::keep, kept.generation, kNoDevice, spec.block->bytes);
  if (queue_.any()) [[unlikely]]
    notify_left();
  return status;
}

Status Pool::pin(Handle by, std::span<const Handle> kept) noexcept {
  if (!usable_here()) return Status::forked;
  try {
    return table_.pin(by, kept);
  } catch (const std::bad_alloc&) {
    return Status::system_refused;
  }
}

bool Pool::kept(Handle session, Kept& figures) noexcept {
  collect_acks();  // requests that pin it may end by them
  return table_.kept(session, figures);
}

Status Pool::set_quota(Handle session, std::uint64_t quota) noexcept {
  const Status status = table_.set_quota(session, quota);
  if (queue_.has_waiters()) queue_.wake({.kept = true});
  return status;
}

void Pool::set_kept_quota(std::uint64_t quota) noexcept {
  table_.set_kept_quota(quota);
  if (queue_.has_waiters()) queue_.wake({.kept = true});
}

std::uint64_t Pool::kept_bytes() const noexcept { return table_.kept_bytes(); }

// ---- what gives way

bool Pool::take_idle(Handle& session) noexcept {
  collect_acks();  // sessions become idle by them
  return table_.take_idle(session);
}

bool Pool::charged_to(Handle session, Handle level) const noexcept {
  return table_.charged_to(session, level);
}

std::uint64_t Pool::over_quota(Handle request, std::uint64_t bytes, bool drawn,
                               Handle& level) const noexcept {
  Share more{bytes, 0};
  const RequestRecord* record = table_.record(request.slot);
  if (drawn && record != nullptr)
    more.drawn = std::min(bytes, drawable(table_.reserve_of(*record, request)));
  return table_.over_quota(request, more, level);
}

std::uint64_t Pool::bytes_not_kept() noexcept {
  const auto held = static_cast<std::uint64_t>(std::max<std::int64_t>(caches_.sums().live, 0));
  return depot_.reserved_bytes() + held - std::min(held, table_.kept_bytes());
}

Pool::Shortage Pool::shortage(Handle request, std::uint64_t nbytes, bool pages) const noexcept {
  if (!pages) {
    const Plan block = plan(nbytes + (options_.debug > 0 ? kGuard : 0), kDefaultAlign);
    if (block.bin < kSlabClasses) return {block.need, false};
    nbytes = block.need;
  }
  std::uint64_t promised = 0;
  RequestRecord* record = request.generation != 0 ? table_.record(request.slot) : nullptr;
  if (record != nullptr) promised = depot_.drawable_bytes(table_.reserve_of(*record, request));
  const std::uint64_t bytes = pages_for(nbytes) << kPageBits;
  return {bytes - std::min(bytes, promised), true};
}

Pool::Planned Pool::plan_return(Status status, const Shortage& shortage, Handle request,
                                Groups& groups) const noexcept {
  Depot::Need need;
  if (const RequestRecord* record = request.generation != 0 ? table_.record(request.slot) : nullptr;
      record != nullptr && record->has_budget.load(std::memory_order_relaxed))
    need.reserve = table_.reserve_of(*record, request);
  if (status == Status::no_addresses) {
    need.addresses = pages_for(std::max<std::uint64_t>(shortage.bytes, 1));
  } else {
    need.pages = pages_for(shortage.bytes);
    if (!shortage.pages) need.size_class = bin_of(shortage.bytes);
    need.count_room = status != Status::system_refused;
  }
  try {
    return depot_.plan_return(need, groups);
  } catch (const std::bad_alloc&) {  // no memory to plan with
    return Planned::never;
  }
}

}  // namespace slabpool
