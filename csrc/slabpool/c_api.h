/* The C interface of slabpool, for C, ctypes and engines written in other languages.
 *
 * Every function may be called from any thread, with no lock held, unless it says otherwise. A call that
 * fails changes nothing, not even what its last argument points to. No exception crosses this interface, and it
 * keeps no state outside the pools.
 *
 * Structs that may grow start with their own size, which the caller sets. Set the rest of an options struct to
 * zero first: zero is the default of every field. A library that knows more fields than the caller takes them as
 * zero; a library that knows fewer refuses fields that are not zero (invalid_argument).
 *
 * Errors that any function with a pool may return, not repeated below: invalid_argument (a null or
 * impossible argument), forked (the pool was made by the process that forked this one), system_refused
 * (no memory left for the pool's own tables).
 */
#ifndef SLABPOOL_C_API_H
#define SLABPOOL_C_API_H

#include <stddef.h>
#include <stdint.h>

#include "slabpool/base/export.hpp"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one when a function changes its meaning; new functions do not raise it. */
#define SLABPOOL_C_API_VERSION 2 /* 2: stats.reserved is what requests were promised */

/* The numbers of slabpool::Status. */
typedef int32_t slabpool_status;
enum {
  SLABPOOL_OK = 0,
  SLABPOOL_INVALID_ARGUMENT = 1,
  SLABPOOL_EXHAUSTED = 2,      /* no room now; memory that comes back may change that */
  SLABPOOL_TOO_LARGE = 3,      /* larger than the capacity: waiting cannot help */
  SLABPOOL_SYSTEM_REFUSED = 4, /* the system has no memory, or no more mappings */
  SLABPOOL_QUOTA_EXCEEDED = 5,
  SLABPOOL_TOO_MANY_REQUESTS = 6,
  SLABPOOL_TOO_MANY_DEVICES = 7,
  SLABPOOL_DUPLICATE_DEVICE = 8,
  SLABPOOL_UNKNOWN_DEVICE = 9,  /* the device was never named for this request */
  SLABPOOL_REQUEST_CLOSED = 10, /* the host has left the request, or the request is over */
  SLABPOOL_AMBIGUOUS = 11,      /* several generations of the id wait for the device */
  SLABPOOL_POOL_CLOSED = 12,
  SLABPOOL_POOL_BUSY = 13,
  SLABPOOL_FORKED = 14, /* the pool belongs to the parent process */
  SLABPOOL_TIMED_OUT = 15,
  SLABPOOL_NO_ADDRESSES = 16, /* the address range has no run of the block's limit */
  SLABPOOL_DEVICE_LOST = 17,  /* the GPU failed, and no work on it succeeds any more */
  SLABPOOL_TOO_DEEP = 19 /* more than eight requests with a quota or a reserve, one inside the other */
};

/* What an acknowledgement changed. */
typedef int32_t slabpool_ack_result;
enum {
  SLABPOOL_ACK_PENDING = 0,   /* counted; others still hold */
  SLABPOOL_ACK_RELEASED = 1,  /* counted, and it was the last */
  SLABPOOL_ACK_DUPLICATE = 2, /* this device had acknowledged before */
  SLABPOOL_ACK_LATE = 3       /* the request is over */
};

/* Where a request is in its life. */
typedef int32_t slabpool_request_state;
enum {
  SLABPOOL_REQUEST_OPEN = 0,
  SLABPOOL_REQUEST_DRAINING = 1,
  SLABPOOL_REQUEST_IN_DOUBT = 2,
  SLABPOOL_REQUEST_RELEASED = 3,
  SLABPOOL_REQUEST_KEPT = 4 /* by a session of another language's interface */
};

typedef struct slabpool_pool slabpool_pool;
typedef struct slabpool_block slabpool_block;

/* A request: two integers, good in any process. generation 0 is no request. */
typedef struct slabpool_request {
  uint32_t slot;
  uint64_t generation;
} slabpool_request;

#define SLABPOOL_FOREVER INT64_MAX /* as a timeout */

SLABPOOL_API uint32_t slabpool_c_api_version(void);
/* A few words for a status; a static string, also for numbers that are none. */
SLABPOOL_API const char* slabpool_status_string(slabpool_status status);

/* ---- pools ---------------------------------------------------------------------------------------- */

typedef struct slabpool_pool_options {
  size_t size;           /* sizeof(slabpool_pool_options) */
  uint64_t capacity;     /* bytes, at least 16 KiB */
  int32_t scrub;         /* not 0: zero every block before it can be handed out again */
  int32_t debug;         /* 1: guards and poison; 2: check every invariant too */
  uint64_t events;       /* entries of the event log */
  int32_t no_huge_pages; /* not 0: do not ask the system for huge pages */
  int32_t numa_node;     /* the node number + 1; 0 leaves it to the system */
} slabpool_pool_options;

