/* A stream heap as the functions that array libraries ask for by name or address.
 *
 * torch's CUDAPluggableAllocator takes slabpool_stream_alloc and slabpool_stream_free: one heap for each device, put
 * in force by slabpool_stream_use. CuPy's CFunctionAllocator takes slabpool_cupy_malloc and slabpool_cupy_free with
 * a heap as their parameter. They throw nothing, do not need Python's lock, and start CUDA only when they are called. */
#ifndef SLABPOOL_CUDA_STREAM_HEAP_C_H
#define SLABPOOL_CUDA_STREAM_HEAP_C_H

#include <stddef.h>
#include <stdint.h>

#include "slabpool/base/export.hpp"

#ifdef __cplusplus
extern "C" {
#endif

/* Puts a heap in force for a device, of up to 64. A heap must live as long as memory of it is handed out, because that
 * memory is freed there, whichever heap is in force by then. A null heap: allocating gives null. Returns the heap that
 * was in force; `ok` (may be null) gets 0 if the device's number is too large or the host has no memory. */
SLABPOOL_API void* slabpool_stream_use(int device, void* heap, int* ok);
/* Before a heap is destroyed: it is no longer in force for any device. */
SLABPOOL_API void slabpool_stream_retire(void* heap);

/* Before it answers null it waits for the work that freed memory is behind. torch's own cache does so too, and torch has
 * released Python's lock by then. */
SLABPOOL_API void* slabpool_stream_alloc(size_t size, int device, void* stream);
SLABPOOL_API void slabpool_stream_free(void* address, size_t size, int device, void* stream);
/* The block is used on this stream too: record_stream. */
SLABPOOL_API void slabpool_stream_record(void* address, void* stream);

/* Allocates on the stream that StreamHeap::set_stream() named for the thread, otherwise on the legacy default stream, and
 * frees in the order of that stream. */
SLABPOOL_API void* slabpool_cupy_malloc(void* heap, size_t size, int device);
SLABPOOL_API void slabpool_cupy_free(void* heap, void* address, int device);

#ifdef __cplusplus
}
#endif

#endif /* SLABPOOL_CUDA_STREAM_HEAP_C_H */
