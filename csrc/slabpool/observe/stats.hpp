// A pool's figures, and the report of one request. Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "slabpool/base/source_location.hpp"
#include "slabpool/request/handle.hpp"

namespace slabpool {

// Bytes, then counts. Invariants: committed == live + retained + in_doubt + cached, and committed <= capacity.
struct Stats {
  std::uint64_t capacity;
  std::uint64_t address_space;  // of the address range
  std::uint64_t committed;
  std::uint64_t live;
  std::uint64_t retained;
  std::uint64_t in_doubt;
  std::uint64_t cached;
  std::uint64_t reserved;  // promised to requests and not drawn yet
  std::uint64_t peak_live;
  std::uint64_t peak_committed;
  std::uint64_t allocations;
  std::uint64_t frees;
  std::uint64_t requests_open;
  std::uint64_t requests_draining;
  std::uint64_t requests_in_doubt;
  std::uint64_t acks;
  std::uint64_t duplicate_acks;
  std::uint64_t late_acks;
  std::uint64_t stream_acks;
  std::uint64_t exhaustions;
};

// kept: by a session, until the session closes it.
enum class RequestState : std::int32_t { open = 0, draining = 1, in_doubt = 2, released = 3, kept = 4 };

struct RequestInfo {
  std::string id;  // as given to open()
  Handle handle;
  std::uint64_t parent_generation;  // 0: none
  RequestState state;
  std::uint64_t nbytes;
  std::uint64_t reserved;  // promised to it and its descendants, and not drawn yet
  std::int64_t age_ns;
  std::vector<std::uint32_t> pending;
  std::vector<std::uint32_t>
      behind_stream;  // those of `pending` whose ack is queued behind work on a stream
  std::uint32_t live_views;
  SourceLocation opened_at;
  bool kept;  // a session, or what it keeps; `id` is then what open_session() or keep() was given
  std::string group;  // id of the group that it is under; empty: none
};

// A group of requests and sessions.
struct GroupInfo {
  std::string id;
  Handle handle;
  std::uint64_t nbytes = 0;    // what counts in its quota
  std::uint64_t quota = 0;     // 0: none
  std::uint64_t reserve = 0;   // promised to it when it was opened
  std::uint64_t reserved = 0;  // of that: not drawn, and not promised to requests under it
  std::uint32_t requests = 0;  // without children
  std::uint32_t sessions = 0;
  std::int32_t priority = 0;
  std::int64_t age_ns = 0;
  bool closed = false;
  SourceLocation opened_at;
};

// A level that refuses bytes: a request, a session or a group, and how much of its quota is used.
struct QuotaInfo {
  std::string id;
  Handle handle;
  bool group = false;
  std::uint64_t quota = 0;
  std::uint64_t used = 0;
};

// Why a pool had no room, of one instant and of bounded size: what the text of a refusal is made from when it is read.
struct Refusal {
  struct Holder {
    RequestInfo info;
    bool of_session = false;    // kept by a session that is open
    std::int64_t idle_ns = -1;  // of that session; -1: in use
  };
  Stats stats{};
  bool counts_in_doubt = true;   // false: stats.live includes what is in doubt
  std::uint64_t fragmented = 0;  // as Pool::fragmented_bytes() and metadata_bytes()
  std::uint64_t metadata = 0;
  std::uint32_t requests = 0;   // requests and kept tensors
  std::vector<Holder> largest;  // the largest first; at most five, as are the next
  std::vector<Holder> oldest;   // without those in `largest`
  // Groups with bytes of their reserve left, those with the most first; at most kNamedGroups.
  std::vector<GroupInfo> groups;
};

}  // namespace slabpool
