// Why a call failed. The C interface and Python use the same numbers.
#pragma once

#include <cstdint>

namespace slabpool {

enum class Status : std::int32_t {
  ok = 0,
  invalid_argument = 1,
  exhausted = 2,       // no room now; memory that comes back may change that
  too_large = 3,       // larger than the capacity: waiting cannot help
  system_refused = 4,  // the system has no memory, or no more mappings
  quota_exceeded = 5,
  too_many_requests = 6,  // every request slot is in use
  too_many_devices = 7,
  duplicate_device = 8,
  unknown_device = 9,   // the device was never named for this request
  request_closed = 10,  // the host has left the request, or the request is over
  ambiguous = 11,       // several generations of the id wait for the device
  pool_closed = 12,
  pool_busy = 13,
  forked = 14,         // the pool belongs to the parent process
  no_addresses = 16,   // the address range has no run of the growing tensor's limit
  device_lost = 17,    // the GPU failed, and no work on it succeeds any more
  waiters_ahead = 18,  // as exhausted: what is free is set aside for callers that have waited for it
  too_deep = 19,       // more requests with a budget above one than kMaxLevels
  name_in_use = 20,    // an open group has the id
};

// No room now, for either reason.
constexpr bool no_room(Status status) noexcept {
  return status == Status::exhausted || status == Status::waiters_ahead;
}

}  // namespace slabpool
