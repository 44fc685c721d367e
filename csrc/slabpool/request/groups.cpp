// Groups: records that the requests and sessions of one tenant count in.
//
// A group is a kept record without a block and without devices. Every record under it pins it, children included. Its
// host leaves by close(): nothing more is opened under it then. It is over once no record pins it. Until then its
// budget counts, and its reserve can be drawn.
// Invariant, under the table's mutex: pins of a group == records whose `group` it is.
#include "slabpool/base/assert.hpp"
#include "slabpool/request/table.hpp"

namespace slabpool {

// Whether an open group has the id. A closed one that is not over yet gives its id up.
bool RequestTable::has_group(std::string_view id) const noexcept {
  const std::size_t hash = ~std::hash<std::string_view>{}(id);
  for (std::uint32_t next = by_id_[bucket_of(hash)]; next != 0;) {
    const RequestRecord& r = *record(next - 1);
    next = r.hash_next;
    if (r.is_group && r.hash == hash && r.id == id && !r.host_left &&
        !RequestRecord::is_released(r.generation.load(std::memory_order_relaxed)))
      return true;
  }
  return false;
}

// Takes a record into the group `above`, or that of its parent `above`, to which it is not linked yet.
void RequestTable::join_group(RequestRecord& r, const RequestRecord& above, bool child) noexcept {
  r.group = child ? above.group : above.slot + 1;
  if (r.group == 0) return;
  RequestRecord& group = *record(r.group - 1);
  ++group.pins;
  if (!child) ++(r.kept ? group.sessions : group.requests);
}

// Called by retire(), under the table's mutex.
void RequestTable::leave_group(RequestRecord& r, ClaimedList& over) noexcept {
  RequestRecord& group = *record(r.group - 1);
  r.group = 0;
  SLABPOOL_ASSERT(group.is_group && group.pins != 0, "what is under a group pins it", group.slot,
                  group.pins);
  if (r.parent_generation == 0) --(r.kept ? group.sessions : group.requests);
  if (--group.pins != 0 || !group.host_left.load(std::memory_order_relaxed)) return;
  // As in unpin_all(). Pool::close(force) may have cleared the bit.
  const Handle handle = group.handle();
  if (holders(group.slot).leave(handle.generation, kHost) == HolderSet::Left::last)
    claim_into(group, handle, over);
}

RequestTable::Group RequestTable::group_figures(const RequestRecord& r) const noexcept {
  Group figures;
  figures.requests = r.requests;
  figures.sessions = r.sessions;
  const std::lock_guard lock(budget_mutex_);
  figures.used = r.used;
  figures.quota = r.quota;
  figures.promised = r.promised;
  if (r.reserve.reserve != nullptr) figures.reserved = depot_.left_of(r.reserve);
  return figures;
}

}  // namespace slabpool
