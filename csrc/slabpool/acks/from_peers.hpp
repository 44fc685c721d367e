// Acks that peers posted on their boards.
//
// What a peer posts is a wish to acknowledge and nothing more: it is checked like any ack (AckSink::count_polled).
#pragma once

#include "slabpool/acks/ack_source.hpp"
#include "slabpool/request/device_registry.hpp"
#include "slabpool/shared/owner.hpp"

namespace slabpool {

class FromPeers final : public AckSource {
 public:
  explicit FromPeers(SharedOwner& owner) noexcept : owner_(owner) {}

  bool pending(bool) noexcept override { return owner_.news(); }
  void collect(AckSink& sink, bool) noexcept override;
  void wait() noexcept override {}  // a peer may never acknowledge

  // Notes the signs of life that peers wrote on their boards.
  void hear(DeviceRegistry& devices) noexcept;

 private:
  SharedOwner& owner_;
};

}  // namespace slabpool
