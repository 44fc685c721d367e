# Part of pool.pyx. A watch of how much of the pool is in use, as pressure.py uses it.

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

from slabpool._core.core cimport deadline_of
from slabpool._core.cpp_pressure cimport PressureChange
from slabpool._core.cpp_pressure cimport PressureWatch as CppWatch

import threading
import time

# A thread that waits looks itself this often (ns): for signals, or for what only a look finds; and otherwise for what a look
# at the same moment may have missed.
cdef int64_t OFTEN = 50_000_000
cdef int64_t SELDOM = 1_000_000_000


@cython.final
@cython.no_gc_clear  # the watch leaves the gauge of `core` when this dies
cdef class PoolWatch:
    """A watch in the core. Keeps the core alive, and not the `Pool`."""

    cdef Core core
    cdef CppWatch watch
    cdef readonly bint needs_looks      # acks of other processes, or of streams, are found by a look only

    def __cinit__(self, Pool pool not None, uint64_t up, uint64_t down, int fd):
        self.core = pool.core
        self.watch.up = up
        self.watch.down = down
        self.watch.fd = fd
        self.needs_looks = pool.memory != "host"
        with nogil:
            self.core.pool.add_watch(self.watch)

    def __dealloc__(self):
        if self.core is not None:
            with nogil:
                self.core.pool.remove_watch(self.watch)

    def take(self, bint look):
        """(whether it passed upwards, bytes in use then) for the first pending change; None if there is
        none. `look`: finds also what no thread has noticed."""
        cdef PressureChange change
        cdef bint found
        check_here(self.core)
        with nogil:
            found = self.core.pool.take_change(self.watch, change, look)
        return (change.high, change.used) if found else None

    def deadline(self, timeout):
        """The instant (ns) at which a wait of so many seconds ends; 0 for None."""
        return deadline_of(timeout)

    def seconds_until(self, int64_t deadline):
        """As `Lock.acquire` takes them: -1 for no limit."""
        return -1 if deadline == 0 else max(0, deadline - time.monotonic_ns()) / 1e9

    @property
    def pending(self):
        """Whether there is a change to take."""
        cdef bint found
        with nogil:
            found = self.core.pool.has_change(self.watch)
        return found

    def wait(self, int64_t deadline):
        """Whether there is a change to take, or the watch is closed, before the instant (0: no limit)."""
        cdef int64_t until
        cdef bint found
        cdef bint often = self.needs_looks or threading.current_thread() is threading.main_thread()
        while True:
            check_here(self.core)
            until = time.monotonic_ns() + (OFTEN if often else SELDOM)
            if deadline != 0:
                until = min(until, deadline)
            with nogil:
                found = self.core.pool.wait_change(self.watch, until)
            if found or until == deadline:
                return found
            PyErr_CheckSignals()

    def close(self):
        """Ends all waits."""
        with nogil:
            self.core.pool.remove_watch(self.watch)

    @property
    def closed(self):
        """Whether no further change comes."""
        return self.watch.closed() or not self.core.pool.usable_here()
