/* Controls of the stand-in CUDA driver, for tests.
 *
 * The stand-in is libslabpool_standin_cuda.so: the functions of the driver that slabpool calls, implemented on host
 * memory, for tests on machines without a GPU. It is stricter than a driver: it records a complaint about everything
 * that a program must not do. The library exports every name here; any thread may call them. A returned text stays
 * valid until the same thread calls such a function again.
 *
 * Environment variables, read when the library is loaded:
 *   SLABPOOL_STANDIN_DEVICES  number of devices (2)
 *   SLABPOOL_STANDIN_MEMORY   bytes of memory of each (1 GiB)
 *   SLABPOOL_STANDIN_VERSION  version of the driver (12040)
 *   SLABPOOL_STANDIN_HIDE     functions that the driver lacks, separated by commas
 */
#ifndef SLABPOOL_TESTS_STANDIN_H
#define SLABPOOL_TESTS_STANDIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STANDIN_API __attribute__((visibility("default")))

/* Frees everything that was made through the driver (streams first; their queued work is discarded), and clears
 * faults, counts, complaints and settings. Contexts stay, because programs keep them until they end. */
STANDIN_API void standin_reset(void);

/* ---- devices */
STANDIN_API void standin_set_memory(int device, uint64_t bytes);
/* Physical memory of the device in use. Managed memory is not counted, because it migrates. */
STANDIN_API uint64_t standin_used(int device);
#define STANDIN_UNKNOWN_ATTRIBUTE (-2147483647 - 1) /* the driver is too old to know it */
STANDIN_API void standin_set_attribute(int device, int attribute, int value);
/* Every call on this device returns `result` from now on; with 0 the device works again. */
STANDIN_API void standin_lose_device(int device, int result);

/* ---- faults and counts */
/* From the `nth` call of `name` on (1 is the next), `times` calls (-1: all) do nothing and return `result`. "*" means
 * every function except those that describe errors and cuCtxPopCurrent. Several faults can be set. */
STANDIN_API void standin_fail(const char* name, int nth, int result, int times);
STANDIN_API void standin_clear_faults(void);
STANDIN_API uint64_t standin_faults_left(void); /* faults that have not occurred as often as they may */
STANDIN_API uint64_t standin_calls(const char* name); /* since the last reset; "*" as above */
STANDIN_API uint64_t
standin_calls_after_fork(void); /* calls of any function in a fork's child, which has no driver */

/* ---- complaints and leaks */
STANDIN_API const char* standin_complaints(void); /* one line for each, "" for none */
STANDIN_API void standin_clear_complaints(void);
STANDIN_API const char* standin_leaks(void);      /* objects that exist now, one line for each */
STANDIN_API uint64_t standin_context_depth(void); /* number of contexts this thread has pushed */

/* ---- streams. A thread for each stream does its work, unless a test holds the stream. `device` tells whose default
 * stream 0 and 1 mean; it is ignored for other streams. */
STANDIN_API void standin_hold(int device, void* stream); /* no further work begins */
STANDIN_API void standin_release(int device, void* stream);
/* The same for all present and future streams. standin_release_all() also releases streams that were held one by one,
 * and destroyed ones. */
STANDIN_API void standin_hold_all(void);
STANDIN_API void standin_release_all(void);
STANDIN_API void standin_step(int device, void* stream,
                              uint64_t works); /* lets a held stream do that many works */
STANDIN_API uint64_t standin_queued(int device, void* stream); /* works that are not done yet */
STANDIN_API void standin_settle(void); /* returns once all work is done that is not held */
/* Whether the stream is being captured into a graph, in global mode: other threads must not query events unless their
 * capture mode is relaxed. */
STANDIN_API void standin_capture(int device, void* stream, int on);

/* ---- device memory, without the queues. 0 if some of the bytes are not mapped. */
STANDIN_API int standin_peek(uint64_t address, void* to, uint64_t bytes);
STANDIN_API int standin_poke(uint64_t address, const void* from, uint64_t bytes);

#ifdef __cplusplus
}
#endif

#endif /* SLABPOOL_TESTS_STANDIN_H */
