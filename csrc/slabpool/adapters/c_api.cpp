// The C interface: checks arguments and calls the pool. No exception leaves it, and it has no policy.
#include "slabpool/c_api.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "slabpool/base/clock.hpp"
#include "slabpool/pool/pool.hpp"

using slabpool::Block;
using slabpool::Handle;
using slabpool::Pool;
using slabpool::Status;

#define SLABPOOL_SAME(c, cpp) static_assert((c) == static_cast<int>(cpp))
SLABPOOL_SAME(SLABPOOL_OK, Status::ok);
SLABPOOL_SAME(SLABPOOL_INVALID_ARGUMENT, Status::invalid_argument);
SLABPOOL_SAME(SLABPOOL_EXHAUSTED, Status::exhausted);
SLABPOOL_SAME(SLABPOOL_TOO_LARGE, Status::too_large);
SLABPOOL_SAME(SLABPOOL_SYSTEM_REFUSED, Status::system_refused);
SLABPOOL_SAME(SLABPOOL_QUOTA_EXCEEDED, Status::quota_exceeded);
SLABPOOL_SAME(SLABPOOL_TOO_MANY_REQUESTS, Status::too_many_requests);
SLABPOOL_SAME(SLABPOOL_TOO_MANY_DEVICES, Status::too_many_devices);
SLABPOOL_SAME(SLABPOOL_DUPLICATE_DEVICE, Status::duplicate_device);
SLABPOOL_SAME(SLABPOOL_UNKNOWN_DEVICE, Status::unknown_device);
SLABPOOL_SAME(SLABPOOL_REQUEST_CLOSED, Status::request_closed);
SLABPOOL_SAME(SLABPOOL_TOO_DEEP, Status::too_deep);
SLABPOOL_SAME(SLABPOOL_AMBIGUOUS, Status::ambiguous);
SLABPOOL_SAME(SLABPOOL_POOL_CLOSED, Status::pool_closed);
SLABPOOL_SAME(SLABPOOL_POOL_BUSY, Status::pool_busy);
SLABPOOL_SAME(SLABPOOL_FORKED, Status::forked);
SLABPOOL_SAME(SLABPOOL_NO_ADDRESSES, Status::no_addresses);
SLABPOOL_SAME(SLABPOOL_DEVICE_LOST, Status::device_lost);
SLABPOOL_SAME(SLABPOOL_ACK_PENDING, slabpool::AckResult::pending);
SLABPOOL_SAME(SLABPOOL_ACK_RELEASED, slabpool::AckResult::released);
SLABPOOL_SAME(SLABPOOL_ACK_DUPLICATE, slabpool::AckResult::duplicate);
SLABPOOL_SAME(SLABPOOL_ACK_LATE, slabpool::AckResult::late);
SLABPOOL_SAME(SLABPOOL_REQUEST_OPEN, slabpool::RequestState::open);
SLABPOOL_SAME(SLABPOOL_REQUEST_DRAINING, slabpool::RequestState::draining);
SLABPOOL_SAME(SLABPOOL_REQUEST_IN_DOUBT, slabpool::RequestState::in_doubt);
SLABPOOL_SAME(SLABPOOL_REQUEST_RELEASED, slabpool::RequestState::released);
SLABPOOL_SAME(SLABPOOL_REQUEST_KEPT, slabpool::RequestState::kept);

namespace {

Pool& of(slabpool_pool* pool) { return *reinterpret_cast<Pool*>(pool); }
Block& of(slabpool_block* block) { return *reinterpret_cast<Block*>(block); }
const Block& of(const slabpool_block* block) { return *reinterpret_cast<const Block*>(block); }
Handle of(slabpool_request request) { return {request.slot, request.generation}; }
slabpool_status code(Status status) { return static_cast<slabpool_status>(status); }

// A caller's struct as this library knows it: fields that an older caller lacks are zero, and a newer caller's fields that
// this library does not know must be zero.
template <typename T>
bool read_options(const T* given, T& options) {
  if (given == nullptr || given->size < sizeof(std::size_t)) return false;
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof options; i < given->size; ++i) {
    if (bytes[i] != 0) return false;
  }
  std::memset(&options, 0, sizeof options);
  std::memcpy(&options, given, std::min(given->size, sizeof options));
  return true;
}

// The other way: no more bytes than the caller has room for; `size` keeps its value.
template <typename T>
void write_result(T* given, T result) {
  result.size = given->size;
  std::memcpy(given, &result, std::min(given->size, sizeof result));
}

std::int64_t deadline(std::int64_t timeout_ns) {
  const std::int64_t now = slabpool::now_ns();
  return timeout_ns > std::numeric_limits<std::int64_t>::max() - now
             ? std::numeric_limits<std::int64_t>::max()
             : now + timeout_ns;
}

