// Why a call did not do what it was asked to. The C interface shows the same numbers.
#pragma once

#include <cstdint>

namespace slabpool {

enum class Status : std::int32_t {
  ok = 0,
  invalid_argument = 1,
  exhausted = 2,       // no room now; it may come
  too_large = 3,       // larger than the capacity: no room ever
  system_refused = 4,  // the system has no memory, or no more mappings
  quota_exceeded = 5,
  too_many_requests = 6,  // every request slot is taken
  too_many_devices = 7,
  duplicate_device = 8,
  unknown_device = 9,   // never named for this request
  request_closed = 10,  // the host let go of it, or it is gone
  ambiguous = 11,       // several generations of the id wait for the device
  pool_closed = 12,
  pool_busy = 13,
  forked = 14,  // the pool belongs to the parent process
  timed_out = 15,
  no_addresses = 16,  // of the reserved range, for all that a tensor may grow to
  device_lost = 17,   // the GPU failed, and nothing on it works any more
};

}  // namespace slabpool
