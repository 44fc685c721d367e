# Part of pool.pyx. The owner's side of peers in other processes.

from libc.errno cimport EEXIST

from slabpool._core.cpp_request cimport kMaxDevices
from slabpool._core.cpp_shared cimport PeerFiles

from slabpool.errors import AttachError, TooManyDevicesError


@cython.final
cdef class Link:
    """What the thread that serves peers calls in a pool. Keeps the core alive, and not the `Pool`."""

    cdef Core core

    def __cinit__(self, Pool pool not None):
        if not pool.core.pool.shared():
            raise InvalidArgumentError(f"pool {show(pool.name)} is not shared: no peer can attach")
        self.core = pool.core

    def attach(self, device):
        """The device's number and the descriptors of its files, which the pool keeps open."""
        cdef bytes key = name_key(device, "device")
        cdef optional[uint32_t] added = self.core.pool.devices().add(view_of(key))
        cdef PeerFiles files
        cdef Error error
        if not added.has_value():
            raise TooManyDevicesError(f"a pool tells at most {kMaxDevices} devices apart")
        if not self.core.pool.attach_peer(added.value(), files, error):
            if error.system_errno == EEXIST:
                raise FileExistsError(f"device {show(device)} is attached already")
            raise AttachError(f"the owner cannot serve another peer: {os.strerror(error.system_errno)}")
        return added.value(), (files.data, files.table, files.board, files.tally, files.bell)

    def detach(self, uint32_t number):
        """The peer is gone. Returns how many requests it held."""
        cdef uint64_t lost
        with nogil:
            lost = self.core.pool.detach_peer(number)
        return lost

    def holds(self, uint32_t number):
        """Whether the peer holds any request."""
        return self.core.pool.peer_holds(number)

    def writable_data(self):
        """A descriptor for a writable map, which the pool keeps open."""
        return self.core.pool.writable_data()

    def dismiss(self):
        """From now on every call of a peer finds the pool closed."""
        self.core.pool.dismiss_peers()
