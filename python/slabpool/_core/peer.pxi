# Part of shared.pyx. A device in a process of its own: open references, acknowledge, notice the owner's end.
#
# Converts, calls, wraps: what a reference means and what an ack changes is decided by the C++ SharedPeer.

from libc.errno cimport EMFILE, ENFILE, ENOMEM

cdef object PENDING = Ack.PENDING
cdef int64_t FOREVER = 0x7FFFFFFFFFFFFFFF

# The numbers of csrc/slabpool/shared/peer.hpp, for what is written in Python.
PeerStatusCode = enum.IntEnum("PeerStatusCode", {
    "OK": <int>PeerStatus.ok,
    "CLOSED": <int>PeerStatus.closed,
    "OTHER_POOL": <int>PeerStatus.other_pool,
    "OVER": <int>PeerStatus.over,
    "FORGED": <int>PeerStatus.forged,
    "OUT_OF_RANGE": <int>PeerStatus.out_of_range,
    "UNKNOWN_DEVICE": <int>PeerStatus.unknown_device,
    "ACKNOWLEDGED": <int>PeerStatus.acknowledged,
    "READ_ONLY": <int>PeerStatus.read_only,
})


@cython.final
cdef class Maps:
    def lose(self):
        """The owner is gone: every call raises from now on."""
        if self.peer is not NULL:
            with nogil:  # it waits for threads that wait for the owner, none of which needs the GIL to leave
                self.peer.lose()

    def __dealloc__(self):
        with nogil:  # unmapping a large map takes the kernel a while
            self.owned.reset()


def new_peer(name, device, number, files, connect):
    """A peer over the files that an owner sent; for `slabpool.attach`.

    `connect(maps)` returns the connection, which `Peer` asks for a writable map and closes.
    """
    cdef Maps maps = Maps.__new__(Maps)
    cdef int data, table, board, tally, bell
    cdef Error error
    data, table, board, tally, bell = files
    maps.owned = SharedPeer.create(number, data, table, board, tally, bell, error)
    if maps.owned.get() is NULL:
        if error.system_errno in (EMFILE, ENFILE, ENOMEM):
            raise hooks.messages.system_refused(f"pool {show(name)} cannot be mapped in this process", error.system_errno)
        reason = text_of(error.text) or os.strerror(error.system_errno)
        raise AttachError(f"pool {show(name)} cannot be mapped in this process: {reason}")
    maps.peer = maps.owned.get()
    cdef Peer peer = Peer.__new__(Peer)
    peer.maps = maps
    peer.name = name
    peer.device = device
    peer.connection = connect(maps)
    return peer


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class _WritableMaps:
    """The base of an array that `Peer.open(writable=True)` made. Of a read-only array the base is `Maps`, which exports no
    buffer, so numpy refuses to make it writable."""

    cdef Maps maps
    cdef void* data
    cdef uint64_t nbytes

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, <Py_ssize_t>self.nbytes, 0, flags)


