# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""A pool as numpy's memory handler (NEP 49): the capsule, and putting it in force in a context.

What must stay true: an array keeps the capsule it was made under, the capsule keeps the `Core`, so memory
outlives neither; and a capsule whose block has ended is never put back in force. Which of several is in
force, and in which threads, is decided in `slabpool.libraries.numpy_handler`.
"""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport uint8_t
from libc.string cimport strncpy

cimport numpy as cnp

from slabpool._core.array cimport Core, check_here
from slabpool._core.cpp_pool cimport Tagged
from slabpool._core.cpp_raw_heap cimport RawHeap, kRawTag
from slabpool._core.cpp_status cimport Status
from slabpool._core.pool cimport Pool

from slabpool.messages import pool as _report

cnp.import_array()

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
    # numpy does not always know the size, so it is not believed.
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
    """What is behind a capsule of ours, else null."""
    if not PyCapsule_IsValid(capsule, "mem_handler"):
        return NULL
    cdef Scope* scope = <Scope*>PyCapsule_GetPointer(capsule, "mem_handler")
    return scope if scope.handler.allocator.malloc == _malloc else NULL


cdef object _in_force(object capsule):
    """The capsule, or what was in force before it, as far back as blocks have ended."""
    cdef Scope* scope = _scope(capsule)
    while scope is not NULL and not scope.heap.on():
        capsule = <object>scope.before
        scope = _scope(capsule)
    return capsule


def enter(Pool pool not None):
    """Makes arrays of this context come from the pool; the capsule, for `leave` and `adopt`.

    Raises if the pool is closed, or is a parent process's.
    """
    cdef Core core = pool.core
    cdef Scope* scope
    cdef Scope* outer
    cdef PyObject* cut
    cdef bytes name = b"slabpool " + pool.name.encode("ascii", "backslashreplace")
    check_here(core)
    if core.maker is not None:
        _report.host_only("numpy_handler")
    if core.pool.closed():
        core.report(None, <int>Status.pool_closed, 0, None)
    scope = <Scope*>PyMem_RawCalloc(1, sizeof(Scope))
    if scope is NULL:
        raise MemoryError("slabpool: no room for a numpy handler")
    try:
        scope.heap = new RawHeap(core.pool[0])
        capsule = PyCapsule_New(scope, "mem_handler", _end)
    except:
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
        # Blocks that ended in another order than they began are cut out, or a chain of them would grow.
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
    """Ends what `enter` began, in every context that has it; puts back what was in force before in this one."""
    cdef Scope* scope = _scope(capsule)
    scope.heap.turn_off()
    # Another one is in force where blocks overlap (generators), or end in another context than they began in:
    # that one is not ours to end.
    if PyDataMem_GetHandler() is capsule:
        PyDataMem_SetHandler(_in_force(capsule))


def adopt(object capsule not None):
    """Puts a capsule in force in this context, a new thread's."""
    PyDataMem_SetHandler(capsule)


def usage(Pool pool not None):
    """How many blocks numpy has of this pool, and their bytes."""
    cdef Tagged tagged
    check_here(pool.core)
    with nogil:
        tagged = pool.core.pool.tagged(kRawTag)
    return tagged.blocks, tagged.bytes