/* Makes a pool of host memory; commits none of it yet. invalid_argument: a capacity under 16 KiB or over
 * 4 TiB. system_refused: errno says why (no address space, no such NUMA node). */
SLABPOOL_API slabpool_status slabpool_pool_create(const slabpool_pool_options* options,
                                                  slabpool_pool** pool);
/* Ends all allocating and gives unused memory back. pool_busy while any view or request is held; with
 * `force` every holder leaves every request, and views stay valid. A second call changes nothing. */
SLABPOOL_API slabpool_status slabpool_pool_close(slabpool_pool* pool, int32_t force);
/* Frees a pool, closed or not; `pool` is invalid afterwards. pool_busy, and nothing is freed, while a view or a
 * request lives: drop the views and end the requests first (close with `force` ends them). Not thread-safe: no
 * other thread may be in a call on this pool, or make one later. */
SLABPOOL_API slabpool_status slabpool_pool_destroy(slabpool_pool* pool);
/* Gives unused memory back to the system; returns bytes, 0 in a forked child. */
SLABPOOL_API uint64_t slabpool_pool_trim(slabpool_pool* pool);

typedef struct slabpool_stats {
  size_t size; /* sizeof(slabpool_stats), set by the caller */
  uint64_t capacity, address_space, committed, live, retained, in_doubt, cached, reserved, peak_live,
      peak_committed;
  uint64_t allocations, frees, requests_open, requests_draining, requests_in_doubt;
  uint64_t acks, duplicate_acks, late_acks, stream_acks, exhaustions;
} slabpool_stats;

/* Figures in bytes, in whole blocks, and counts since the pool was made. Always committed == live +
 * retained + in_doubt + cached, and committed <= capacity. */
SLABPOOL_API slabpool_status slabpool_pool_stats(slabpool_pool* pool, slabpool_stats* stats);

/* ---- blocks --------------------------------------------------------------------------------------- */

typedef struct slabpool_allocate_options {
  size_t size; /* sizeof(slabpool_allocate_options) */
  uint64_t nbytes;
  uint64_t align;           /* a power of two up to 2 MiB; 0 is 64 */
  slabpool_request request; /* generation 0: memory without a request, held by the caller's view alone */
  int32_t no_view;          /* not 0, with a request: the caller takes no view of its own */
  int32_t zero;             /* not 0: fill with zeros */
  int64_t timeout_ns;       /* how long to wait for memory; 0: not at all */
  const char* file;         /* recorded in pools with debug on; must outlive the pool */
  uint32_t line;
} slabpool_allocate_options;

/* Hands out a block. The caller gets a view of it, and drops it once; the request holds the block too. With no_view
 * only the request holds it, and the block is valid until the request ends.
 * exhausted: no room, or none came in time. too_large: waiting cannot help. system_refused: the system has no
 * memory. quota_exceeded, request_closed: about the request. pool_closed. invalid_argument: also an alignment that
 * is no power of two up to 2 MiB, a negative timeout, or no_view without a request. */
SLABPOOL_API slabpool_status slabpool_allocate(slabpool_pool* pool,
                                               const slabpool_allocate_options* options,
                                               slabpool_block** block);
/* A block of a request that may grow: `most` bytes of addresses that never move, none of them usable yet. The
 * caller has a view of it. no_addresses: the pool's range has no such run. request_closed, pool_closed. */
SLABPOOL_API slabpool_status slabpool_growing_open(slabpool_pool* pool, slabpool_request request,
                                                   uint64_t most, slabpool_block** block);
/* Makes the first `nbytes` bytes of such a block usable, waiting `timeout_ns` at most for memory; only committed
 * bytes count. `usable` gets how many bytes may be touched now, after a failure as many as before; it is not
 * written if the request or the pool is closed.
 * invalid_argument: more than `most`. Errors as of slabpool_allocate. */
SLABPOOL_API slabpool_status slabpool_growing_grow(slabpool_pool* pool, slabpool_request request,
                                                   slabpool_block* block, uint64_t nbytes,
                                                   int64_t timeout_ns, uint64_t* usable);
/* The first byte of a block that the caller, or a request of the caller's, holds. */
SLABPOOL_API void* slabpool_block_data(const slabpool_block* block);
/* The bytes that the block takes from the pool: at least what was asked for. In pools with debug on only the bytes
 * that were asked for may be written. */
SLABPOOL_API uint64_t slabpool_block_size(const slabpool_block* block);
/* One more view, for a caller that has one. Never fails. */
SLABPOOL_API void slabpool_view_hold(slabpool_pool* pool, slabpool_block* block);
/* Drops one view, on any thread; the last holder gives the memory back. Never fails. In a forked child it does
 * nothing. */
SLABPOOL_API void slabpool_view_drop(slabpool_pool* pool, slabpool_block* block);
/* The block that an address lies in, if the caller has a view of that block; null for an address outside the pool.
 * For other addresses of the pool the answer is undefined. Takes no view. */
