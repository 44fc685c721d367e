/* An engine in plain C: serves a request over two device threads through c_api.h and nothing else.
 *
 * Built twice: by ctest against the library of the tree, with sanitizers, and by test_c_consumer.py with
 * plain `cc` against the installed package. Prints "ok" and ends with 0 if all checks pass.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slabpool/c_api.h"

#define CHECK(fact)                                                            \
  do {                                                                         \
    if (!(fact)) {                                                             \
      fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #fact); \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

enum { CAPACITY = 64 << 20, TENSOR = 1 << 20, ROUNDS = 500 };

static slabpool_stats stats_of(slabpool_pool* pool) {
  slabpool_stats stats = {0};
  stats.size = sizeof stats;
  CHECK(slabpool_pool_stats(pool, &stats) == SLABPOOL_OK);
  CHECK(stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached);
  CHECK(stats.committed <= stats.capacity);
  return stats;
}

static slabpool_pool* make_pool(void) {
  slabpool_pool* pool = NULL;
  slabpool_pool_options options = {0};
  CHECK(slabpool_pool_create(&options, &pool) == SLABPOOL_INVALID_ARGUMENT); /* no size */
  options.size = sizeof options;
  CHECK(slabpool_pool_create(&options, &pool) == SLABPOOL_INVALID_ARGUMENT); /* no capacity */
  CHECK(slabpool_pool_create(NULL, &pool) == SLABPOOL_INVALID_ARGUMENT);
  CHECK(pool == NULL);
  options.capacity = CAPACITY;
  CHECK(slabpool_pool_create(&options, &pool) == SLABPOOL_OK);
  return pool;
}

static slabpool_request open_request(slabpool_pool* pool, const char* id, const uint32_t* devices,
                                     size_t count) {
  slabpool_request request = {0, 0};
  slabpool_request_options options = {0};
  options.size = sizeof options;
  options.id = id;
  options.devices = devices;
  options.device_count = count;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_OK);
  CHECK(request.generation != 0);
  return request;
}

static slabpool_status allocate(slabpool_pool* pool, slabpool_request request, uint64_t nbytes,
                                slabpool_block** block) {
  slabpool_allocate_options options = {0};
  options.size = sizeof options;
  options.nbytes = nbytes;
  options.request = request;
  options.zero = 1;
  return slabpool_allocate(pool, &options, block);
}

/* A device: takes its own view of the tensor, reads it, drops the view, and acknowledges. */
typedef struct device {
  slabpool_pool* pool;
  slabpool_request request;
  slabpool_block* block;
  uint32_t number;
  slabpool_ack_result result;
} device;

static void* run_device(void* argument) {
  device* self = argument;
  const unsigned char* data = slabpool_block_data(self->block);
  for (size_t i = 0; i < TENSOR; i += 4096) CHECK(data[i] == 0x5a);
  slabpool_view_drop(self->pool, self->block);
  CHECK(slabpool_ack(self->pool, self->request, self->number, &self->result) == SLABPOOL_OK);
  return NULL;
}

static void serve_over_two_devices(slabpool_pool* pool) {
  uint32_t devices[2];
  CHECK(slabpool_device(pool, "gpu0", &devices[0]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "gpu1", &devices[1]) == SLABPOOL_OK);
  for (int round = 0; round < ROUNDS; ++round) {
    const slabpool_request request = open_request(pool, "chat-42", devices, 2);
    slabpool_block* block = NULL;
    CHECK(allocate(pool, request, TENSOR, &block) == SLABPOOL_OK);
    CHECK(slabpool_block_size(block) >= TENSOR);
    unsigned char* data = slabpool_block_data(block);
    CHECK((uintptr_t)data % 64 == 0);
    CHECK(data[0] == 0 && data[TENSOR - 1] == 0);
    CHECK(slabpool_block_find(pool, data + TENSOR / 2) == block);
    memset(data, 0x5a, TENSOR);

    device workers[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; ++i) {
      slabpool_view_hold(pool, block);
      workers[i] = (device){pool, request, block, devices[i], -1};
      CHECK(pthread_create(&threads[i], NULL, run_device, &workers[i]) == 0);
    }
    slabpool_view_drop(pool, block);
    CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
    CHECK(slabpool_request_wait(pool, request, SLABPOOL_FOREVER) == SLABPOOL_OK);
    for (int i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    /* At most one ack released it, and none if the host was the last holder. */
    CHECK(workers[0].result != SLABPOOL_ACK_RELEASED || workers[1].result != SLABPOOL_ACK_RELEASED);
    CHECK(stats_of(pool).live == 0);
  }
  CHECK(stats_of(pool).acks == 2 * ROUNDS);
  /* The same memory served every round. */
  CHECK(stats_of(pool).peak_live < 2 * TENSOR);
}

static void answers_of_ack(slabpool_pool* pool) {
  uint32_t devices[2], stranger;
  slabpool_ack_result result = -1;
  CHECK(slabpool_device(pool, "gpu0", &devices[0]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "gpu1", &devices[1]) == SLABPOOL_OK);
  CHECK(slabpool_device(pool, "never-named", &stranger) == SLABPOOL_OK);
  const slabpool_request request = open_request(pool, "acks", devices, 2);
  CHECK(slabpool_ack(pool, request, stranger, &result) == SLABPOOL_UNKNOWN_DEVICE && result == -1);
  CHECK(slabpool_ack(pool, request, 1u << 31, &result) == SLABPOOL_UNKNOWN_DEVICE && result == -1);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_PENDING);
  CHECK(slabpool_ack(pool, request, devices[0], &result) == SLABPOOL_OK &&
        result == SLABPOOL_ACK_DUPLICATE);

  const slabpool_request again = open_request(pool, "acks", devices, 2);
  CHECK(again.generation != request.generation);
  CHECK(slabpool_ack_id(pool, "acks", devices[1], 0, &result) == SLABPOOL_AMBIGUOUS);
  CHECK(slabpool_ack_id(pool, "acks", devices[1], request.generation, &result) == SLABPOOL_OK);
  CHECK(result == SLABPOOL_ACK_PENDING);
  CHECK(slabpool_request_wait(pool, request, 0) == SLABPOOL_TIMED_OUT);
  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_request_wait(pool, request, 0) == SLABPOOL_OK);
  CHECK(slabpool_ack(pool, request, devices[1], &result) == SLABPOOL_OK && result == SLABPOOL_ACK_LATE);

  uint64_t lost = 0;
  CHECK(slabpool_request_close(pool, again, 1) == SLABPOOL_OK);
  CHECK(slabpool_device_lost(pool, devices[0], &lost) == SLABPOOL_OK && lost == 1);
  CHECK(slabpool_device_lost(pool, devices[1], &lost) == SLABPOOL_OK && lost == 1);
  CHECK(slabpool_request_wait(pool, again, 0) == SLABPOOL_OK);
}

