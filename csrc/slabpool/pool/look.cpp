// Reports: figures, requests, events.
//
// Invariants: committed == live + retained + in_doubt + cached in every Stats; a report takes no lock that the hot path of
// allocating takes, and the locks of requests and of their blocks for a few of them at a time.
#include <algorithm>
#include <utility>

#include "slabpool/acks/polled_acks.hpp"
#include "slabpool/base/assert.hpp"
#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

Pool::Doubt Pool::doubt() noexcept {
  Doubt doubt;
  const std::int64_t now = now_ns();
  table_.each([&](const RequestRecord& r, const HolderView& set) {
    if (!table_.in_doubt(r, set, now)) return;
    ++doubt.requests;
    doubt.bytes += r.blocks.bytes();
  });
  return doubt;
}

template <typename Look>
inline Stats Pool::figures(Look&& look_for_doubt) noexcept {
  // What is retained is the difference of two figures that are read one after the other. So nothing may become retained
  // between them; after four rounds that is accepted, and the difference is as far off. Acquire: the order of the loads.
  std::uint64_t retained = retained_.load(std::memory_order_acquire);
  CacheSet::Sums sums = caches_.sums();
  for (int round = 1; round < 4; ++round) {
    const std::uint64_t before = std::exchange(retained, retained_.load(std::memory_order_acquire));
    if (before == retained) break;
    sums = caches_.sums();
  }
  const auto count = [&](Count what) { return sums.counts[static_cast<unsigned>(what)]; };
  // After the sums: bytes counted as live were committed before.
  const Depot::Figures figures = depot_.figures();
  Stats s{};
  s.capacity = options_.capacity;
  s.address_space = depot_.address_space();
  s.committed = figures.committed;
  s.peak_committed = figures.peak_committed;
  s.reserved = depot_.reserved_bytes();
  s.allocations = count(Count::allocations);
  s.frees = count(Count::frees);
  s.acks = count(Count::acks);
  s.duplicate_acks = count(Count::duplicate_acks);
  s.late_acks = count(Count::late_acks);
  s.stream_acks = stream_acks();
  s.exhaustions = count(Count::exhaustions);
  const RequestTable::Counts requests = table_.counts();
  s.requests_open = requests.open;
  s.requests_draining = requests.draining;
  std::uint64_t in_doubt = 0;
  if (look_for_doubt()) [[unlikely]] {
    const Doubt doubt = this->doubt();
    s.requests_in_doubt = doubt.requests;
    in_doubt = doubt.bytes;
  }
  // Each figure is of some instant during the call; they are clamped so that they always add up.
  std::uint64_t held = sums.live > 0 ? static_cast<std::uint64_t>(sums.live) : 0;
  held = std::min(held, s.committed);
  s.peak_live =
      std::clamp<std::uint64_t>(static_cast<std::uint64_t>(std::max<std::int64_t>(sums.peak_live, 0)),
                                held, std::max(s.peak_committed, held));
  s.cached = s.committed - held;
  s.retained = std::min(retained - std::min(sums.unretained, retained), held);
  s.in_doubt = std::min(in_doubt, held - s.retained);
  s.live = held - s.retained - s.in_doubt;
  SLABPOOL_ASSERT(s.committed == s.live + s.retained + s.in_doubt + s.cached, "bytes add up",
                  s.committed, s.live, s.retained, s.in_doubt, s.cached);
  return s;
}

Stats Pool::stats() noexcept {
  collect_acks();
  caches_.settle_if_due();
  return figures([&] { return table_.any_lease(); });
}

std::vector<Event> Pool::events() const { return log_ != nullptr ? log_->read() : std::vector<Event>(); }

namespace {

RequestState state_of(const RequestTable& table, const RequestRecord& r, const HolderView& set,
                      std::int64_t now) {
  if (RequestRecord::is_released(r.generation.load(std::memory_order_acquire)))
    return RequestState::released;
  if (r.kept && !r.host_left) return RequestState::kept;
  if (table.in_doubt(r, set, now)) return RequestState::in_doubt;
  return r.host_left ? RequestState::draining : RequestState::open;
}

// All but the views: they are counted without the table's mutex.
RequestInfo info_of(const RequestTable& table, const PolledAcks& polled, const RequestRecord& r,
                    const HolderView& set, std::int64_t now, bool pending = true) {
  RequestInfo info{};
  info.id = r.id;
  info.handle = r.handle();
  info.parent_generation = r.parent_generation;
  info.state = state_of(table, r, set, now);
  info.nbytes = r.blocks.bytes();
  info.reserved = table.reserved_by(r, info.handle);
  info.age_ns = now - r.opened_ns;
  if (pending) {
    set.each_device(info.handle.generation, [&](std::uint32_t device) {
      info.pending.push_back(device);
      if (polled.is_queued(info.handle.generation, device)) info.behind_stream.push_back(device);
    });
  }
  info.opened_at = r.opened_at;
  info.kept = r.kept;
  if (const RequestRecord* group = table.group_of(r)) info.group = group->id;
  return info;
}

}  // namespace

