// Acks found by polling: peers' boards and finished CUDA events. No call of this pool reports them, so the pool asks each
// source. Implemented by FromPeers and FromStreams.
#pragma once

#include <cstdint>

#include "slabpool/request/handle.hpp"

namespace slabpool {

// How a device came to leave a request.
enum class AckOrigin : std::uint8_t {
  call,          // the device acknowledged: by ack(), or on its board in shared memory
  stream,        // the work that its ack was queued behind is done
  context_lost,  // or will never be done, because the GPU failed
};

// What a source reports to: the pool.
class AckSink {
 public:
  // The ack counts, if a request of exactly that generation still has the slot and the device holds it.
  virtual void count_polled(Handle handle, std::uint32_t device, AckOrigin origin) noexcept = 0;
  // A CUDA context has failed: no work on it will ever be done.
  virtual void context_lost(void* context) noexcept = 0;
  // Whether there is any source to poll from now on. Sequentially consistent: see PolledAcks::collect().
  virtual void set_polling(bool on) noexcept = 0;

 protected:
  ~AckSink() = default;
};

class AckSource {
 public:
  virtual ~AckSource() = default;

  // Whether collect() may find acks. Any thread, no lock. `all` false: a source may answer false to most calls in a
  // row, because its own check is expensive.
  virtual bool pending(bool all) noexcept = 0;
  // Reports every ack that arrived to `sink`; `all` false: a bounded number. One thread at a time.
  virtual void collect(AckSink& sink, bool all) noexcept = 0;
  // Returns when all acks that are pending now have arrived, for sources where that is only a matter of time.
  virtual void wait() noexcept = 0;
};

}  // namespace slabpool