@cython.final
cdef class Peer:
    """A device of a shared pool, in another process than the pool's owner. Made by `attach`.

    It reads (and writes, if asked to) the pool's own bytes without a copy, and acknowledges for its own device only.
    When its process ends in whatever way, or `close` is called, the device releases everything that it holds. Any
    thread may call it.

    Attributes
    ----------
    name : str
        Name of the pool.
    device : str or int
        The device that this peer is.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> with slabpool.Pool("1MiB", memory="shared", name="doc-peer") as pool:
    ...     req = pool.request("chat-42", devices=["gpu0"])
    ...     ref = req.ref(req.full(3, 7, np.int32))
    ...     req.close()
    ...     with slabpool.attach("doc-peer", device="gpu0") as peer:  # usually in another process
    ...         print(peer.open(ref), peer.ack(ref), peer.ack(ref))
    ...     pool.stats().live
    [7 7 7] Ack.RELEASED Ack.DUPLICATE
    0
    """

    def __del__(self):
        if self.connection is None or self.closed or not self.maps.peer.usable_here():
            return
        self.closed = True
        self.connection.close()
        warnings.warn(
            f"the peer of device {show(self.device)} in pool {show(self.name)} was dropped while attached, and has released "
            "all it held. Call close() or use `with`.",
            ResourceWarning,
            stacklevel=2,
            source=None,
        )

    def open(self, ref, *, writable=False):
        """The tensor that a reference refers to: the owner's own bytes, not a copy.

        Parameters
        ----------
        ref : TensorRef
        writable : bool, default False
            Whether writes are allowed; the owner and other devices see them.

        Returns
        -------
        numpy.ndarray or DeviceArray
            A `DeviceArray` if the pool is in GPU memory. It never faults, but it does not keep the memory: after this
            device's ack (or `close`) its bytes may belong to another request. Nothing waits for work that the owner has
            queued on its streams: the owner must synchronise before it sends the reference.

        Raises
        ------
        InvalidReferenceError
            To another pool, forged, or out of range; `StaleReferenceError` if its request is released or was
            acknowledged by this device.
        UnknownDeviceError
            The request does not name this device.
        OwnerLostError
            The owner has closed the pool or is gone.
        """
        cdef TensorRef target = _reference(ref)
        cdef byte* data = NULL
        cdef bint write = writable
        cdef Shape shape
        cdef int i
        self._check()
        cdef PeerStatus status = self.maps.peer.open(target.target, write, data)
        if status == PeerStatus.read_only:
            self._map_writable()
            status = self.maps.peer.open(target.target, write, data)
        if status != PeerStatus.ok:
            hooks.messages.peer_failed(self, PeerStatusCode(<int>status), ref)
        if self.maps.peer.cuda_device() >= 0:
            return device_array(self.maps, None, NULL, <uintptr_t>(data + target.first), target.shape,
                                target.strides, target.descr, self.maps.peer.cuda_device(), kCuda, not write)
        shape.nd = target.nd
        for i in range(target.nd):
            shape.dims[i] = target.dims[i]
        cdef _WritableMaps base
        if not write:
            return wrap_strided(self.maps, data + target.first, target.descr, &shape, target.steps, False)
        base = _WritableMaps.__new__(_WritableMaps)
        base.maps = self.maps
        base.data = data
        base.nbytes = target.target.nbytes
        return wrap_strided(base, data + target.first, target.descr, &shape, target.steps, True)

    def ack(self, ref):
        """This device is done with the request of a reference: it will not access its memory again.

        Takes no lock and, unless the owner waits for memory, makes no system call. The owner collects the ack when it
        next allocates, opens a request, waits, or reads the pool's figures.

        Parameters
        ----------
        ref : TensorRef
            Any reference to the request. To acknowledge a child, a reference to the child.

        Returns
        -------
        Ack
            ``PENDING`` if the host or another device still holds the request. ``RELEASED`` if this was the last holder, as
            far as the shared tables show. ``DUPLICATE``: this device has acknowledged before, and the request is not
            released. ``LATE``: the request is released; its slot may have another one. Neither changes anything.

        Raises
        ------
        InvalidReferenceError
            To another pool.
        UnknownDeviceError
            The request does not name this device. Nothing changed.
        OwnerLostError
            The owner has closed the pool or is gone.
        """
        if type(ref) is not TensorRef:
            _reference(ref)
        if self.closed or not self.maps.peer.usable_here():
            self._check()
        cdef PeerAcked acked = self.maps.peer.ack((<TensorRef>ref).target)
        if acked.status == PeerStatus.ok:
            if acked.result == AckResult.pending:
                return PENDING
            return ack_answer(<int>acked.result)
        hooks.messages.peer_failed(self, PeerStatusCode(<int>acked.status), ref)

    def cancelled(self, ref):
        """Whether the owner has cancelled the request of a reference, so that this device may stop early and acknowledge.

        Reads the shared table; makes no system call. Never true of another request than this one.

        Parameters
        ----------
        ref : TensorRef
            Any reference to the request. Children have references of their own; they are cancelled with their parent.

        Returns
        -------
        bool
            True from `Request.cancel` (or `Pool.cancel`, or a ``with request`` that an exception ends) until this device
            has acknowledged. False otherwise, and for a request that is over.

        Raises
        ------
        InvalidReferenceError
            To another pool.
        UnknownDeviceError
            The request does not name this device.
        OwnerLostError
            The owner has closed the pool or is gone.

        Examples
        --------
        >>> import slabpool
        >>> with slabpool.Pool("1MiB", memory="shared", name="doc-cancelled") as pool:
        ...     req = pool.request("chat-42", devices=["gpu0"])
        ...     ref = req.ref()
        ...     with slabpool.attach("doc-cancelled", device="gpu0") as peer:  # usually in another process
        ...         before = peer.cancelled(ref)
        ...         req.cancel()
        ...         print(before, peer.cancelled(ref), peer.ack(ref), peer.cancelled(ref))
        False True Ack.RELEASED False
        """
        cdef TensorRef target = _reference(ref)
        cdef PeerHost host = PeerHost.done
        self._check()
        cdef PeerStatus status = self.maps.peer.host_of(target.target, host)
        if status != PeerStatus.ok:
            hooks.messages.peer_failed(self, PeerStatusCode(<int>status), ref)
        return host == PeerHost.cancelled

    def wait_cancelled(self, ref, timeout=None):
        """Waits, without the GIL, until the owner cancels the request of a reference, or can no longer do so.

        The thread sleeps; the owner pays one system call when it cancels or closes the request, and nothing before that. Once
        the owner has closed the request this returns at once, whatever the timeout: do not use that as a pause.

        Parameters
        ----------
        ref : TensorRef
            As for `cancelled`.
        timeout : float, optional
            Seconds; by default there is no limit.

        Returns
        -------
        bool
            True if the request is cancelled. False if the owner has closed it without cancelling it, if it is over, if
            this device has acknowledged it (noticed within 0.1 s if another thread does so), or if the timeout expired.

        Raises
        ------
        InvalidReferenceError, UnknownDeviceError
            As for `cancelled`.
        OwnerLostError
            The owner has closed the pool or is gone. A thread that waits hears so at once, also if the owner is killed.
        PoolClosedError
            Another thread has closed this peer.

        Examples
        --------
        >>> import threading, slabpool
        >>> with slabpool.Pool("1MiB", memory="shared", name="doc-wait") as pool:
        ...     req = pool.request("chat-42", devices=["gpu0"])
        ...     ref = req.ref()
        ...     with slabpool.attach("doc-wait", device="gpu0") as peer:  # usually in another process
        ...         thread = threading.Thread(target=lambda: print(peer.wait_cancelled(ref)))
        ...         thread.start()
        ...         req.cancel()
        ...         thread.join()
        ...         ack = peer.ack(ref)
        True
        """
        cdef TensorRef target = _reference(ref)
        cdef int64_t deadline = FOREVER if timeout is None else deadline_of(timeout)
        cdef int64_t until
        cdef PeerHost host = PeerHost.done
        cdef PeerStatus status
        while True:
            self._check()  # again, because another thread may have closed the peer
            until = next_slice(deadline)
            with nogil:
                status = self.maps.peer.wait_for_host(target.target, until, host)
            if status == PeerStatus.closed:
                self._check()
            if status != PeerStatus.ok:
                hooks.messages.peer_failed(self, PeerStatusCode(<int>status), ref)
            if host != PeerHost.holds or until == deadline:
                return host == PeerHost.cancelled
            PyErr_CheckSignals()

    def heartbeat(self):
        """This device is alive: renews its leases.

        Raises
        ------
        OwnerLostError
            The owner has closed the pool or is gone.
        """
        self._check()
        if self.maps.peer.lost():
            hooks.messages.peer_failed(self, PeerStatusCode(<int>PeerStatus.closed), None)
        self.maps.peer.heartbeat()

    @property
    def lost(self):
        """Whether the owner has closed the pool or is gone (detected within milliseconds)."""
        return self.maps.peer.lost()

    def wait_lost(self, timeout=None):
        """Waits, without the GIL, until the owner has closed the pool or is gone, or this peer is closed.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default there is no limit.

        Returns
        -------
        bool
            False if the timeout expired first.
        """
        self._check()
        return self.connection.wait(timeout)

    def close(self):
        """Detaches: the device releases everything that it holds. Calling it again does nothing.

        Views stay readable, but their bytes may belong to another request from now on.
        """
        if self.closed or not self.maps.peer.usable_here():
            return
        self.closed = True
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _check(self):
        if self.closed or not self.maps.peer.usable_here():
            hooks.messages.peer_unusable(self, self.closed)

    def _map_writable(self):
        file = self.connection.writable_file()
        try:
            if not self.maps.peer.map_writable(file):
                error = errno
                raise AttachError(f"pool {show(self.name)} cannot be mapped for writing: {os.strerror(error)}")
        finally:
            os.close(file)

    def __reduce__(self):
        raise InvalidTypeError(f"the peer of device {show(self.device)} belongs to its process: attach where it is needed")

    def __repr__(self):
        if not self.maps.peer.usable_here():
            state = "inherited through fork"
        else:
            state = "closed" if self.closed else "owner lost" if self.maps.peer.lost() else "attached"
        return f"<Peer {show(self.device)} of pool {show(self.name)}: {state}>"


cdef TensorRef _reference(object ref):
    if type(ref) is not TensorRef:
        raise InvalidTypeError(
            f"a reference must be a TensorRef, got {type(ref).__name__}; TensorRef.from_bytes() makes one of bytes")
    return <TensorRef>ref


only_made_by(Peer, "a Peer is made by slabpool.attach(name, device=...)")