// Names as the core knows them: a letter for the kind (text), then the bytes.
std::string text_key(const char* text) { return "s" + std::string(text); }

// The same for acks: up to this length without an allocation, so that an ack does not fail for lack of host memory.
constexpr std::size_t kShortText = 1024;

template <typename F>
auto with_text_key(const char* text, F&& f) {
  const std::size_t length = std::strlen(text);
  if (length >= kShortText) return f(std::string_view(text_key(text)));
  char key[kShortText + 1];
  key[0] = 's';
  std::memcpy(key + 1, text, length);
  return f(std::string_view(key, length + 1));
}

// The answer to the caller; that memory ran out is counted.
slabpool_status answer(Pool& pool, Status status, Handle request, std::uint64_t nbytes) {
  if (status == Status::waiters_ahead) status = Status::exhausted;
  if (status == Status::exhausted || status == Status::system_refused)
    pool.note_exhausted(request, nbytes);
  return code(status);
}

// Turns an exception into a status.
template <typename F>
slabpool_status guarded(F&& f) noexcept {
  try {
    return code(f());
  } catch (const std::bad_alloc&) {
    return SLABPOOL_SYSTEM_REFUSED;
  } catch (...) {
    return SLABPOOL_INVALID_ARGUMENT;
  }
}

}  // namespace

