# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""A device in a process of its own, as Python sees it: open references, acknowledge, notice the owner's end.

Converts, calls, wraps: what a reference means and what an ack changes is decided by the C++ `SharedPeer`.
"""

cimport cython
cimport numpy as cnp
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uintptr_t
from libcpp.string cimport string

from slabpool._core.cpp_block cimport byte
from slabpool._core.cpp_dlpack cimport kCuda
from slabpool._core.cpp_request cimport AckResult
from slabpool._core.cpp_shared cimport PeerAcked, PeerStatus, SharedPeer
from slabpool._core.device_array cimport DeviceArray, device_array
from slabpool._core.ref cimport TensorRef
from slabpool._core.request cimport ack_answer

import os
import warnings

from slabpool.messages import pool as _report
from slabpool.errors import AttachError, InvalidTypeError
from slabpool.records import Ack

cnp.import_array()

cdef extern from *:
    """
    // An array over memory that somebody keeps; takes over the references to the dtype and to the base.
    static inline PyObject* slabpool_view(PyObject* dtype, int nd, npy_intp* dims, npy_intp* strides, void* data,
                                          int writable, PyObject* base) {
      PyObject* array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr*)dtype, nd, dims, strides, data,
                                             writable ? NPY_ARRAY_WRITEABLE : 0, NULL);
      if (array == NULL) { Py_DECREF(base); return NULL; }
      ((PyArrayObject_fields*)array)->base = base;
      return array;
    }
    """
    PyObject* new_view "slabpool_view"(PyObject* dtype, int nd, cnp.npy_intp* dims, cnp.npy_intp* strides, void* data,
                                       bint writable, PyObject* base) except NULL

cdef object PENDING = Ack.PENDING
cdef bint _making = False


@cython.final
cdef class Maps:
    def lose(self):
        """The owner is gone: every call says so from now on."""
        if self.peer is not NULL:
            self.peer.lose()

    def __dealloc__(self):
        with nogil:  # the system takes its time to take a large map back
            self.owned.reset()


def new_peer(name, device, number, files, connect):
    """The peer over the files an owner handed over; for `slabpool.attach`.

    `connect(maps)` gives the connection, which `Peer` asks for a writable map and tells to close.
    """
    global _making
    cdef Maps maps = Maps.__new__(Maps)
    cdef int data, table, board, tally, bell
    cdef string why
    data, table, board, tally, bell = files
    maps.owned = SharedPeer.create(number, data, table, board, tally, bell, &why)
    if maps.owned.get() is NULL:
        error = errno
        reason = why.decode("utf-8", "replace") or os.strerror(error)
        raise AttachError(f"pool {name!r} cannot be mapped in this process: {reason}")
    maps.peer = maps.owned.get()
    _making = True
    cdef Peer peer = Peer.__new__(Peer)
    _making = False
    peer.maps = maps
    peer.name = name
    peer.device = device
    peer.connection = connect(maps)
    return peer


@cython.final
cdef class Peer:
    """A device of a shared pool, in another process than the pool's owner. Made by `attach`.

    It reads (and writes, where asked for) the pool's own bytes without a copy, and acknowledges for its
    device alone. When its process ends, however it ends, or with `close`, the device lets go of everything
    it still held. Calls may come from any thread.

    Attributes
    ----------
    name : str
        Of the pool.
    device : str or int
        The device this is.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> with slabpool.Pool("1MiB", memory="shared", name="doc-peer") as pool:
    ...     req = pool.request("chat-42", devices=["gpu0"])
    ...     ref = req.ref(req.full(3, 7, np.int32))
    ...     req.close()
    ...     with slabpool.attach("doc-peer", device="gpu0") as peer:  # elsewhere, as a rule
    ...         print(peer.open(ref), peer.ack(ref), peer.ack(ref))
    ...     pool.stats().live
    [7 7 7] Ack.RELEASED Ack.DUPLICATE
    0
    """

    def __cinit__(self):
        if not _making:
            raise InvalidTypeError("a Peer is made by slabpool.attach(name, device=...)")

    def __del__(self):
        if self.connection is None or self.closed or not self.maps.peer.usable_here():
            return
        self.closed = True
        self.connection.close()
        warnings.warn(
            f"the peer of device {self.device!r} in pool {self.name!r} was dropped while attached, and has let go of "
            "all it held. Call close() or use `with`.",
            ResourceWarning,
            stacklevel=2,
            source=None,
        )

    def open(self, ref, *, writable=False):
        """The tensor that a reference is to: the owner's own bytes, not a copy.

        Parameters
        ----------
        ref : TensorRef
        writable : bool, default False
            Whether writes are allowed; the owner, and other devices, see them.

        Returns
        -------
        numpy.ndarray or DeviceArray
            A `DeviceArray` if the pool's memory is a GPU's. It never faults, but it does not keep the memory: after
            this device's ack (or `close`) its bytes may be another request's. What the owner has queued on its streams
            is not waited for: it synchronises before it sends the reference.

        Raises
        ------
        InvalidReferenceError
            To another pool, forged, or out of range; `StaleReferenceError` if its request is over or was
            acknowledged by this device.
        UnknownDeviceError
            The request does not name this device.
        OwnerLostError
            The owner has closed the pool or is gone.
        """
        cdef TensorRef target = _reference(ref)
        cdef byte* data = NULL
        cdef bint write = writable
        self._check()
        cdef PeerStatus status = self.maps.peer.open(target.target, write, data)
        if status == PeerStatus.read_only:
            self._map_writable()
            status = self.maps.peer.open(target.target, write, data)
        if status != PeerStatus.ok:
            _report.peer_failed(self, <int>status, ref)
        if self.maps.peer.cuda_device() >= 0:
            return device_array(DeviceArray, self.maps, None, NULL, <uintptr_t>(data + target.first), target.shape,
                                target.strides, target.descr, self.maps.peer.cuda_device(), kCuda, not write)
        Py_INCREF(target.descr)
        Py_INCREF(self.maps)
        cdef PyObject* made = new_view(<PyObject*>target.descr, target.nd, target.dims, target.steps,
                                       data + target.first, write, <PyObject*>self.maps)
        array = <object>made
        Py_DECREF(array)
        return array

    def ack(self, ref):
        """This device is done with the request of a reference: it will not touch its memory again.

        Takes no lock and, unless the owner waits for memory, makes no system call. The owner takes it in
        when it next allocates, opens, waits or looks.

        Parameters
        ----------
        ref : TensorRef
            Any reference to the request (of a child, to the child).

        Returns
        -------
        Ack
            ``RELEASED`` if nobody else holds the request, as far as the owner has published and the other
            devices have acknowledged.

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
        _report.peer_failed(self, <int>acked.status, ref)

    def heartbeat(self):
        """A sign of life: renews this device's leases.

        Raises
        ------
        OwnerLostError
            The owner has closed the pool or is gone.
        """
        self._check()
        if self.maps.peer.lost():
            _report.peer_failed(self, <int>PeerStatus.closed, None)
        self.maps.peer.heartbeat()

    @property
    def lost(self):
        """Whether the owner has closed the pool or is gone (noticed within milliseconds)."""
        return self.maps.peer.lost()

    def wait_lost(self, timeout=None):
        """Waits, without the GIL, until the owner has closed the pool or is gone, or this peer is closed.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default for ever.

        Returns
        -------
        bool
            False if the timeout came first.
        """
        self._check()
        return self.connection.wait(timeout)

    def close(self):
        """Detaches: the device lets go of everything it still held. Again: nothing happens.

        Views stay readable, but their bytes may be somebody else's from now on.
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
            _report.peer_unusable(self, self.closed)

    def _map_writable(self):
        file = self.connection.writable_file()
        try:
            if not self.maps.peer.map_writable(file):
                error = errno
                raise AttachError(f"pool {self.name!r} cannot be mapped for writing: {os.strerror(error)}")
        finally:
            os.close(file)

    def __reduce__(self):
        raise InvalidTypeError(f"the peer of device {self.device!r} belongs to its process: attach where it is needed")

    def __repr__(self):
        if not self.maps.peer.usable_here():
            state = "inherited through fork"
        else:
            state = "closed" if self.closed else "owner lost" if self.maps.peer.lost() else "attached"
        return f"<Peer {self.device!r} of pool {self.name!r}: {state}>"


cdef TensorRef _reference(object ref):
    if type(ref) is not TensorRef:
        raise InvalidTypeError(
            f"a reference must be a TensorRef, got {type(ref).__name__}; TensorRef.from_bytes() makes one of bytes")
    return <TensorRef>ref
