/* The C interface of slabpool, for C, ctypes and engines written in other languages.
 *
 * Every function may be called from any thread. A call that fails changes nothing. Structs that may
 * grow start with their own size, which the caller sets; fields that a newer header adds are then left
 * alone for callers of an older one. Nothing is thrown across this interface.
 */
#ifndef SLABPOOL_C_API_H
#define SLABPOOL_C_API_H

#include <stddef.h>
#include <stdint.h>

#include "slabpool/export.hpp"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one when a function changes its meaning; new functions do not raise it. */
#define SLABPOOL_C_API_VERSION 1

/* The numbers of slabpool::Status. */
typedef int32_t slabpool_status;
enum {
  SLABPOOL_OK = 0,
  SLABPOOL_INVALID_ARGUMENT = 1,
  SLABPOOL_EXHAUSTED = 2,          /* no room now; it may come */
  SLABPOOL_TOO_LARGE = 3,          /* larger than the capacity: no room ever */
  SLABPOOL_SYSTEM_REFUSED = 4,     /* the system has no memory, or no more mappings */
  SLABPOOL_QUOTA_EXCEEDED = 5,
  SLABPOOL_TOO_MANY_REQUESTS = 6,
  SLABPOOL_TOO_MANY_DEVICES = 7,
  SLABPOOL_DUPLICATE_DEVICE = 8,
  SLABPOOL_UNKNOWN_DEVICE = 9,     /* never named for this request */
  SLABPOOL_REQUEST_CLOSED = 10,    /* the host let go of it, or it is gone */
  SLABPOOL_AMBIGUOUS = 11,         /* several generations of the id wait for the device */
  SLABPOOL_POOL_CLOSED = 12,
  SLABPOOL_POOL_BUSY = 13,
  SLABPOOL_FORKED = 14,            /* the pool belongs to the parent process */
  SLABPOOL_TIMED_OUT = 15
};

/* What an acknowledgement changed. */
typedef int32_t slabpool_ack_result;
enum {
  SLABPOOL_ACK_PENDING = 0,   /* counted; others still hold */
  SLABPOOL_ACK_RELEASED = 1,  /* counted, and it was the last */
  SLABPOOL_ACK_DUPLICATE = 2, /* this device had before */
  SLABPOOL_ACK_LATE = 3       /* the request is gone */
};

/* Where a request is in its life. */
typedef int32_t slabpool_request_state;
enum {
  SLABPOOL_REQUEST_OPEN = 0,
  SLABPOOL_REQUEST_DRAINING = 1,
  SLABPOOL_REQUEST_IN_DOUBT = 2,
  SLABPOOL_REQUEST_RELEASED = 3
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
  int32_t scrub;         /* not 0: zero every block before anybody else can get it */
  int32_t debug;         /* 1: guards and poison; 2: check every invariant too */
  uint64_t events;       /* entries of the event log */
  int32_t no_huge_pages; /* not 0: do not ask the system for huge pages */
  int32_t numa_node;     /* the node number + 1; 0 leaves it to the system */
} slabpool_pool_options;

/* Makes a pool of host memory. system_refused: errno says why. */
SLABPOOL_API slabpool_status slabpool_pool_create(const slabpool_pool_options* options, slabpool_pool** pool);
/* pool_busy while anything is held. With `force` requests are cut loose; views stay valid. */
SLABPOOL_API slabpool_status slabpool_pool_close(slabpool_pool* pool, int32_t force);
/* Frees a pool, closed or not. pool_busy, and nothing is freed, while a view or a request lives: views
 * must be dropped and requests ended first. No other thread may use the pool from here on. */
SLABPOOL_API slabpool_status slabpool_pool_destroy(slabpool_pool* pool);
/* Gives unused memory back to the system; returns bytes. */
SLABPOOL_API uint64_t slabpool_pool_trim(slabpool_pool* pool);

typedef struct slabpool_stats {
  size_t size; /* sizeof(slabpool_stats), set by the caller */
  uint64_t capacity, reserved, committed, live, retained, in_doubt, cached, set_aside, peak_live, peak_committed;
  uint64_t allocations, frees, requests_open, requests_draining, requests_in_doubt;
  uint64_t acks, duplicate_acks, late_acks, exhaustions;
} slabpool_stats;

/* committed == live + retained + in_doubt + cached, always. */
SLABPOOL_API slabpool_status slabpool_pool_stats(slabpool_pool* pool, slabpool_stats* stats);

