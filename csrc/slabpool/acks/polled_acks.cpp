#include "slabpool/acks/polled_acks.hpp"

#include <new>

#include "slabpool/acks/from_peers.hpp"
#include "slabpool/acks/from_streams.hpp"

namespace slabpool {

PolledAcks::PolledAcks(AckSink& sink, SharedOwner* owner)
    : sink_(sink), peers_(owner != nullptr ? std::make_unique<FromPeers>(*owner) : nullptr) {}

PolledAcks::~PolledAcks() { delete streams_.load(std::memory_order_acquire); }

void PolledAcks::collect(bool all) noexcept {
  FromStreams* const streams = this->streams();
  const bool from_streams = streams != nullptr && streams->pending(all);
  const bool news = from_streams || (peers_ != nullptr && peers_->pending(all));
  // Acquire, after the look at the sources: a thread that no longer finds an ack there either finds the thread that took
  // it still collecting, or sees what that thread did. So callers with nothing to wait for leave the mutex alone.
  if (!news && !(all && collecting_.load(std::memory_order_acquire))) return;
  std::unique_lock lock(mutex_, std::defer_lock);
  if (all) {
    lock.lock();
  } else if (!lock.try_lock()) {
    return;
  }
  collecting_.store(true, std::memory_order_relaxed);  // published by taking an ack off its source
  if (peers_ != nullptr) peers_->collect(sink_, all);
  if (from_streams) {
    streams->collect(sink_, all);
    if (peers_ == nullptr && streams->pending_acks() == 0) {
      // No source to poll any more. An ack that is added at this moment raises the count before it calls
      // set_polling(true): either that call comes after this one, or the count is seen here. (All sequentially consistent.)
      sink_.set_polling(false);
      if (streams->pending_acks() != 0) sink_.set_polling(true);
    }
  }
  collecting_.store(false, std::memory_order_release);
}

void PolledAcks::hear(DeviceRegistry& devices) noexcept {
  if (peers_ != nullptr) peers_->hear(devices);
}

FromStreams* PolledAcks::make_streams(Error& error) noexcept {
  FromStreams* known = streams();
  if (known != nullptr) return known;
  const cuda::Driver* driver = cuda::Driver::get(error);
  if (driver == nullptr) return nullptr;
  auto* made = new (std::nothrow) FromStreams(*driver);
  if (made == nullptr) {
    (void)error.fail(Status::system_refused);
    return nullptr;
  }
  // Release publishes what was made; acquire on failure: see streams().
  if (streams_.compare_exchange_strong(known, made, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
    return made;
  delete made;
  return known;
}

std::uint64_t PolledAcks::queued_on_streams() const noexcept {
  const FromStreams* known = streams();
  return known != nullptr ? known->pending_acks() : 0;
}

bool PolledAcks::is_queued(std::uint64_t generation, std::uint32_t device) const noexcept {
  const FromStreams* known = streams();
  return known != nullptr && known->has(generation, device);
}

void PolledAcks::wait_for_streams() noexcept {
  if (FromStreams* known = streams()) known->wait();
}

}  // namespace slabpool
