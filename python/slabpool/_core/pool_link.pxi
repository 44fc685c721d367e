# Part of pool.pyx. The owner's side of peers in other processes.

from libc.errno cimport EEXIST

from slabpool._core.cpp_shared cimport PeerFiles

from slabpool.errors import AttachError


@cython.final
cdef class Link:
    """What the thread that serves peers calls in a pool. Keeps the core alive, and not the `Pool`."""

    cdef Core core
    cdef Devices devices

    def __cinit__(self, Pool pool not None):
        if not pool.core.pool.shared():
            raise InvalidArgumentError(f"pool {show(pool.name)} is not shared: no peer can attach")
        self.core = pool.core
        self.devices = pool.devices

    def attach(self, device):
        """The device's number and the descriptors of its files, which the pool keeps open."""
        cdef uint32_t number = self.devices.hold_key(device, name_key(device, "device"))
        cdef PeerFiles files
        cdef Error error
        cdef bint attached = self.core.pool.attach_peer(number, files, error)
        self.core.pool.devices().drop(number)  # attach_peer() holds it
        if not attached:
            if error.system_errno == EEXIST:
                raise FileExistsError(f"device {show(device)} is attached already")
            raise AttachError(f"the owner cannot serve another peer: {os.strerror(error.system_errno)}")
        return number, (files.data, files.table, files.board, files.tally, files.bell)

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
