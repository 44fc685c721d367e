/* A stream heap as the functions that array libraries ask for by name or address.
 *
 * torch's CUDAPluggableAllocator takes slabpool_stream_alloc and slabpool_stream_free: one heap for each device, put
 * in force by slabpool_stream_use. CuPy's CFunctionAllocator takes slabpool_cupy_malloc and slabpool_cupy_free with
 * a heap as their parameter. None of them throws, needs Python's lock, or starts CUDA before it is called. */
#ifndef SLABPOOL_CUDA_STREAM_HEAP_C_H
#define SLABPOOL_CUDA_STREAM_HEAP_C_H

#include <stddef.h>
#include <stdint.h>

#include "slabpool/base/export.hpp"

#ifdef __cplusplus
extern "C" {
#endif

/* Of up to 64 devices. A heap that was in force must live as long as memory of it is handed out: that is freed
 * there, whichever heap is in force by then. Null: none is, and allocating gives null. Returns the one before;
 * `ok` (may be null) gets 0 if the device's number is too large or the host has no memory. */
SLABPOOL_API void* slabpool_stream_use(int device, void* heap, int* ok);
/* Forgets a heap that is about to go: it is in force nowhere any more. */
SLABPOOL_API void slabpool_stream_retire(void* heap);

/* Waits for work that freed memory is behind before it answers null: torch's own cache does so too, and torch has let
 * go of Python's lock by then. */
SLABPOOL_API void* slabpool_stream_alloc(size_t size, int device, void* stream);
SLABPOOL_API void slabpool_stream_free(void* address, size_t size, int device, void* stream);
/* The block is used on this stream too: record_stream. */
SLABPOOL_API void slabpool_stream_record(void* address, void* stream);

/* On the stream that StreamHeap::set_stream() named for the thread, else the legacy default stream; freed in the
 * order of the stream it was allocated on. */
SLABPOOL_API void* slabpool_cupy_malloc(void* heap, size_t size, int device);
SLABPOOL_API void slabpool_cupy_free(void* heap, void* address, int device);

#ifdef __cplusplus
}
#endif

#endif /* SLABPOOL_CUDA_STREAM_HEAP_C_H */
