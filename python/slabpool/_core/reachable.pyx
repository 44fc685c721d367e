# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""Pools of memory that the host and CUDA devices both reach (pinned, managed), found by an address.

A numpy array does not say whose memory it shows once another library has made a view of it; its address does.
"""

cimport numpy as cnp

from slabpool._core.array cimport Core

import weakref

cnp.import_array()

_cores = weakref.WeakSet()


cdef int add_reachable(Core core) except -1:
    _cores.add(core)
    return 0


cdef Core reachable_core(const void* address):
    """The pool in whose range an address is that the caller keeps; None if there is none."""
    cdef Core core
    for core in _cores:
        if core.pool.usable_here() and core.pool.find_held(address) is not NULL:
            return core
    return None


cdef bint is_reachable(object array) except -1:
    """Whether a numpy array is in such a pool."""
    return reachable_core(cnp.PyArray_DATA(<cnp.ndarray>array)) is not None
