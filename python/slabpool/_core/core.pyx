# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""The C++ pool as the Cython modules hold it: its life, its names, and waiting for room in it.

Nothing here decides which memory gives way when there is no room: `find_room` asks the hook that `slabpool.sessions`
registered.
"""

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject, newfunc
from cpython.unicode cimport PyUnicode_AsUTF8
from libc.stdint cimport int64_t, uint32_t, uint64_t

import enum
import operator
import threading
import time
import weakref

from slabpool._core import hooks
from slabpool.arguments.names import MOST_BITS as _MOST_BITS
from slabpool.arguments.names import plain_name
from slabpool.arguments.seconds import seconds
from slabpool.arguments.texts import show, show_typed
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.records import Ack, RequestState, WaiterRecord

cnp.import_array()

cdef extern from "slabpool/pool/pool.hpp":
    pass

cdef extern from *:
    """
    static inline void slabpool_set_constructor(PyTypeObject* type, newfunc make) {
      type->tp_new = make;
      type->tp_vectorcall = NULL;  // a shortcut past tp_new
    }
    """
    void set_constructor "slabpool_set_constructor"(PyTypeObject* type, newfunc make)

cdef extern from "slabpool/base/clock.hpp" namespace "slabpool" nogil:
    int64_t now_ns()

include "names.pxi"
include "lines.pxi"
include "waiting.pxi"

# The numbers of csrc/slabpool/base/status.hpp, for what is written in Python.
StatusCode = enum.IntEnum("StatusCode", {
    "OK": <int>Status.ok,
    "INVALID_ARGUMENT": <int>Status.invalid_argument,
    "EXHAUSTED": <int>Status.exhausted,
    "TOO_LARGE": <int>Status.too_large,
    "SYSTEM_REFUSED": <int>Status.system_refused,
    "QUOTA_EXCEEDED": <int>Status.quota_exceeded,
    "TOO_MANY_REQUESTS": <int>Status.too_many_requests,
    "TOO_MANY_DEVICES": <int>Status.too_many_devices,
    "DUPLICATE_DEVICE": <int>Status.duplicate_device,
    "UNKNOWN_DEVICE": <int>Status.unknown_device,
    "REQUEST_CLOSED": <int>Status.request_closed,
    "AMBIGUOUS": <int>Status.ambiguous,
    "POOL_CLOSED": <int>Status.pool_closed,
    "POOL_BUSY": <int>Status.pool_busy,
    "FORKED": <int>Status.forked,
    "NO_ADDRESSES": <int>Status.no_addresses,
    "DEVICE_LOST": <int>Status.device_lost,
    "WAITERS_AHEAD": <int>Status.waiters_ahead,
    "TOO_DEEP": <int>Status.too_deep,
    "NAME_IN_USE": <int>Status.name_in_use,
})


# status_code(<int>status) is StatusCode(<int>status) without the search of the enum's class.
cdef dict _codes = {int(code): code for code in StatusCode}


cdef object status_code(int status):
    return _codes.get(status) or StatusCode(status)


cdef class Maker:
    """The interface of `slabpool._core.device_array.DeviceMaker`."""

    cdef object wrap(self, Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape):
        raise NotImplementedError

    cdef object full(self, Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who):
        raise NotImplementedError

    cdef object copy(self, Core core, Handle request, object array, object align, object timeout, object who):
        raise NotImplementedError


cdef class Core:
    """The C++ pool, seen from Python only by the policy that makes room (`slabpool.sessions.give_way`)."""

    def __dealloc__(self):
        # In a child of fork the inherited pool is leaked: its locks may be held by threads that do not exist here, and
        # its views may still be read.
        if self.pool is NULL or not self.pool.usable_here():
            return
        with nogil:  # unmapping takes the kernel a while
            del self.pool
        drop_codes(self)

    def settle_copies(self):
        """Drop what finished copies keep alive, in any pool. Returns whether there was any."""
        return settle_copies()

    def trim_heaps(self):
        """Return to the pool what its stream-ordered heaps keep for reuse. Returns whether there was any."""
        return trim_heaps(self, False)


cdef Handle NO_REQUEST


cdef int check_here(Core core) except -1:
    if not core.pool.usable_here():
        failed(core, None, Status.forked, 0, None)
    return 0


cdef int failed(Core core, object request, Status status, uint64_t nbytes, object extra) except -1:
    hooks.messages.call_failed(core.owner(), request, status_code(<int>status), nbytes, extra)
    raise SystemError("slabpool: a call failed without a reason")


# ---- types without a constructor

cdef dict _made_by = {}


cdef object _refuse(type made, object args, object kwargs):
    raise InvalidTypeError(_made_by.get(made) or f"{made.__name__} objects are not made by calling the type")


cdef int only_made_by(type made, str text) except -1:
    # In the module of T, Cython's `T.__new__(T)` calls the function that was in the slot, and is not affected.
    _made_by[made] = text
    set_constructor(<PyTypeObject*>made, <newfunc>_refuse)
    return 0


# ---- what may be freed when there is no room

# Copies to and from devices that return before they are done keep their memory; see cuda.pyx.
cdef int _copies_under_way = 0
cdef SettleCopies _settle = NULL


cdef void note_copies(int under_way, SettleCopies settle) noexcept:
    """Record how many copies are under way, and the function that drops the finished ones."""
    global _copies_under_way, _settle
    _copies_under_way = under_way
    _settle = settle


cdef bint settle_copies() noexcept:
    return _copies_under_way != 0 and _settle()


cdef bint trim_heaps(Core core, bint wait) except -1:
    """Return what stream-ordered heaps keep for reuse; with `wait` also what queued work still holds. Returns whether
    there was any."""
    cdef bint freed = False
    if core.heaps is not None:
        for known in tuple(core.heaps):
            heap = known()
            if heap is None:
                continue
            if wait:
                heap.wait()
            if heap.trim():
                freed = True
    return freed


# ---- calls of the pool

cdef Status open_view(Core core, Block* block, uint32_t serial, Handle request) noexcept:
    return core.pool.open_view(block[0], serial, request)


cdef Handle owner_of(Core core, Block* block) noexcept:
    cdef Handle owner
    if core.pool.usable_here():
        owner = core.pool.owner_of(block[0])
    return owner


cdef Block* find_held(Core core, const void* address) noexcept:
    return core.pool.find_held(address)


cdef MemoryKind memory_of(Core core) noexcept:
    return core.pool.memory()


cdef int device_of(Core core) noexcept:
    return core.pool.device()


cdef bint is_shared(Core core) noexcept:
    return core.pool.shared()


cdef uint64_t shared_id(Core core) noexcept:
    return core.pool.shared_id()


cdef Status refer(Core core, Handle request, const void* data, uint64_t nbytes, uint64_t* offset,
                  uint64_t* seal) noexcept:
    return core.pool.refer(request, data, nbytes, offset[0], seal[0])


# ---- pools that the host and CUDA devices both reach
#
# Once another library has made a view of a numpy array, only the address says which pool its memory is in.

_reachable = weakref.WeakSet()


cdef int add_reachable(Core core) except -1:
    _reachable.add(core)
    return 0


cdef Core reachable_core(const void* address):
    cdef Core core
    for core in _reachable:
        if core.pool.usable_here() and core.pool.find_held(address) is not NULL:
            return core
    return None


cdef bint is_reachable(object array) except -1:
    """Whether a numpy array is in such a pool."""
    return reachable_core(cnp.PyArray_DATA(<cnp.ndarray>array)) is not None