Refusal Pool::explain_exhausted() noexcept {
  Refusal refusal;
  const bool leases = table_.any_lease();
  const RequestTable::Counts counts = table_.counts();
  refusal.counts_in_doubt = !leases || counts.open + counts.draining <= RequestTable::kWalkBatch;
  refusal.stats = figures([&] { return leases && refusal.counts_in_doubt; });
  refusal.fragmented = fragmented_bytes();
  refusal.metadata = metadata_bytes();
  const std::int64_t now = now_ns();
  try {
    table_.notable([&](const RequestTable::Notable& notable) {
      const auto add = [&](std::vector<Refusal::Holder>& to, const RequestRecord& r) {
        Refusal::Holder& holder = to.emplace_back();
        holder.info = info_of(table_, *polled_, r, table_.holders(r.slot), now);
        std::int64_t since = 0;
        holder.of_session = table_.session_idle_since(r, since);
        if (since != 0) holder.idle_ns = now - since;
      };
      refusal.requests = notable.holders;
      refusal.largest.reserve(notable.largest_count);
      refusal.oldest.reserve(notable.oldest_count);
      const auto* last = notable.largest + notable.largest_count;
      std::for_each(notable.largest, last, [&](const RequestRecord* r) { add(refusal.largest, *r); });
      for (std::uint32_t i = 0; i < notable.oldest_count; ++i)
        if (std::find(notable.largest, last, notable.oldest[i]) == last)
          add(refusal.oldest, *notable.oldest[i]);
    });
    for (auto* holders : {&refusal.largest, &refusal.oldest})
      for (Refusal::Holder& holder : *holders)
        holder.info.live_views = table_.views_of(holder.info.handle);
    table_.promised_groups([&](const RequestTable::PromisedGroups& groups) {
      refusal.groups.reserve(groups.count);
      for (std::uint32_t i = 0; i < groups.count; ++i)
        refusal.groups.push_back(group_info(*groups.at[i], now));
    });
  } catch (const std::bad_alloc&) {  // fewer are named
  }
  return refusal;
}

bool Pool::describe(Handle handle, RequestInfo& info, unsigned parts) {
  bool found = false;
  collect_acks();
  const std::int64_t now = now_ns();
  table_.at(handle, [&](const RequestRecord& r, const HolderView& set) {
    info = info_of(table_, *polled_, r, set, now, (parts & kPendingDevices) != 0);
    found = true;
  });
  if (found && (parts & kLiveViews) != 0) info.live_views = table_.views_of(handle);
  return found;
}

std::vector<RequestInfo> Pool::requests(std::int64_t older_than_ns) {
  std::vector<RequestInfo> all;
  collect_acks();
  const std::int64_t now = now_ns();
  table_.each([&](const RequestRecord& r, const HolderView& set) {
    if (now - r.opened_ns >= older_than_ns) all.push_back(info_of(table_, *polled_, r, set, now));
  });
  for (RequestInfo& info : all) info.live_views = table_.views_of(info.handle);
  std::sort(all.begin(), all.end(), [](const RequestInfo& a, const RequestInfo& b) {
    return a.handle.generation < b.handle.generation;
  });
  return all;
}

// Not inline: bindings see the exported Pool, and not the classes that it delegates to.
Block* Pool::find(const void* address) const noexcept { return depot_.find(address); }
Block* Pool::find_held(const void* address) const noexcept { return depot_.find_held(address); }
bool Pool::is_open(Handle handle) const noexcept { return table_.is_open(handle); }
bool Pool::cancelled(Handle handle) const noexcept { return table_.is_cancelled(handle); }
std::vector<Corruption> Pool::corruptions() const { return guard_.found(); }
Depot::Tagged Pool::tagged(std::uint8_t tag) const noexcept { return depot_.tagged(tag); }
std::uint64_t Pool::metadata_bytes() const noexcept {
  return depot_.metadata_bytes() + caches_.metadata_bytes() + table_.metadata_bytes();
}
const char* Pool::verify() noexcept { return depot_.verify(); }

}  // namespace slabpool