SLABPOOL_API slabpool_block* slabpool_block_find(slabpool_pool* pool, const void* address);

/* ---- devices -------------------------------------------------------------------------------------- */

/* The number of a device's name (UTF-8, ended by 0) in this pool, from now on for good: below 4,096, small ones first. The
 * same as Python's str of that name. too_many_devices: no number is free. Names of Python that nothing waits for give
 * theirs up when Python needs one, and not to this call. */
SLABPOOL_API slabpool_status slabpool_device(slabpool_pool* pool, const char* name, uint32_t* device);
/* The device leaves every request; `requests` (may be null) gets how many it held. unknown_device: a number that no
 * name has. */
SLABPOOL_API slabpool_status slabpool_device_lost(slabpool_pool* pool, uint32_t device,
                                                  uint64_t* requests);
/* A sign of life: renews the device's leases. unknown_device as above. */
SLABPOOL_API slabpool_status slabpool_heartbeat(slabpool_pool* pool, uint32_t device);

/* ---- requests ------------------------------------------------------------------------------------- */

typedef struct slabpool_request_options {
  size_t size;    /* sizeof(slabpool_request_options) */
  const char* id; /* UTF-8, ended by 0; the same as Python's str. Not needed for a child */
  const uint32_t* devices;
  size_t device_count;
  slabpool_request parent; /* generation 0: none. A child's devices are some of its parent's */
  uint64_t
      reserve; /* bytes promised to the request; of a child out of its parent's, as far as those suffice */
  uint64_t quota; /* most bytes, children included; 0: no bound. A child is bound by its parent's too */
  int64_t lease_ns;   /* how long a device may be silent; 0: for ever, and of a child its parent's */
  int64_t timeout_ns; /* how long to wait for the reserve; 0: not at all */
  const char* file;   /* for reports; must outlive the pool */
  uint32_t line;
} slabpool_request_options;

/* Opens a request that the host and the devices hold. The same id again is another generation of it.
 * exhausted: the reserve is not available, or not in time. quota_exceeded: by the reserve, that of a parent. too_deep.
 * too_large: waiting cannot help. unknown_device: a number
 * that no name has, or for a child a device that does not hold its parent. duplicate_device. request_closed: the
 * parent. too_many_requests: 65,536 are alive. pool_closed. */
SLABPOOL_API slabpool_status slabpool_request_open(slabpool_pool* pool,
                                                   const slabpool_request_options* options,
                                                   slabpool_request* request);
/* The host leaves the request and all children; with `cancel` it gives up. A second call, or a call for a request that
 * is over, changes nothing. The memory still waits for the devices. */
SLABPOOL_API slabpool_status slabpool_request_close(slabpool_pool* pool, slabpool_request request,
                                                    int32_t cancel);
/* A device acknowledges the request and its children. To remove a device is to acknowledge for it. Exactly one caller
 * is answered `released`, and the memory is back by then. unknown_device: it was never named for this request. */
SLABPOOL_API slabpool_status slabpool_ack(slabpool_pool* pool, slabpool_request request, uint32_t device,
                                          slabpool_ack_result* result);
/* The same for an engine that carries only the id; generation 0: the generation that waits for the device, and `late`
 * if none does. ambiguous: several do. unknown_device: no generation of the id named it. */
SLABPOOL_API slabpool_status slabpool_ack_id(slabpool_pool* pool, const char* id, uint32_t device,
                                             uint64_t generation, slabpool_ack_result* result);
/* Names one more holder while the host holds. duplicate_device: it holds already. unknown_device: a number that no name
 * has, or a device that does not hold the parent of this child. request_closed. */
SLABPOOL_API slabpool_status slabpool_request_add_device(slabpool_pool* pool, slabpool_request request,
                                                         uint32_t device);
/* ok once the last holder has left and the memory is back; timed_out if the time was over first. A request that was
 * never opened is over. */
SLABPOOL_API slabpool_status slabpool_request_wait(slabpool_pool* pool, slabpool_request request,
                                                   int64_t timeout_ns);

typedef struct slabpool_request_info {
  size_t size; /* sizeof(slabpool_request_info), set by the caller */
  slabpool_request_state state;
  uint32_t pending; /* devices that have not acknowledged */
  uint32_t live_views;
  uint64_t nbytes;
  int64_t age_ns;
} slabpool_request_info;

/* Describes a request. For one that is over: released, and the bytes that views retain. */
SLABPOOL_API slabpool_status slabpool_request_describe(slabpool_pool* pool, slabpool_request request,
                                                       slabpool_request_info* info);
/* The numbers of the devices that have not acknowledged. `devices` (may be null if room is 0) gets the first `room` of
 * them, and `count` how many there are. */
SLABPOOL_API slabpool_status slabpool_request_pending(slabpool_pool* pool, slabpool_request request,
                                                      uint32_t* devices, size_t room, size_t* count);

#ifdef __cplusplus
}
#endif

#endif /* SLABPOOL_C_API_H */
