#include "slabpool/acks/from_peers.hpp"

#include <algorithm>

#include "slabpool/base/clock.hpp"

namespace slabpool {

void FromPeers::collect(AckSink& sink, bool) noexcept {
  owner_.collect([&](std::uint32_t device, std::uint32_t slot, std::uint64_t generation) {
    sink.count_polled({slot, generation}, device, AckOrigin::call);
  });
}

void FromPeers::hear(DeviceRegistry& devices) noexcept {
  const std::int64_t now = now_ns();
  owner_.each_heard([&](std::uint32_t device, std::int64_t claimed) {
    // Bounded by now: otherwise a peer that claims a time in the future would never count as silent.
    const std::int64_t heard = std::min(claimed, now);
    if (heard > devices.last_heard(device)) devices.heard(device, heard);
  });
}

}  // namespace slabpool
