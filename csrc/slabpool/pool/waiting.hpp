// How a thread waits in the queue: attempts, and sleep between them.
#pragma once

#include "slabpool/pool/pool.hpp"

namespace slabpool {

// Whether waiting may help after this answer; see Pool::may_come().
constexpr bool waits_for_room(Status status) noexcept {
  return no_room(status) || status == Status::no_addresses || status == Status::too_many_requests ||
         status == Status::quota_exceeded;
}

// attempt() is a Status. It is called once more after the deadline, unless the waiter is not its resource's first.
template <typename Attempt>
Status Pool::wait_for(std::int64_t deadline_ns, Waiter& waiter, Attempt&& attempt) noexcept {
  Status status = attempt();  // learns what the waiter is blocked on
  while (waits_for_room(status) && may_come(status, waiter)) {
    if (!waiter.entered()) enter(waiter);
    if (wait(waiter, deadline_ns)) {
      status = waiter.cancelled() ? Status::request_closed : attempt();
    } else {
      return is_first(waiter) ? attempt() : status;
    }
  }
  return status;
}

}  // namespace slabpool
