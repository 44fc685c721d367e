/* Goes through the whole C API as an engine would, with nothing else of slabpool's. Prints the number of
 * checks. The first check that fails prints its line and ends the program with 1. */
#include "check.h"

static void test_versions_and_words(void) {
  CHECK(slabpool_c_api_version() == SLABPOOL_C_API_VERSION);
  CHECK(strcmp(slabpool_status_string(SLABPOOL_OK), "ok") == 0);
  CHECK(strstr(slabpool_status_string(SLABPOOL_EXHAUSTED), "room") != NULL);
  CHECK(strstr(slabpool_status_string(12345), "not a status") != NULL);
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
  CHECK(stats_of(pool).reserved == 1 << 18);
  CHECK(allocate(pool, 100000, request, &block) == SLABPOOL_OK);
  CHECK(allocate(pool, 1 << 20, request, &block) == SLABPOOL_QUOTA_EXCEEDED);

  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.devices = &devices[1];
  options.device_count = 1;
  options.parent = request;
  CHECK(slabpool_request_open(pool, &options, &child) == SLABPOOL_OK);
  CHECK(slabpool_request_close(pool, child, 0) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, child, devices[1], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_RELEASED);
  options.devices = &stranger;
  CHECK(slabpool_request_open(pool, &options, &child) == SLABPOOL_UNKNOWN_DEVICE);

  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, request, stranger, &result) == SLABPOOL_UNKNOWN_DEVICE);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_PENDING);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_DUPLICATE);
  info.size = sizeof info;
  CHECK(slabpool_request_describe(pool, request, &info) == SLABPOOL_OK);
  CHECK(info.state == SLABPOOL_REQUEST_DRAINING && info.pending == 1 && info.live_views == 1);
  CHECK(info.nbytes >= 100000);
  CHECK(slabpool_request_wait(pool, request, 0) == SLABPOOL_TIMED_OUT);
  CHECK(slabpool_ack_id(pool, "chat-42", devices[1], 0, &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_RELEASED);
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

static void test_pending_and_doubt(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_request request;
  slabpool_request_options options;
  slabpool_request_info info;
  slabpool_block* block = NULL;
  slabpool_ack_result result;
  uint32_t devices[3], waiting[3] = {99, 99, 99};
  size_t count = 0;
  CHECK(slabpool_device(pool, "a", &devices[0]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "b", &devices[1]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "c", &devices[2]) == SLABPOOL_OK);
  options = request_options("r", devices, 3);
  options.lease_ns = 1;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_OK);
  CHECK(allocate(pool, 1000, request, &block) == SLABPOOL_OK);
  slabpool_view_drop(pool, block);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_PENDING);
  CHECK(slabpool_request_pending(pool, request, NULL, 0, &count) == SLABPOOL_OK && count == 2);
  CHECK(slabpool_request_pending(pool, request, waiting, 1, &count) == SLABPOOL_OK && count == 2);
  CHECK(waiting[0] == devices[1] && waiting[1] == 99);
  CHECK(slabpool_request_pending(pool, request, waiting, 3, &count) == SLABPOOL_OK && count == 2);
  CHECK(waiting[1] == devices[2] && waiting[2] == 99);
  CHECK(slabpool_request_pending(pool, request, NULL, 1, &count) == SLABPOOL_INVALID_ARGUMENT);
  info.size = sizeof info;
  CHECK(slabpool_request_describe(pool, request, &info) == SLABPOOL_OK);
  CHECK(info.state == SLABPOOL_REQUEST_IN_DOUBT && info.age_ns > 0);
  CHECK(stats_of(pool).in_doubt == info.nbytes);
  CHECK(slabpool_request_close(pool, request, 1) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, request, devices[1], &result) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, request, devices[2], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_RELEASED);
  CHECK(slabpool_request_pending(pool, request, waiting, 3, &count) == SLABPOOL_OK && count == 0);
  CHECK(slabpool_request_describe(pool, request, &info) == SLABPOOL_OK);
  CHECK(info.state == SLABPOOL_REQUEST_RELEASED && info.nbytes == 0 && info.pending == 0);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_blocks_that_only_the_request_holds(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_request request;
  slabpool_request_options opening = request_options("r", NULL, 0);
  slabpool_allocate_options options;
  slabpool_block* block = NULL;
  CHECK(slabpool_request_open(pool, &opening, &request) == SLABPOOL_OK);
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.nbytes = 1000;
  options.no_view = 1;
  CHECK(slabpool_allocate(pool, &options, &block) == SLABPOOL_INVALID_ARGUMENT);
  options.request = request;
  options.timeout_ns = -1;
  CHECK(slabpool_allocate(pool, &options, &block) == SLABPOOL_INVALID_ARGUMENT);
  options.timeout_ns = 0;
  CHECK(block == NULL);
  CHECK(slabpool_allocate(pool, &options, &block) == SLABPOOL_OK);
  slabpool_view_hold(pool, block); /* the request's hold is enough to take a view */
  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(stats_of(pool).retained == slabpool_block_size(block));
  slabpool_view_drop(pool, block);
  CHECK(stats_of(pool).retained == 0);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

static void test_growing(void) {
  slabpool_pool* pool = new_pool(1 << 20, 0);
  slabpool_request request;
  slabpool_request_options opening = request_options("r", NULL, 0);
  slabpool_block* block = NULL;
  uint64_t usable = 0;
  CHECK(slabpool_request_open(pool, &opening, &request) == SLABPOOL_OK);
  CHECK(slabpool_growing_open(pool, request, (uint64_t)1 << 60, &block) == SLABPOOL_NO_ADDRESSES);
  CHECK(slabpool_growing_open(pool, request, 8 << 20, &block) == SLABPOOL_OK);
  CHECK(stats_of(pool).live == 0);
  CHECK(slabpool_growing_grow(pool, request, block, 100000, 0, &usable) == SLABPOOL_OK);
  CHECK(usable >= 100000 && usable == slabpool_block_size(block));
  memset(slabpool_block_data(block), 7, usable);
  CHECK(stats_of(pool).live == usable);
  CHECK(slabpool_growing_grow(pool, request, block, 2 << 20, 0, &usable) == SLABPOOL_TOO_LARGE);
  CHECK(slabpool_growing_grow(pool, request, block, 9 << 20, 0, &usable) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_growing_grow(pool, request, block, 1 << 20, 1000000, &usable) == SLABPOOL_OK);
  CHECK(slabpool_growing_grow(pool, request, NULL, 1, 0, &usable) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_growing_grow(pool, request, block, 1, 0, &usable) == SLABPOOL_REQUEST_CLOSED);
  CHECK(slabpool_growing_open(pool, request, 1, &block) == SLABPOOL_REQUEST_CLOSED);
  CHECK(stats_of(pool).retained == 1 << 20);
  slabpool_view_drop(pool, block);
  CHECK(stats_of(pool).retained == 0);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
}

int main(void) {
  test_growing();
  test_versions_and_words();
  test_blocks();
  test_requests();
  test_pending_and_doubt();
  test_blocks_that_only_the_request_holds();
  printf("%d checks\n", checks);
  return 0;
}
