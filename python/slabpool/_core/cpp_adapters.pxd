# slabpool/adapters/*.hpp: a view's hold on a block, a pool as malloc and free, a pool in stream order.

from libc.stdint cimport uint8_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport unique_ptr

from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_cuda cimport Stream
from slabpool._core.cpp_pool_declared cimport Pool
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_status cimport Error


cdef extern from "slabpool/adapters/raw_heap.hpp" namespace "slabpool" nogil:
    const uint8_t kRawTag

    cdef cppclass RawHeap:
        RawHeap(Pool& pool)
        void* allocate(size_t nbytes)
        void* allocate_zeroed(size_t count, size_t size)
        void* resize(void* address, size_t nbytes)
        void release(void* address)
        void turn_off()
        bint on()


cdef extern from "slabpool/adapters/stream_heap.hpp" namespace "slabpool::cuda" nogil:
    cdef cppclass Figures "slabpool::cuda::StreamHeap::Figures":
        uint64_t live_blocks
        uint64_t live_bytes
        uint64_t parked_blocks
        uint64_t parked_bytes
        uint64_t waiting_blocks
        uint64_t waiting_bytes
        uint64_t allocations
        uint64_t reuses
        uint64_t failures
        uint64_t wrong_frees

    cdef cppclass CppStreamHeap "slabpool::cuda::StreamHeap":
        void* allocate(size_t nbytes, Stream stream, bool waits)
        void wait()
        bool release(void* address, Stream stream)
        bool release(void* address)
        bool record(const void* address, Stream stream)
        void forget(Stream stream)
        uint64_t trim()
        void set_request(Handle request)
        void end_request(Handle request)
        Figures figures()
        bool lost()
        int device()

    unique_ptr[CppStreamHeap] create_heap "slabpool::cuda::StreamHeap::create"(Pool& pool, int device,
                                                                               Error& error) except +
    void set_heap_stream "slabpool::cuda::StreamHeap::set_stream"(Stream stream)


cdef extern from "slabpool/adapters/stream_heap_c.h" nogil:
    void* slabpool_stream_use(int device, void* heap, int* ok)
    void slabpool_stream_retire(void* heap)
    void* slabpool_cupy_malloc(void* heap, size_t size, int device)
    void slabpool_cupy_free(void* heap, void* address, int device)
