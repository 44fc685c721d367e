/* Shared by the C tests: a check that ends the program with 1 if it fails, and short functions that make
 * things. */
#ifndef SLABPOOL_TESTS_CHECK_H
#define SLABPOOL_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slabpool/c_api.h"

static int checks = 0;

#define CHECK(condition)                                              \
  do {                                                                \
    ++checks;                                                         \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                        \
    }                                                                 \
  } while (0)

static inline slabpool_pool* new_pool(uint64_t capacity, int32_t debug) {
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

static inline slabpool_stats stats_of(slabpool_pool* pool) {
  slabpool_stats stats;
  stats.size = sizeof stats;
  CHECK(slabpool_pool_stats(pool, &stats) == SLABPOOL_OK);
  CHECK(stats.size == sizeof stats);
  CHECK(stats.committed == stats.live + stats.retained + stats.in_doubt + stats.cached);
  CHECK(stats.committed <= stats.capacity);
  return stats;
}

static inline slabpool_status allocate(slabpool_pool* pool, uint64_t nbytes, slabpool_request request,
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

static inline slabpool_request_options request_options(const char* id, const uint32_t* devices,
                                                       size_t count) {
  slabpool_request_options options;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.id = id;
  options.devices = devices;
  options.device_count = count;
  options.file = __FILE__;
  options.line = __LINE__;
  return options;
}

#endif /* SLABPOOL_TESTS_CHECK_H */
