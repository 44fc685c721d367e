# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""A pool as the allocator of another library: of numpy (NEP 49), and of CUDA libraries in the order of streams.

Invariants: an array of numpy keeps the capsule it was made under, and the capsule keeps the `Core`; a capsule whose
block has ended is never put in force again. A stream heap keeps its pool. Addresses are plain integers, and the caller
that gives one to a library keeps the heap until the library has freed it. Which of several capsules is in force, and in
which threads, is decided in `slabpool.libraries.numpy_handler`.
"""

cimport numpy as cnp
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport strncpy
from libcpp.memory cimport unique_ptr
from libcpp.utility cimport move

from slabpool._core.core cimport Core, check_here, failed, text_of
from slabpool._core.cpp_adapters cimport (
    CppStreamHeap, Figures, RawHeap, create_heap, kRawTag, set_heap_stream, slabpool_cupy_free, slabpool_cupy_malloc,
    slabpool_stream_retire, slabpool_stream_use,
)
from slabpool._core.cpp_cuda cimport Stream
from slabpool._core.cpp_pool cimport Tagged
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cpp_status cimport Error, Status
from slabpool._core.cuda cimport stream_of
from slabpool._core.pool cimport Pool
from slabpool._core.request cimport Request

import weakref

from slabpool._core import hooks
from slabpool.errors import DeviceUnavailableError, InvalidArgumentError

cnp.import_array()


# ---- numpy's memory handler

cdef extern from "numpy/arrayobject.h":
    ctypedef struct Allocator "PyDataMemAllocator":
        void* ctx
        void* (*malloc)(void* ctx, size_t size)
        void* (*calloc)(void* ctx, size_t count, size_t size)
        void* (*realloc)(void* ctx, void* address, size_t size)
        void (*free)(void* ctx, void* address, size_t size)

    ctypedef struct Handler "PyDataMem_Handler":
        char name[127]
        uint8_t version
        Allocator allocator

    # New references; the old handler, and the one in force.
    object PyDataMem_SetHandler(object handler)
    object PyDataMem_GetHandler()


# What a capsule points to; numpy sees the handler at its start.
cdef struct Scope:
    Handler handler
    RawHeap* heap
    PyObject* core
    PyObject* before    # the capsule that was in force where this one was entered


# numpy calls these with the GIL and without; none of them needs it.
cdef void* _malloc(void* ctx, size_t size) noexcept nogil:
    return (<RawHeap*>ctx).allocate(size)


cdef void* _calloc(void* ctx, size_t count, size_t size) noexcept nogil:
    return (<RawHeap*>ctx).allocate_zeroed(count, size)


cdef void* _realloc(void* ctx, void* address, size_t size) noexcept nogil:
    return (<RawHeap*>ctx).resize(address, size)


cdef void _free(void* ctx, void* address, size_t size) noexcept nogil:
    # numpy does not always know the size, so it is ignored.
    (<RawHeap*>ctx).release(address)


cdef void _end(object capsule) noexcept:
    cdef Scope* scope = <Scope*>PyCapsule_GetPointer(capsule, "mem_handler")
    cdef PyObject* core = scope.core
    cdef PyObject* before = scope.before
    del scope.heap
    PyMem_RawFree(scope)
    Py_XDECREF(before)
    Py_XDECREF(core)


cdef Scope* _scope(object capsule) noexcept:
    """The Scope of a capsule made here; null for any other."""
    if not PyCapsule_IsValid(capsule, "mem_handler"):
        return NULL
    cdef Scope* scope = <Scope*>PyCapsule_GetPointer(capsule, "mem_handler")
    return scope if scope.handler.allocator.malloc == _malloc else NULL


cdef object _in_force(object capsule):
    """The capsule if its block has not ended; otherwise the innermost one before it whose block has not."""
    cdef Scope* scope = _scope(capsule)
    while scope is not NULL and not scope.heap.on():
        capsule = <object>scope.before
        scope = _scope(capsule)
    return capsule


def enter(Pool pool not None):
    """Makes arrays of this context come from the pool. Returns the capsule, for `leave` and `adopt`.

    Raises if the pool is closed, or was inherited from the parent process.
    """
    cdef Core core = pool.core
    cdef Scope* scope
    cdef Scope* outer
    cdef PyObject* cut
    cdef bytes name = b"slabpool " + pool.name.encode("ascii", "backslashreplace")
    check_here(core)
    if core.maker is not None:
        hooks.messages.host_only("numpy_handler")
    if core.pool.closed():
        failed(core, None, Status.pool_closed, 0, None)
    scope = <Scope*>PyMem_RawCalloc(1, sizeof(Scope))
    if scope is NULL:
        raise MemoryError("slabpool: no room for a numpy handler")
    try:
        scope.heap = new RawHeap(core.pool[0])
        capsule = PyCapsule_New(scope, "mem_handler", _end)
    except BaseException:
        del scope.heap
        PyMem_RawFree(scope)
        raise
    # From here on _end cleans up.
    Py_INCREF(core)
    scope.core = <PyObject*>core
    strncpy(scope.handler.name, name, sizeof(scope.handler.name) - 1)
    scope.handler.version = 1
    scope.handler.allocator.ctx = scope.heap
    scope.handler.allocator.malloc = _malloc
    scope.handler.allocator.calloc = _calloc
    scope.handler.allocator.realloc = _realloc
    scope.handler.allocator.free = _free
    before = _in_force(PyDataMem_GetHandler())
    outer = _scope(before)
    if outer is not NULL:
        # Skip blocks that ended before an inner one did; otherwise the chain would grow with each of them.
        older = _in_force(<object>outer.before)
        Py_INCREF(older)
        cut = outer.before
        outer.before = <PyObject*>older
        Py_XDECREF(cut)
    Py_INCREF(before)
    scope.before = <PyObject*>before
    PyDataMem_SetHandler(capsule)
    return capsule


def leave(object capsule not None):
    """Ends what `enter` began, in every context that inherited it; restores the previous handler in this one."""
    cdef Scope* scope = _scope(capsule)
    scope.heap.turn_off()
    # Another handler is in force if blocks overlap (generators), or if this one ends in another context than it began
    # in. That handler stays.
    if PyDataMem_GetHandler() is capsule:
        PyDataMem_SetHandler(_in_force(capsule))


def adopt(object capsule not None):
    """Puts a capsule in force in this context, which is a new thread's."""
    PyDataMem_SetHandler(capsule)


