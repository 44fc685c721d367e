# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""What the thread that serves peers may ask of a pool, without keeping the `Pool` itself."""

cimport cython
from libc.errno cimport EEXIST, errno
from libc.stdint cimport uint32_t, uint64_t
from libcpp.optional cimport optional

from slabpool._core.array cimport Core
from slabpool._core.cpp_request cimport kMaxDevices
from slabpool._core.cpp_shared cimport PeerFiles
from slabpool._core.naming cimport name_key
from slabpool._core.pool cimport Pool

import os

from slabpool.errors import AttachError, InvalidArgumentError, TooManyDevicesError


@cython.final
cdef class Link:
    """The shared part of a pool's core, kept alive by whoever serves its peers."""

    cdef Core core

    def __cinit__(self, Pool pool not None):
        if not pool.core.pool.shared():
            raise InvalidArgumentError(f"pool {pool.name!r} is not shared: no peer can attach")
        self.core = pool.core

    def attach(self, device):
        """The device's number and the descriptors of its files, which stay the pool's."""
        cdef optional[uint32_t] added = self.core.pool.devices().add(name_key(device, "device"))
        cdef PeerFiles files
        if not added.has_value():
            raise TooManyDevicesError(f"a pool tells at most {kMaxDevices} devices apart")
        if not self.core.pool.attach_peer(added.value(), files):
            error = errno
            if error == EEXIST:
                raise FileExistsError(f"device {device!r} is attached already")
            raise AttachError(f"the owner cannot serve another peer: {os.strerror(error)}")
        return added.value(), (files.data, files.table, files.board, files.tally, files.bell)

    def detach(self, uint32_t number):
        """The peer is gone. How many requests it still held."""
        cdef uint64_t lost
        with nogil:
            lost = self.core.pool.detach_peer(number)
        return lost

    def writable_data(self):
        """A descriptor for a writable map, the pool's."""
        return self.core.pool.writable_data()

    def dismiss(self):
        """Peers find the pool closed at their next call."""
        self.core.pool.dismiss_peers()
