/* Wrong and impossible calls of the C API: each has its own status and changes nothing. So do callers
 * that were built against an older or a newer header. */
#include <errno.h>

#include "check.h"

static void test_bad_arguments(void) {
  slabpool_pool_options options;
  slabpool_pool* pool = NULL;
  slabpool_block* block = NULL;
  memset(&options, 0, sizeof options);
  CHECK(slabpool_pool_create(NULL, &pool) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_pool_create(&options, &pool) == SLABPOOL_INVALID_ARGUMENT); /* no size */
  options.size = sizeof options;
  CHECK(slabpool_pool_create(&options, &pool) == SLABPOOL_INVALID_ARGUMENT); /* no capacity */
  CHECK(pool == NULL);
  pool = new_pool(1 << 20, 0);
  CHECK(allocate(pool, UINT64_C(1) << 40, no_request, &block) == SLABPOOL_TOO_LARGE);
  CHECK(block == NULL);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_wrong_requests(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_request request = no_request;
  slabpool_request_options options;
  slabpool_ack_result result = -1;
  uint32_t devices[3];
  CHECK(slabpool_device(pool, "gpu0", &devices[0]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "gpu0", &devices[1]) == SLABPOOL_OK);
  CHECK(devices[0] == devices[1]);
  devices[2] = 4000; /* a number without a name */
  options = request_options("a", devices, 2);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_DUPLICATE_DEVICE);
  options = request_options("a", devices + 1, 2);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_UNKNOWN_DEVICE);
  options = request_options(NULL, devices, 1);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_INVALID_ARGUMENT);
  options = request_options("a", NULL, 1);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_INVALID_ARGUMENT);
  options = request_options("a", devices, 1);
  options.timeout_ns = -1;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_INVALID_ARGUMENT);
  options.timeout_ns = 0;
  options.lease_ns = -1;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_INVALID_ARGUMENT);
  options.lease_ns = 0;
  options.reserve = 2 << 20;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_TOO_LARGE);
  options.reserve = 1000;
  options.quota = 999;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(request.generation == 0);
  CHECK(stats_of(pool).requests_open == 0 && stats_of(pool).reserved == 0);

  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK && result == SLABPOOL_ACK_LATE);
  CHECK(slabpool_ack(pool, request, UINT32_MAX, &result) == SLABPOOL_UNKNOWN_DEVICE);
  CHECK(slabpool_ack_id(pool, "unknown", devices[0], 0, &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_LATE);
  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_request_add_device(pool, request, devices[0]) == SLABPOOL_REQUEST_CLOSED);
  CHECK(slabpool_request_add_device(pool, request, devices[2]) == SLABPOOL_UNKNOWN_DEVICE);
  CHECK(slabpool_device_lost(pool, devices[2], NULL) == SLABPOOL_UNKNOWN_DEVICE);
  CHECK(slabpool_device_lost(pool, devices[0], NULL) == SLABPOOL_OK);
  CHECK(slabpool_heartbeat(pool, devices[2]) == SLABPOOL_UNKNOWN_DEVICE);
  CHECK(slabpool_request_wait(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_request_wait(pool, request, -1) == SLABPOOL_INVALID_ARGUMENT);

  /* Children: no own id, some of the parent's devices, a budget inside the parent's. */
  options = request_options("a", devices, 1);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_OK);
  options = request_options(NULL, devices, 1);
  options.parent = request;
  options.quota = 100000;
  options.lease_ns = 1;
  for (int level = 1; level < 8; ++level) {
    slabpool_request child;
    options.reserve = level == 1 ? 100000 : 4096;
    CHECK(slabpool_request_open(pool, &options, &child) == SLABPOOL_OK);
    options.parent = child;
  }
  CHECK(stats_of(pool).reserved == 102400); /* all others are inside of the first */
  {
    slabpool_request deepest = options.parent, none = no_request;
    slabpool_request_options ninth = options;
    CHECK(slabpool_request_open(pool, &ninth, &deepest) == SLABPOOL_OK);
    ninth.parent = deepest;
    CHECK(slabpool_request_open(pool, &ninth, &none) == SLABPOOL_TOO_DEEP && none.generation == 0);
    ninth.reserve = 0;
    CHECK(slabpool_request_open(pool, &ninth, &none) == SLABPOOL_TOO_DEEP);
  }
  options = request_options(NULL, devices, 1);
  options.parent = request;
  CHECK(slabpool_request_add_device(pool, request, devices[0]) == SLABPOOL_DUPLICATE_DEVICE);
  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_REQUEST_CLOSED);
  CHECK(slabpool_ack(pool, options.parent, devices[0], &result) == SLABPOOL_OK);
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_REQUEST_CLOSED);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_running_out(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_allocate_options options;
  slabpool_block *all = NULL, *more = NULL;
  CHECK(allocate(pool, 1 << 20, no_request, &all) == SLABPOOL_OK);
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.nbytes = 1;
  CHECK(slabpool_allocate(pool, &options, &more) == SLABPOOL_EXHAUSTED);
  options.timeout_ns = 1000000;
  CHECK(slabpool_allocate(pool, &options, &more) == SLABPOOL_EXHAUSTED);
  CHECK(more == NULL && stats_of(pool).exhaustions == 2);
  slabpool_view_drop(pool, all);
  CHECK(slabpool_allocate(pool, &options, &more) == SLABPOOL_OK);
  slabpool_view_drop(pool, more);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_device_names(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  char name[16];
  uint32_t device = 0;
  int i;
  for (i = 0; i < 4096; ++i) {
    snprintf(name, sizeof name, "gpu%d", i);
    CHECK(slabpool_device(pool, name, &device) == SLABPOOL_OK && device == (uint32_t)i);
  }
  CHECK(slabpool_device(pool, "one more", &device) == SLABPOOL_TOO_MANY_DEVICES);
  CHECK(slabpool_device(pool, "gpu7", &device) == SLABPOOL_OK && device == 7);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_nulls(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_block* block = NULL;
  slabpool_request request = no_request;
  slabpool_request_options opening = request_options("r", NULL, 0);
  slabpool_allocate_options options;
  slabpool_stats stats;
  slabpool_request_info info;
  slabpool_ack_result result;
  uint32_t device;
  size_t count;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  stats.size = info.size = 0;
  CHECK(slabpool_pool_create(NULL, NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_pool_close(NULL, 1) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_pool_destroy(NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_pool_trim(NULL) == 0);
  CHECK(slabpool_pool_stats(pool, NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_pool_stats(pool, &stats) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_allocate(NULL, &options, &block) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_allocate(pool, NULL, &block) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_allocate(pool, &options, NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_device(pool, NULL, &device) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_device(pool, "a", NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_open(pool, NULL, &request) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_open(pool, &opening, NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_close(NULL, request, 0) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_ack(pool, request, 0, NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_ack_id(pool, NULL, 0, 0, &result) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_describe(pool, request, &info) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_pending(pool, request, NULL, 0, NULL) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_pending(NULL, request, NULL, 0, &count) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_block_find(pool, NULL) == NULL);
  CHECK(stats_of(pool).committed == 0);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

/* A caller that was built against an older, shorter struct. */
static void test_older_callers(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_stats stats;
  memset(&stats, 0xff, sizeof stats);
  stats.size = offsetof(slabpool_stats, committed);
  CHECK(slabpool_pool_stats(pool, &stats) == SLABPOOL_OK);
  CHECK(stats.size == offsetof(slabpool_stats, committed));
  CHECK(stats.capacity == 1 << 20);
  CHECK(stats.committed == UINT64_MAX); /* left unwritten */
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

/* A caller whose struct has more fields than the library knows: accepted as long as it does not use
 * them. */
static void test_newer_callers(void) {
  struct {
    slabpool_pool_options options;
    uint64_t unheard_of;
  } newer;
  slabpool_pool* pool = NULL;
  memset(&newer, 0, sizeof newer);
  newer.options.size = sizeof newer;
  newer.options.capacity = 1 << 20;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_OK);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
  pool = NULL;
  newer.unheard_of = 1;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_INVALID_ARGUMENT);
  newer.unheard_of = 0;
  newer.options.numa_node = -1;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_INVALID_ARGUMENT);
  newer.options.numa_node = 1001;
  errno = 0;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_SYSTEM_REFUSED);
  CHECK(errno != 0);
  newer.options.numa_node = 0;
  newer.options.debug = 3;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_INVALID_ARGUMENT);
  newer.options.debug = 0;
  newer.options.capacity = UINT64_MAX;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_INVALID_ARGUMENT);
  newer.options.capacity = 1 << 20;
  newer.options.events = UINT64_MAX;
  CHECK(slabpool_pool_create(&newer.options, &pool) == SLABPOOL_SYSTEM_REFUSED);
  CHECK(pool == NULL);
}

int main(void) {
  test_bad_arguments();
  test_wrong_requests();
  test_running_out();
  test_device_names();
  test_nulls();
  test_older_callers();
  test_newer_callers();
  printf("%d checks\n", checks);
  return 0;
}
