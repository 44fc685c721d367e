# cython: language_level=3, binding=False
"""A pool's memory in the order of streams, for the drop-ins of array libraries.

What must stay true: a heap keeps its pool; whoever has its address keeps the heap. Addresses are plain integers:
those who give them to libraries know when they come back.
"""

import weakref

from libc.stdint cimport uint64_t, uintptr_t
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move

from slabpool._core.array cimport Core, check_here
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_copies cimport Stream
from slabpool._core.cpp_stream_heap cimport (
    CppStreamHeap, Figures, create_heap, set_heap_stream, slabpool_cupy_free, slabpool_cupy_malloc,
    slabpool_stream_retire, slabpool_stream_use,
)
from slabpool._core.pool cimport Pool
from slabpool._core.request cimport Request
from slabpool._core.stream cimport stream_of

from slabpool.errors import DeviceUnavailableError, InvalidArgumentError

#: Addresses of the functions that CuPy's CFunctionAllocator calls.
CUPY_MALLOC = <uintptr_t>&slabpool_cupy_malloc
CUPY_FREE = <uintptr_t>&slabpool_cupy_free


cdef class StreamHeap:
    """Allocates from a pool in the order of streams; see csrc/slabpool/adapters/stream_heap.hpp."""

    cdef Core core
    cdef unique_ptr[CppStreamHeap] heap
    cdef object __weakref__

    def __cinit__(self, Pool pool not None):
        cdef string why
        check_here(pool.core)
        self.core = pool.core
        self.heap = move(create_heap(self.core.pool[0], -1, why))
        if self.heap.get() is NULL:
            raise DeviceUnavailableError(why.decode("utf-8", "replace"))
        # The pool has what is kept for streams given back when it runs short.
        known = [] if self.core.heaps is None else [old for old in self.core.heaps if old() is not None]
        self.core.heaps = [*known, weakref.ref(self)]

    def __dealloc__(self):
        if self.heap.get() is not NULL:
            slabpool_stream_retire(self.heap.get())
            with nogil:
                self.heap.reset()  # may wait for the GPU

    @property
    def address(self):
        """Of the heap itself, as the C functions take it."""
        return <uintptr_t>self.heap.get()

    @property
    def device(self):
        return self.heap.get().device()

    def allocate(self, size_t nbytes, stream=None, *, bint wait=False):
        """An address on a stream; 0 where there is no room. With `wait` only once freed memory is back that
        queued work still held."""
        cdef Stream handle = stream_of(stream)
        cdef void* address
        with nogil:
            address = self.heap.get().allocate(nbytes, handle, wait)
        return <uintptr_t>address

    def release(self, uintptr_t address, stream=None):
        """Freed in the order of a stream: that of the allocation where none is given. False: it was not handed out."""
        cdef Stream handle
        cdef bint done
        if stream is None:
            with nogil:
                done = self.heap.get().release(<void*>address)
        else:
            handle = stream_of(stream)
            with nogil:
                done = self.heap.get().release(<void*>address, handle)
        return done

    def record(self, uintptr_t address, stream):
        """The memory is used on this stream too."""
        cdef Stream handle = stream_of(stream)
        return self.heap.get().record(<void*>address, handle)

    def wait(self):
        """Until freed memory is back that queued work holds now."""
        with nogil:
            self.heap.get().wait()

    def trim(self):
        """What is kept for streams goes back to the pool; how many bytes have."""
        cdef uint64_t went
        with nogil:
            went = self.heap.get().trim()
        return went

    def set_request(self, Request request):
        """What this thread allocates is the request's from here on; nobody's if that is another pool's, or None."""
        cdef Handle handle
        if request is not None and request.core is self.core:
            handle = request.handle
        self.heap.get().set_request(handle)

    def end_request(self, Request request not None):
        """The last block that `set_request` was called for has ended."""
        if request.core is self.core:
            with nogil:
                self.heap.get().end_request(request.handle)

    def figures(self):
        """Blocks and bytes: handed out, kept for a stream, waiting; and counts."""
        cdef Figures found
        with nogil:
            found = self.heap.get().figures()
        return found.live_blocks, found.live_bytes, found.parked_blocks, found.parked_bytes, found.waiting_blocks, \
            found.waiting_bytes, found.allocations, found.reuses, found.failures


def set_stream(uintptr_t stream):
    """The stream on which CuPy allocates on this thread."""
    set_heap_stream(<Stream>stream)


def put_in_force(StreamHeap heap, int device):
    """The heap, or none, serves what torch allocates on the device."""
    cdef int ok = 0
    slabpool_stream_use(device, NULL if heap is None else heap.heap.get(), &ok)
    if not ok:
        raise InvalidArgumentError(f"device {device} cannot have a pool under torch: numbers go up to 63")