/* ---- blocks --------------------------------------------------------------------------------------- */

typedef struct slabpool_allocate_options {
  size_t size;              /* sizeof(slabpool_allocate_options) */
  uint64_t nbytes;
  uint64_t align;           /* a power of two up to 2 MiB; 0 is 64 */
  slabpool_request request; /* generation 0: memory without a request, held by the caller's view alone */
  int32_t no_view;          /* not 0, with a request: the caller takes no view of its own */
  int32_t zero;             /* not 0: fill with zeros */
  int64_t timeout_ns;       /* how long to wait for memory; 0: not at all */
  const char* file;         /* kept in pools with debug on; must outlive the pool */
  uint32_t line;
} slabpool_allocate_options;

/* Hands out a block. The caller has a view of it, to be dropped once (unless no_view). */
SLABPOOL_API slabpool_status slabpool_allocate(slabpool_pool* pool, const slabpool_allocate_options* options,
                                               slabpool_block** block);
SLABPOOL_API void* slabpool_block_data(const slabpool_block* block);
/* What it takes from the pool: at least what was asked for. */
SLABPOOL_API uint64_t slabpool_block_size(const slabpool_block* block);
/* One more view, by somebody who has one. */
SLABPOOL_API void slabpool_view_hold(slabpool_pool* pool, slabpool_block* block);
SLABPOOL_API void slabpool_view_drop(slabpool_pool* pool, slabpool_block* block);
/* The block that holds an address inside memory the caller has a view of; null if it is not the pool's. */
SLABPOOL_API slabpool_block* slabpool_block_find(slabpool_pool* pool, const void* address);

/* ---- devices -------------------------------------------------------------------------------------- */

/* The number of a device's name (UTF-8, ended by 0) in this pool, new if need be. The same as Python's
 * str of that name. */
SLABPOOL_API slabpool_status slabpool_device(slabpool_pool* pool, const char* name, uint32_t* device);
/* Lets go of everything the device held; `requests` (may be null) gets how many those were. */
SLABPOOL_API slabpool_status slabpool_device_lost(slabpool_pool* pool, uint32_t device, uint64_t* requests);
/* A sign of life: renews the device's leases. */
SLABPOOL_API slabpool_status slabpool_heartbeat(slabpool_pool* pool, uint32_t device);

/* ---- requests ------------------------------------------------------------------------------------- */

typedef struct slabpool_request_options {
  size_t size;              /* sizeof(slabpool_request_options) */
  const char* id;           /* UTF-8, ended by 0; the same as Python's str. Not needed for a child */
  const uint32_t* devices;
  size_t device_count;
  slabpool_request parent;  /* generation 0: none. A child's devices are some of its parent's */
  uint64_t reserve;         /* bytes to set aside; not for a child */
  uint64_t quota;           /* most bytes; 0: no bound; not for a child */
  int64_t lease_ns;         /* how long a device may be silent; 0: for ever */
  int64_t timeout_ns;       /* how long to wait for the reserve; 0: not at all */
  const char* file;         /* for reports; must outlive the pool */
  uint32_t line;
} slabpool_request_options;

SLABPOOL_API slabpool_status slabpool_request_open(slabpool_pool* pool, const slabpool_request_options* options,
                                                   slabpool_request* request);
/* The host is done; with `cancel` it gives up. Again: nothing happens. */
SLABPOOL_API slabpool_status slabpool_request_close(slabpool_pool* pool, slabpool_request request, int32_t cancel);
/* A device is done. Acknowledging for a device removes it. */
SLABPOOL_API slabpool_status slabpool_ack(slabpool_pool* pool, slabpool_request request, uint32_t device,
                                          slabpool_ack_result* result);
/* The same by an engine that carries only the id; generation 0: the one that waits. */
SLABPOOL_API slabpool_status slabpool_ack_id(slabpool_pool* pool, const char* id, uint32_t device,
                                             uint64_t generation, slabpool_ack_result* result);
SLABPOOL_API slabpool_status slabpool_request_add_device(slabpool_pool* pool, slabpool_request request,
                                                         uint32_t device);
/* ok once the last holder has let go; timed_out if the time was over first. */
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

/* Of a request that is gone with all its memory: released, and zeros. */
SLABPOOL_API slabpool_status slabpool_request_describe(slabpool_pool* pool, slabpool_request request,
                                                       slabpool_request_info* info);

#ifdef __cplusplus
}
#endif

#endif /* SLABPOOL_C_API_H */
