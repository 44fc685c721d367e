/* Walks through the whole C interface, with nothing else of slabpool's. Prints the number of checks; the
 * first that fails says where and ends the program with 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slabpool/c_api.h"

static int checks = 0;

#define CHECK(condition)                                                    \
  do {                                                                      \
    ++checks;                                                               \
    if (!(condition)) {                                                     \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);       \
      exit(1);                                                              \
    }                                                                       \
  } while (0)

static slabpool_pool* new_pool(uint64_t capacity, int32_t debug) {
  slabpool_pool_options options;
  slabpool_pool* pool = NULL;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.capacity = capacity;
  options.debug = debug;
  CHECK(slabpool_pool_create(&options, &pool) == SLABPOOL_OK);
  CHECK(pool != NULL);
  return pool;
}

static slabpool_stats stats_of(slabpool_pool* pool) {
  slabpool_stats stats;
  stats.size = sizeof stats;
  CHECK(slabpool_pool_stats(pool, &stats) == SLABPOOL_OK);
  CHECK(stats.size == sizeof stats);
  CHECK(stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached);
  CHECK(stats.committed <= stats.capacity);
  return stats;
}

static slabpool_status allocate(slabpool_pool* pool, uint64_t nbytes, slabpool_request request,
                                slabpool_block** block) {
  slabpool_allocate_options options;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.nbytes = nbytes;
  options.request = request;
  options.zero = 1;
  options.file = __FILE__;
  options.line = __LINE__;
  return slabpool_allocate(pool, &options, block);
}

static const slabpool_request no_request = {0, 0};

static void test_versions_and_words(void) {
  CHECK(slabpool_c_api_version() == SLABPOOL_C_API_VERSION);
  CHECK(strcmp(slabpool_status_string(SLABPOOL_OK), "ok") == 0);
  CHECK(strstr(slabpool_status_string(SLABPOOL_EXHAUSTED), "room") != NULL);
  CHECK(strstr(slabpool_status_string(12345), "not a status") != NULL);
}

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

static void test_blocks(void) {
  slabpool_pool* pool = new_pool(64 << 20, 0);
  slabpool_allocate_options options;
  slabpool_block* block = NULL;
  unsigned char* bytes;
  CHECK(allocate(pool, 100000, no_request, &block) == SLABPOOL_OK);
  bytes = slabpool_block_data(block);
  CHECK((uintptr_t)bytes % 64 == 0);
  CHECK(slabpool_block_size(block) >= 100000);
  CHECK(bytes[0] == 0 && bytes[99999] == 0);
  memset(bytes, 7, 100000);
  CHECK(slabpool_block_find(pool, bytes + 50000) == block);
  CHECK(slabpool_block_find(pool, &block) == NULL);
  CHECK(stats_of(pool).live == slabpool_block_size(block));
  slabpool_view_hold(pool, block);
  slabpool_view_drop(pool, block);
  CHECK(bytes[99999] == 7);
  CHECK(slabpool_pool_close(pool, 0) == SLABPOOL_POOL_BUSY);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_POOL_BUSY);
  slabpool_view_drop(pool, block);
  CHECK(stats_of(pool).live == 0);

  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.nbytes = 10;
  options.align = 2 << 20;
  CHECK(slabpool_allocate(pool, &options, &block) == SLABPOOL_OK);
  CHECK((uintptr_t)slabpool_block_data(block) % (2 << 20) == 0);
  slabpool_view_drop(pool, block);
  options.align = 3;
  CHECK(slabpool_allocate(pool, &options, &block) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_pool_trim(pool) > 0);
  CHECK(stats_of(pool).committed == 0);
  CHECK(slabpool_pool_close(pool, 0) == SLABPOOL_OK);
  options.align = 0;
  CHECK(slabpool_allocate(pool, &options, &block) == SLABPOOL_POOL_CLOSED);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_requests(void) {
  slabpool_pool* pool = new_pool(64 << 20, 1);
  slabpool_request_options options;
  slabpool_request_info info;
  slabpool_request request, child, again;
  slabpool_block* block = NULL;
  slabpool_ack_result result = -1;
  uint32_t devices[2], stranger;
  uint64_t lost = 0;
  CHECK(slabpool_device(pool, "gpu0", &devices[0]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "gpu1", &devices[1]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "gpu9", &stranger) == SLABPOOL_OK);
  CHECK(devices[0] != devices[1]);

  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.id = "chat-42";
  options.devices = devices;
  options.device_count = 2;
  options.quota = 1 << 20;
  options.reserve = 1 << 18;
  options.file = __FILE__;
  options.line = __LINE__;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_OK);
  CHECK(stats_of(pool).set_aside == 1 << 18);
  CHECK(allocate(pool, 100000, request, &block) == SLABPOOL_OK);
  CHECK(allocate(pool, 1 << 20, request, &block) == SLABPOOL_QUOTA_EXCEEDED);

  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.devices = &devices[1];
  options.device_count = 1;
  options.parent = request;
  CHECK(slabpool_request_open(pool, &options, &child) == SLABPOOL_OK);
  CHECK(slabpool_request_close(pool, child, 0) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, child, devices[1], &result) == SLABPOOL_OK && result == SLABPOOL_ACK_RELEASED);
  options.devices = &stranger;
  CHECK(slabpool_request_open(pool, &options, &child) == SLABPOOL_UNKNOWN_DEVICE);

  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, request, stranger, &result) == SLABPOOL_UNKNOWN_DEVICE);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK && result == SLABPOOL_ACK_PENDING);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK && result == SLABPOOL_ACK_DUPLICATE);
  info.size = sizeof info;
  CHECK(slabpool_request_describe(pool, request, &info) == SLABPOOL_OK);
  CHECK(info.state == SLABPOOL_REQUEST_DRAINING && info.pending == 1 && info.live_views == 1);
  CHECK(info.nbytes >= 100000);
  CHECK(slabpool_request_wait(pool, request, 0) == SLABPOOL_TIMED_OUT);
  CHECK(slabpool_ack_id(pool, "chat-42", devices[1], 0, &result) == SLABPOOL_OK && result == SLABPOOL_ACK_RELEASED);
  CHECK(slabpool_request_wait(pool, request, SLABPOOL_FOREVER) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, request, devices[1], &result) == SLABPOOL_OK && result == SLABPOOL_ACK_LATE);
  CHECK(stats_of(pool).retained >= 100000); /* the view is still there */
  slabpool_view_drop(pool, block);
  CHECK(stats_of(pool).retained == 0);

  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.id = "chat-42";
  options.devices = devices;
  options.device_count = 1;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_OK);
  CHECK(slabpool_request_open(pool, &options, &again) == SLABPOOL_OK);
  CHECK(again.generation > request.generation);
  CHECK(slabpool_ack_id(pool, "chat-42", devices[0], 0, &result) == SLABPOOL_AMBIGUOUS);
  CHECK(slabpool_ack_id(pool, "chat-42", devices[0], request.generation, &result) == SLABPOOL_OK);
  CHECK(slabpool_request_add_device(pool, again, devices[1]) == SLABPOOL_OK);
  CHECK(slabpool_heartbeat(pool, devices[1]) == SLABPOOL_OK);
  CHECK(slabpool_device_lost(pool, devices[1], &lost) == SLABPOOL_OK && lost == 1);
  CHECK(slabpool_request_close(pool, request, 1) == SLABPOOL_OK);
  CHECK(allocate(pool, 1, request, &block) == SLABPOOL_REQUEST_CLOSED);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_POOL_BUSY);
  CHECK(slabpool_pool_close(pool, 1) == SLABPOOL_OK);
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
  CHECK(stats.committed == UINT64_MAX); /* not written */
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

int main(void) {
  test_versions_and_words();
  test_bad_arguments();
  test_blocks();
  test_requests();
  test_older_callers();
  printf("%d checks\n", checks);
  return 0;
}
