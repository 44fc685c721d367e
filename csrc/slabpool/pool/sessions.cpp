// What sessions keep: a block moves to a request that stays, and goes back once no request pins it.
#include "slabpool/pool/pool.hpp"

namespace slabpool {

Status Pool::open_session(std::string_view id, std::uint64_t quota, SourceLocation where,
                          Handle& session) noexcept {
  OpenSpec spec;
  spec.id = id;
  spec.quota = quota;
  spec.kept = true;
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
  try {
    status = table_.keep(*spec.block, spec.from, kept, spec.instead_of ? &*spec.instead_of : nullptr);
  } catch (const std::bad_alloc&) {
    status = Status::system_refused;
  }
  if (status != Status::ok) {
    close_request(kept, false);
    return status;
  }
  log(EventKind::keep, kept.generation, kNoDevice, spec.block->bytes);
  if (queue_.any()) [[unlikely]]
    notify_kept(spec.from);
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
  if (queue_.any()) queue_.wake({.kept = true});
  return status;
}

void Pool::set_kept_quota(std::uint64_t quota) noexcept {
  table_.set_kept_quota(quota);
  if (queue_.any()) queue_.wake({.kept = true});
}

std::uint64_t Pool::kept_bytes() const noexcept { return table_.kept_bytes(); }

}  // namespace slabpool