static void running_out_changes_nothing(slabpool_pool* pool) {
  const slabpool_request none = {0, 0};
  slabpool_block* block = NULL;
  slabpool_block* whole = NULL;
  const slabpool_stats before = stats_of(pool);
  CHECK(allocate(pool, none, (uint64_t)CAPACITY + 1, &block) == SLABPOOL_TOO_LARGE);
  CHECK(allocate(pool, none, UINT64_MAX, &block) == SLABPOOL_TOO_LARGE);
  CHECK(block == NULL && stats_of(pool).live == before.live);
  CHECK(allocate(pool, none, CAPACITY, &whole) == SLABPOOL_OK);
  CHECK(allocate(pool, none, TENSOR, &block) == SLABPOOL_EXHAUSTED && block == NULL);
  CHECK(slabpool_pool_close(pool, 0) == SLABPOOL_POOL_BUSY);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_POOL_BUSY);
  slabpool_view_drop(pool, whole);
  CHECK(stats_of(pool).live == before.live);

  slabpool_request request = {0, 0};
  slabpool_request_options options = {0};
  options.size = sizeof options;
  options.id = "bounded";
  options.quota = 2 * TENSOR;
  options.reserve = (uint64_t)CAPACITY + 1;
  CHECK(slabpool_request_open(pool, &options, &request) != SLABPOOL_OK && request.generation == 0);
  options.reserve = TENSOR;
  CHECK(slabpool_request_open(pool, &options, &request) == SLABPOOL_OK);
  CHECK(allocate(pool, request, 3 * TENSOR, &block) == SLABPOOL_QUOTA_EXCEEDED && block == NULL);
  CHECK(slabpool_request_close(pool, request, 0) == SLABPOOL_OK);
  CHECK(allocate(pool, request, TENSOR, &block) == SLABPOOL_REQUEST_CLOSED && block == NULL);
}

/* A caller built with an older, shorter struct: fields that it does not have are not written. */
static void older_callers(slabpool_pool* pool) {
  slabpool_stats stats;
  memset(&stats, 0x77, sizeof stats);
  stats.size = offsetof(slabpool_stats, acks);
  CHECK(slabpool_pool_stats(pool, &stats) == SLABPOOL_OK);
  CHECK(stats.capacity == CAPACITY && stats.size == offsetof(slabpool_stats, acks));
  CHECK(stats.acks == 0x7777777777777777u);
}

int main(void) {
  CHECK(slabpool_c_api_version() == SLABPOOL_C_API_VERSION);
  CHECK(strcmp(slabpool_status_string(SLABPOOL_OK), "ok") == 0);
  CHECK(slabpool_status_string(12345) != NULL);
  slabpool_pool* pool = make_pool();
  serve_over_two_devices(pool);
  answers_of_ack(pool);
  running_out_changes_nothing(pool);
  older_callers(pool);
  CHECK(slabpool_pool_trim(pool) > 0 && stats_of(pool).committed == 0);
  CHECK(slabpool_pool_close(pool, 0) == SLABPOOL_OK);
  slabpool_block* block = NULL;
  const slabpool_request none = {0, 0};
  CHECK(allocate(pool, none, 1, &block) == SLABPOOL_POOL_CLOSED);
  CHECK(slabpool_pool_destroy(pool) == SLABPOOL_OK);
  puts("ok");
  return 0;
}
