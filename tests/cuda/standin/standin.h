/* Control of the stand-in CUDA driver: what a test tells it, and what it asks it.
 *
 * The stand-in is libslabpool_standin_cuda.so: the functions of the driver that slabpool calls, on host memory,
 * for tests on machines without a GPU. It is strict where a driver is lenient: whatever a program must not do
 * is written down as a complaint. Every name here is in that library too; call them from any thread. Texts
 * that are returned stay valid until the same thread asks for the next.
 *
 * Read from the environment when the library is loaded:
 *   SLABPOOL_STANDIN_DEVICES  how many devices there are (2)
 *   SLABPOOL_STANDIN_MEMORY   bytes of each (1 GiB)
 *   SLABPOOL_STANDIN_VERSION  of the driver (12040)
 *   SLABPOOL_STANDIN_HIDE     functions that it has not, separated by commas
 */
#ifndef SLABPOOL_TESTS_STANDIN_H
#define SLABPOOL_TESTS_STANDIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STANDIN_API __attribute__((visibility("default")))

/* Frees everything that was made through the driver (streams first: what is queued there is thrown away), and
 * forgets faults, counts, complaints and what was set. Contexts stay: programs keep them for good. */
STANDIN_API void standin_reset(void);

/* ---- devices */
STANDIN_API void standin_set_memory(int device, uint64_t bytes);
/* Physical memory of the device in use. Managed memory is not counted: it has no fixed place. */
STANDIN_API uint64_t standin_used(int device);
#define STANDIN_UNKNOWN_ATTRIBUTE (-2147483647 - 1) /* the driver is too old to know it */
STANDIN_API void standin_set_attribute(int device, int attribute, int value);
/* Everything on this device answers `result` from now on; 0: it works again. */
STANDIN_API void standin_lose_device(int device, int result);

/* ---- faults and counts */
/* Of the calls of `name` from now on, the `nth` (1 is the next) and those after it, `times` in all (-1: all),
 * answer `result` and do nothing. "*" is every function but those that name errors and
 * cuCtxPopCurrent. Faults add up. */
STANDIN_API void standin_fail(const char* name, int nth, int result, int times);
STANDIN_API void standin_clear_faults(void);
STANDIN_API uint64_t standin_faults_left(void); /* that have not come, or not as often as they may */
STANDIN_API uint64_t standin_calls(const char* name); /* since the last reset; "*" as above */
STANDIN_API uint64_t
standin_calls_after_fork(void); /* by a child, of anything: there is no driver there */

/* ---- what it noticed */
STANDIN_API const char* standin_complaints(void); /* a line each, "" for none */
STANDIN_API void standin_clear_complaints(void);
STANDIN_API const char* standin_leaks(void);      /* what is there now, a line each */
STANDIN_API uint64_t standin_context_depth(void); /* contexts that this thread has pushed */

/* ---- streams: their work is done later, by a thread each, unless a test holds it back. `device` says whose default
 * stream 0 and 1 are; of other streams it is not looked at. */
STANDIN_API void standin_hold(int device, void* stream); /* nothing that is queued begins any more */
STANDIN_API void standin_release(int device, void* stream);
/* The same for every stream there is or will be; letting go also those that were held by themselves, or destroyed. */
STANDIN_API void standin_hold_all(void);
STANDIN_API void standin_release_all(void);
STANDIN_API void standin_step(int device, void* stream,
                              uint64_t works);                 /* of a held one, so many may be done */
STANDIN_API uint64_t standin_queued(int device, void* stream); /* works not done yet */
STANDIN_API void standin_settle(void); /* returns once nothing that may be done is left to do */
/* Whether the stream is being captured into a graph, globally: other threads must not ask for events unless their
 * capture mode is relaxed. */
STANDIN_API void standin_capture(int device, void* stream, int on);

/* ---- device memory, past the queues. 0 if the bytes are not all there. */
STANDIN_API int standin_peek(uint64_t address, void* to, uint64_t bytes);
STANDIN_API int standin_poke(uint64_t address, const void* from, uint64_t bytes);

#ifdef __cplusplus
}
#endif

#endif /* SLABPOOL_TESTS_STANDIN_H */
