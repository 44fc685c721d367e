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

// ---- groups with a reserve

void RequestTable::link_promised(RequestRecord& r) noexcept {
  if (first_promised_ == 0) {
    first_promised_ = r.next_sibling = r.prev_sibling = r.slot + 1;
    return;
  }
  RequestRecord& next = *record(first_promised_ - 1);
  r.next_sibling = next.slot + 1;
  r.prev_sibling = next.prev_sibling;
  record(next.prev_sibling - 1)->next_sibling = r.slot + 1;
  next.prev_sibling = r.slot + 1;
}

void RequestTable::unlink_promised(RequestRecord& r) noexcept {
  if (r.next_sibling == 0) return;
  if (first_promised_ == r.slot + 1) first_promised_ = r.next_sibling == r.slot + 1 ? 0 : r.next_sibling;
  record(r.prev_sibling - 1)->next_sibling = r.next_sibling;
  record(r.next_sibling - 1)->prev_sibling = r.prev_sibling;
  r.next_sibling = r.prev_sibling = 0;
  for (std::uint32_t& slot : promised_)
    if (slot == r.slot + 1) slot = 0;
}

RequestTable::PromisedGroups RequestTable::find_promised() noexcept {
  PromisedGroups found;
  const auto consider = [&](const RequestRecord& r) {
    for (std::uint32_t i = 0; i < found.count; ++i)
      if (found.at[i] == &r) return;
    const std::uint64_t left = reserved_by(r, r.handle());
    if (left == 0) return;
    std::uint32_t at = found.count;
    for (; at > 0 && found.left[at - 1] < left; --at) {
      found.at[at] = found.at[at - 1];
      found.left[at] = found.left[at - 1];
    }
    found.at[at] = &r;
    found.left[at] = left;
    if (found.count < kNamedGroups) ++found.count;
  };
  for (const std::uint32_t slot : promised_)
    if (slot != 0) consider(*record(slot - 1));
  const std::uint32_t from = first_promised_;
  for (std::uint32_t looked = 0; looked < kGroupsLooked; ++looked) {
    const RequestRecord& r = *record(first_promised_ - 1);
    consider(r);
    first_promised_ = r.next_sibling;
    if (first_promised_ == from) break;
  }
  for (std::uint32_t i = 0; i < kNamedGroups; ++i)
    promised_[i] = i < found.count ? found.at[i]->slot + 1 : 0;
  return found;
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