def usage(Pool pool not None):
    """(blocks, bytes) of this pool that numpy holds."""
    cdef Tagged tagged
    check_here(pool.core)
    with nogil:
        tagged = pool.core.pool.tagged(kRawTag)
    return tagged.blocks, tagged.bytes


# ---- memory in the order of streams

#: Addresses of the functions that CuPy's CFunctionAllocator calls.
CUPY_MALLOC = <uintptr_t>&slabpool_cupy_malloc
CUPY_FREE = <uintptr_t>&slabpool_cupy_free


cdef class StreamHeap:
    """Allocates from a pool in the order of streams; see csrc/slabpool/adapters/stream_heap.hpp."""

    cdef Core core
    cdef unique_ptr[CppStreamHeap] heap
    cdef object __weakref__

    def __cinit__(self, Pool pool not None):
        cdef Error error
        check_here(pool.core)
        self.core = pool.core
        self.heap = move(create_heap(self.core.pool[0], -1, error))
        if self.heap.get() is NULL:
            raise DeviceUnavailableError(text_of(error.text))
        # When the pool runs out it asks for the memory that is kept for streams.
        known = [] if self.core.heaps is None else [old for old in self.core.heaps if old() is not None]
        self.core.heaps = [*known, weakref.ref(self)]
        self.core.pool.set_gives_way(True)  # callers may wait already

    def __dealloc__(self):
        if self.heap.get() is not NULL:
            slabpool_stream_retire(self.heap.get())
            with nogil:
                self.heap.reset()  # may wait for the GPU

    @property
    def address(self):
        """The heap's own address, as the C functions take it."""
        return <uintptr_t>self.heap.get()

    @property
    def device(self):
        return self.heap.get().device()

    def allocate(self, size_t nbytes, stream=None, *, bint wait=False):
        """An address, usable on a stream; 0 if there is no room. With `wait` it first waits until freed memory that
        queued work still uses is returned."""
        cdef Stream handle = stream_of(stream)
        cdef void* address
        with nogil:
            address = self.heap.get().allocate(nbytes, handle, wait)
        return <uintptr_t>address

    def release(self, uintptr_t address, stream=None):
        """Frees in the order of a stream, by default that of the allocation. False if the address was not allocated."""
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
        """Note that the memory is used on this stream too."""
        cdef Stream handle = stream_of(stream)
        return self.heap.get().record(<void*>address, handle)

    def wait(self):
        """Waits until freed memory that queued work uses now is returned."""
        with nogil:
            self.heap.get().wait()

    def trim(self):
        """Returns to the pool the memory that is kept for streams. Returns how many bytes."""
        cdef uint64_t freed
        with nogil:
            freed = self.heap.get().trim()
        return freed

    def set_request(self, Request request):
        """What this thread allocates from now on belongs to the request (to none for None, or one of another pool)."""
        cdef Handle handle
        if request is not None and request.core is self.core:
            handle = request.handle
        self.heap.get().set_request(handle)

    def end_request(self, Request request not None):
        """No activation of the request is left."""
        if request.core is self.core:
            with nogil:
                self.heap.get().end_request(request.handle)

    def figures(self):
        """Blocks and bytes: allocated, kept for a stream, waiting for one; and counts."""
        cdef Figures found
        with nogil:
            found = self.heap.get().figures()
        return found.live_blocks, found.live_bytes, found.parked_blocks, found.parked_bytes, found.waiting_blocks, \
            found.waiting_bytes, found.allocations, found.reuses, found.failures


def set_stream(uintptr_t stream):
    """The stream on which CuPy allocates on this thread."""
    set_heap_stream(<Stream>stream)


def put_in_force(StreamHeap heap, int device):
    """Lets the heap (or none) serve what torch allocates on the device."""
    cdef int ok = 0
    slabpool_stream_use(device, NULL if heap is None else heap.heap.get(), &ok)
    if not ok:
        raise InvalidArgumentError(f"device {device} cannot have a pool under torch: numbers go up to 63")