extern "C" {

uint32_t slabpool_c_api_version(void) { return SLABPOOL_C_API_VERSION; }

const char* slabpool_status_string(slabpool_status status) {
  if (status == SLABPOOL_TIMED_OUT)
    return "timed out";  // of the C interface alone: no call of the pool returns it
  switch (static_cast<Status>(status)) {
    case Status::ok:
      return "ok";
    case Status::invalid_argument:
      return "invalid argument";
    case Status::exhausted:
    case Status::waiters_ahead:
      return "no room in the pool now";
    case Status::too_large:
      return "larger than the pool's capacity";
    case Status::system_refused:
      return "the system refuses memory";
    case Status::quota_exceeded:
      return "the request's quota would be exceeded";
    case Status::too_many_requests:
      return "too many requests are alive";
    case Status::too_many_devices:
      return "too many device names";
    case Status::duplicate_device:
      return "the device is named twice";
    case Status::unknown_device:
      return "the device was never named for this request";
    case Status::request_closed:
      return "the request is closed";
    case Status::ambiguous:
      return "several generations of the request wait for the device";
    case Status::pool_closed:
      return "the pool is closed";
    case Status::pool_busy:
      return "the pool is in use";
    case Status::forked:
      return "the pool belongs to the parent process";
    case Status::no_addresses:
      return "no run of addresses for all that the block may grow to";
    case Status::device_lost:
      return "the GPU failed, and nothing on it works any more";
    case Status::too_deep:
      return "too many requests with a quota or a reserve, one inside the other";
    case Status::name_in_use:
      return "an open group has this id";
  }
  return "not a status of slabpool";
}

slabpool_status slabpool_pool_create(const slabpool_pool_options* options, slabpool_pool** pool) {
  slabpool_pool_options o;
  if (pool == nullptr || !read_options(options, o)) return SLABPOOL_INVALID_ARGUMENT;
  if (o.debug < 0 || o.debug > 2 || o.numa_node < 0) return SLABPOOL_INVALID_ARGUMENT;
  return guarded([&] {
    slabpool::PoolOptions native;
    native.capacity = o.capacity;
    native.scrub_on_release = o.scrub != 0;
    native.debug = o.debug;
    native.events = o.events;
    native.huge_pages = o.no_huge_pages == 0;
    native.numa_node = o.numa_node - 1;
    slabpool::Error error;
    auto made = Pool::create(native, error);
    if (made != nullptr) {
      *pool = reinterpret_cast<slabpool_pool*>(made.release());
    } else if (error.system_errno != 0) {
      errno = error.system_errno;
    }
    return error.status;
  });
}

slabpool_status slabpool_pool_close(slabpool_pool* pool, int32_t force) {
  return pool == nullptr ? SLABPOOL_INVALID_ARGUMENT : code(of(pool).close(force != 0));
}

slabpool_status slabpool_pool_destroy(slabpool_pool* pool) {
  if (pool == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  const slabpool::Stats s = of(pool).stats();
  if (s.live + s.retained + s.in_doubt + s.requests_open + s.requests_draining != 0)
    return SLABPOOL_POOL_BUSY;
  delete &of(pool);
  return SLABPOOL_OK;
}

uint64_t slabpool_pool_trim(slabpool_pool* pool) { return pool == nullptr ? 0 : of(pool).trim(); }

slabpool_status slabpool_pool_stats(slabpool_pool* pool, slabpool_stats* stats) {
  if (pool == nullptr || stats == nullptr || stats->size < sizeof(std::size_t))
    return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  const slabpool::Stats s = of(pool).stats();
  write_result(stats, {0,
                       s.capacity,
                       s.address_space,
                       s.committed,
                       s.live,
                       s.retained,
                       s.in_doubt,
                       s.cached,
                       s.reserved,
                       s.peak_live,
                       s.peak_committed,
                       s.allocations,
                       s.frees,
                       s.requests_open,
                       s.requests_draining,
                       s.requests_in_doubt,
                       s.acks,
                       s.duplicate_acks,
                       s.late_acks,
                       s.stream_acks,
                       s.exhaustions});
  return SLABPOOL_OK;
}

slabpool_status slabpool_allocate(slabpool_pool* pool, const slabpool_allocate_options* options,
                                  slabpool_block** block) {
  slabpool_allocate_options o;
  if (pool == nullptr || block == nullptr || !read_options(options, o)) return SLABPOOL_INVALID_ARGUMENT;
  if (o.timeout_ns < 0 || (o.no_view != 0 && o.request.generation == 0))
    return SLABPOOL_INVALID_ARGUMENT;
  slabpool::AllocateSpec spec;
  spec.nbytes = o.nbytes;
  if (o.align != 0) spec.align = o.align;
  spec.request = of(o.request);
  spec.view = o.no_view == 0;
  spec.zero = o.zero != 0;
  if (o.file != nullptr) spec.where = {o.file, o.line};
  const slabpool::Allocation made = o.timeout_ns == 0
                                        ? of(pool).allocate(spec)
                                        : of(pool).allocate_until(spec, deadline(o.timeout_ns));
  if (made.block != nullptr) *block = reinterpret_cast<slabpool_block*>(made.block);
  return answer(of(pool), made.status, spec.request, spec.nbytes);
}

slabpool_status slabpool_growing_open(slabpool_pool* pool, slabpool_request request, uint64_t most,
                                      slabpool_block** block) {
  if (pool == nullptr || block == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  const slabpool::Allocation made = of(pool).open_growing(of(request), most);
  if (made.block != nullptr) *block = reinterpret_cast<slabpool_block*>(made.block);
  return code(made.status);
}

slabpool_status slabpool_growing_grow(slabpool_pool* pool, slabpool_request request,
                                      slabpool_block* block, uint64_t nbytes, int64_t timeout_ns,
                                      uint64_t* usable) {
  if (pool == nullptr || block == nullptr || usable == nullptr || timeout_ns < 0)
    return SLABPOOL_INVALID_ARGUMENT;
  const Status status = timeout_ns == 0 ? of(pool).grow(of(block), of(request), nbytes, *usable)
                                        : of(pool).grow_until(of(block), of(request), nbytes, *usable,
                                                              deadline(timeout_ns));
  return answer(of(pool), status, of(request), nbytes);
}

void* slabpool_block_data(const slabpool_block* block) { return of(block).data; }

uint64_t slabpool_block_size(const slabpool_block* block) { return of(block).bytes; }

void slabpool_view_hold(slabpool_pool* pool, slabpool_block* block) { of(pool).hold_view(of(block)); }

void slabpool_view_drop(slabpool_pool* pool, slabpool_block* block) { of(pool).drop_view(of(block)); }

slabpool_block* slabpool_block_find(slabpool_pool* pool, const void* address) {
  return reinterpret_cast<slabpool_block*>(of(pool).find(address));
}

slabpool_status slabpool_device(slabpool_pool* pool, const char* name, uint32_t* device) {
  if (pool == nullptr || name == nullptr || device == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  return guarded([&] {
    const auto number = of(pool).devices().add(text_key(name));
    if (!number) return Status::too_many_devices;
    *device = *number;
    return Status::ok;
  });
}

slabpool_status slabpool_device_lost(slabpool_pool* pool, uint32_t device, uint64_t* requests) {
  if (pool == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  if (device >= of(pool).devices().size()) return SLABPOOL_UNKNOWN_DEVICE;
  const uint64_t held = of(pool).device_lost(device);
  if (requests != nullptr) *requests = held;
  return SLABPOOL_OK;
}

slabpool_status slabpool_heartbeat(slabpool_pool* pool, uint32_t device) {
  if (pool == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  if (device >= of(pool).devices().size()) return SLABPOOL_UNKNOWN_DEVICE;
  of(pool).heartbeat(device);
  return SLABPOOL_OK;
}

slabpool_status slabpool_request_open(slabpool_pool* pool, const slabpool_request_options* options,
                                      slabpool_request* request) {
  slabpool_request_options o;
  if (pool == nullptr || request == nullptr || !read_options(options, o))
    return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  if (o.timeout_ns < 0 || o.lease_ns < 0 || (o.devices == nullptr && o.device_count != 0)) {
    return SLABPOOL_INVALID_ARGUMENT;
  }
  return guarded([&] {
    slabpool::OpenSpec spec;
    std::string id;
    if (o.id != nullptr) {
      id = text_key(o.id);
    } else {
      // A child has its parent's id, so without an id there must be a parent.
      slabpool::RequestInfo parent;
      if (o.parent.generation == 0) return Status::invalid_argument;
      if (!of(pool).describe(of(o.parent), parent, 0)) return Status::request_closed;
      id = parent.id;
    }
    const std::uint32_t known = of(pool).devices().size();
    for (std::size_t i = 0; i < o.device_count; ++i) {
      if (o.devices[i] >= known) return Status::unknown_device;
    }
    spec.id = id;
    spec.devices = {o.devices, o.device_count};
    if (o.parent.generation != 0) spec.parent = of(o.parent);
    spec.reserve = o.reserve;
    spec.quota = o.quota;
    spec.lease_ns = o.lease_ns;
    if (o.file != nullptr) spec.where = {o.file, o.line};
    Handle handle;
    const Status status = o.timeout_ns == 0 ? of(pool).open(spec, handle)
                                            : of(pool).open_until(spec, handle, deadline(o.timeout_ns));
    if (status == Status::ok) *request = {handle.slot, handle.generation};
    (void)answer(of(pool), status, {}, o.reserve);
    return status;
  });
}

slabpool_status slabpool_request_close(slabpool_pool* pool, slabpool_request request, int32_t cancel) {
  if (pool == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  of(pool).close_request(of(request), cancel != 0);
  return SLABPOOL_OK;
}

slabpool_status slabpool_ack(slabpool_pool* pool, slabpool_request request, uint32_t device,
                             slabpool_ack_result* result) {
  if (pool == nullptr || result == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (device >= slabpool::kMaxDevices) return SLABPOOL_UNKNOWN_DEVICE;
  const Pool::Acked acked = of(pool).ack(of(request), device);
  if (acked.status == Status::ok) *result = static_cast<slabpool_ack_result>(acked.result);
  return code(acked.status);
}

slabpool_status slabpool_ack_id(slabpool_pool* pool, const char* id, uint32_t device,
                                uint64_t generation, slabpool_ack_result* result) {
  if (pool == nullptr || id == nullptr || result == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (device >= slabpool::kMaxDevices) return SLABPOOL_UNKNOWN_DEVICE;
  return guarded([&] {
    std::optional<std::uint64_t> wanted;
    if (generation != 0) wanted = generation;
    const Pool::Acked acked =
        with_text_key(id, [&](std::string_view key) { return of(pool).ack_id(key, device, wanted); });
    if (acked.status == Status::ok) *result = static_cast<slabpool_ack_result>(acked.result);
    return acked.status;
  });
}

slabpool_status slabpool_request_add_device(slabpool_pool* pool, slabpool_request request,
                                            uint32_t device) {
  if (pool == nullptr) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  if (device >= of(pool).devices().size()) return SLABPOOL_UNKNOWN_DEVICE;
  return code(of(pool).add_device(of(request), device));
}

slabpool_status slabpool_request_wait(slabpool_pool* pool, slabpool_request request,
                                      int64_t timeout_ns) {
  if (pool == nullptr || timeout_ns < 0) return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  return of(pool).wait_released(of(request), deadline(timeout_ns)) ? SLABPOOL_OK : SLABPOOL_TIMED_OUT;
}

slabpool_status slabpool_request_describe(slabpool_pool* pool, slabpool_request request,
                                          slabpool_request_info* info) {
  if (pool == nullptr || info == nullptr || info->size < sizeof(std::size_t))
    return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  return guarded([&] {
    slabpool::RequestInfo found;
    slabpool_request_info result{};
    result.state = SLABPOOL_REQUEST_RELEASED;
    if (of(pool).describe(of(request), found)) {
      result.state = static_cast<slabpool_request_state>(found.state);
      result.pending = static_cast<std::uint32_t>(found.pending.size());
      result.live_views = found.live_views;
      result.nbytes = found.nbytes;
      result.age_ns = found.age_ns;
    }
    write_result(info, result);
    return Status::ok;
  });
}

slabpool_status slabpool_request_pending(slabpool_pool* pool, slabpool_request request,
                                         uint32_t* devices, size_t room, size_t* count) {
  if (pool == nullptr || count == nullptr || (devices == nullptr && room != 0))
    return SLABPOOL_INVALID_ARGUMENT;
  if (!of(pool).usable_here()) return SLABPOOL_FORKED;
  return guarded([&] {
    slabpool::RequestInfo found;
    // A request that is over waits for no device.
    (void)of(pool).describe(of(request), found, slabpool::Pool::kPendingDevices);
    *count = found.pending.size();
    std::copy_n(found.pending.begin(), std::min(room, found.pending.size()), devices);
    return Status::ok;
  });
}

}  // extern "C"
