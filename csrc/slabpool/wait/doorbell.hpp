// What a waiting thread listens to when other processes may have news for it. Implemented by SharedOwner.
#pragma once

#include <cstdint>

namespace slabpool {

class Doorbell {
 public:
  virtual ~Doorbell() = default;

  // Peers ring between these two calls. Begin is sequentially consistent: a peer that publishes after it sees the waiter.
  virtual void wait_begins() noexcept = 0;
  virtual void wait_ends() noexcept = 0;
  // Sleeps until a ring (which it silences), a write to `wakeup` (which it reads), or for `ns`. Without a wake-up
  // descriptor (-1) it sleeps for 5 ms at most, because then it cannot hear of events in its own process.
  virtual void listen(int wakeup, std::int64_t ns) noexcept = 0;
};

}  // namespace slabpool
