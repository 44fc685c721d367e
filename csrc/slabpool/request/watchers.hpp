// What the table tells of a request whose host has left it, to whom it may concern in other processes.
#pragma once

#include <cstdint>

namespace slabpool {

class HostWatchers {
 public:
  // The host's bit in the slot is cleared. Called under the table's mutex; takes no lock and waits for nothing.
  virtual void host_left(std::uint32_t slot, std::uint64_t generation) noexcept = 0;

 protected:
  ~HostWatchers() = default;
};

}  // namespace slabpool
