// Groups: opening them, and what they report. Closing one is close_request(); what it counts is in request/levels.cpp.
#include <algorithm>

#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"

namespace slabpool {

Status Pool::open_group(OpenSpec spec, Handle& group, Waiter* waiter) noexcept {
  spec.kept = spec.is_group = true;
  return open(spec, group, waiter);
}

GroupInfo Pool::group_info(const RequestRecord& r, std::int64_t now) {
  GroupInfo info;
  const RequestTable::Group figures = table_.group_figures(r);
  info.id = r.id;
  info.handle = r.handle();
  info.nbytes = figures.used;
  info.quota = figures.quota;
  info.reserve = figures.promised;
  info.reserved = figures.reserved;
  info.requests = figures.requests;
  info.sessions = figures.sessions;
  info.priority = r.priority.load(std::memory_order_relaxed);
  info.age_ns = now - r.opened_ns;
  info.closed = r.host_left.load(std::memory_order_relaxed);
  info.opened_at = r.opened_at;
  return info;
}

std::vector<GroupInfo> Pool::groups() {
  std::vector<GroupInfo> all;
  collect_acks();
  const std::int64_t now = now_ns();
  table_.each([&](const RequestRecord& r, const HolderView&) {
    if (r.is_group && !table_.is_over(r.handle())) all.push_back(group_info(r, now));
  });
  std::sort(all.begin(), all.end(), [](const GroupInfo& a, const GroupInfo& b) {
    return a.handle.generation < b.handle.generation;
  });
  return all;
}

bool Pool::describe_group(Handle group, GroupInfo& info) {
  bool found = false;
  collect_acks();
  const std::int64_t now = now_ns();
  table_.at(group, [&](const RequestRecord& r, const HolderView&) {
    if (!r.is_group || table_.is_over(group)) return;
    info = group_info(r, now);
    found = true;
  });
  return found;
}

bool Pool::describe_quota(Handle request, std::uint64_t bytes, bool drawn, QuotaInfo& info) {
  return over_quota(request, bytes, drawn, info.handle) != 0 && describe_level(info.handle, info);
}

bool Pool::describe_level(Handle level, QuotaInfo& info) {
  info.handle = level;
  const RequestTable::Quota quota = table_.quota_of(info.handle);
  info.quota = quota.bytes;
  info.used = quota.bytes - quota.left;
  bool found = false;
  table_.at(info.handle, [&](const RequestRecord& r, const HolderView&) {
    info.id = r.id;
    info.group = r.is_group;
    found = true;
  });
  return found;
}

}  // namespace slabpool
