# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Tensors of a shared pool in other processes: references to them, and the peers that open them.

A reference is a small value that any process may carry and none can forge. Invariant: the shape and strides of a
TensorRef stay within the bytes that its seal covers. Only the owner or a peer can say whether those bytes belong
to a live request.
"""

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport Py_EQ, Py_NE
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from slabpool._core.array cimport wrap_strided
from slabpool._core.core cimport (
    MAX_DIMS, Shape, ack_answer, deadline_of, failed, is_shared, next_slice, only_made_by, refer, shared_id, text_of,
)
from slabpool._core.cpp_block cimport byte
from slabpool._core.cpp_dlpack cimport kCuda
from slabpool._core.cpp_request cimport AckResult
from slabpool._core.cpp_shared cimport PeerAcked, PeerHost, PeerStatus
from slabpool._core.cpp_status cimport Error, Status
from slabpool._core.device_array cimport DeviceArray, device_array

import ast
import enum
import functools
import os
import re
import struct
import warnings
import zlib

import numpy as np

from slabpool._core import hooks
from slabpool.arguments.reading import check_depth
from slabpool.arguments.texts import short, show
from slabpool.errors import AttachError, InvalidReferenceError, InvalidTypeError
from slabpool.records import Ack

cnp.import_array()

# Magic and version; pool, generation, seal, offset, nbytes, slot, dimensions, length of the dtype, first
# element. Then the shape, the strides, the dtype as text, and a checksum of all before it.
cdef object _HEAD = struct.Struct("<4sQQQQQIHHQ")
cdef bytes _MAGIC = b"SPR\x01"
cdef object _MOST = 1 << 62
_LONGEST_DTYPE = 16384  # characters of a dtype; one of structures may have a few hundred fields
_LONGEST = 32768  # bytes of a reference
_PLAIN_DTYPE = r"[<>|][biufcmMSUV?][0-9]{0,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?"


@functools.lru_cache(maxsize=256)
def _dtype_text(dtype):
    """A dtype as text that makes the same dtype in any process."""
    text = dtype.str if dtype.names is None else repr(np.lib.format.dtype_to_descr(dtype))
    try:
        same = len(text) <= _LONGEST_DTYPE and not dtype.hasobject and _dtype_of(text) == dtype
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InvalidTypeError(
            f"dtype {short(str(dtype), 100)} cannot be sent to another process by its name; refer to a view of the "
            f"same bytes, such as .view('u{dtype.itemsize}')"
        )
    return text.encode()


@functools.lru_cache(maxsize=256)
def _dtype_of(text):
    if text.startswith("["):
        if len(text) > _LONGEST_DTYPE or not text.isascii():
            raise ValueError("its text is not one of a dtype")
        check_depth(text, 16)
        return np.lib.format.descr_to_dtype(ast.literal_eval(text))
    if not re.fullmatch(_PLAIN_DTYPE, text):  # numpy accepts many other things as a dtype
        raise ValueError(f"{show(text[:40])} names no dtype")
    return np.dtype(text)


cdef object _bad(str what):
    return InvalidReferenceError(
        f"not a reference of slabpool: {what}. Pass on what TensorRef.to_bytes() gave, whole and unchanged")


@cython.final
@cython.no_gc  # a dtype leads to no reference
@cython.freelist(64)
cdef class TensorRef:
    """Where a tensor of a shared pool is, for another process: made by `Request.ref`, opened by `Peer.open`.

    A small value that can be pickled or sent as bytes; it keeps no memory alive. It refers to the bytes of one request.
    A reference that was changed on the way, or whose request is released, is refused when it is opened.

    Attributes
    ----------
    shape, strides : tuple of int
        Strides are in bytes.
    dtype : numpy.dtype
    nbytes : int
        Bytes from the tensor's lowest to its highest.
    generation : int
        Generation of the request it belongs to.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> with slabpool.Pool("1MiB", memory="shared") as pool, pool.request("chat-42") as req:
    ...     ref = req.ref(req.zeros((2, 3), np.float32))
    ...     slabpool.TensorRef.from_bytes(ref.to_bytes()) == ref, ref.shape
    (True, (2, 3))
    """

    def __dealloc__(self):
        if self.dims is not NULL and self.dims != self.few:
            free(self.dims)

    @property
    def shape(self):
        """Dimensions of the tensor (tuple of int)."""
        return tuple([self.dims[i] for i in range(self.nd)])

    @property
    def strides(self):
        """Bytes from one element to the next, for each dimension (tuple of int)."""
        return tuple([self.steps[i] for i in range(self.nd)])

    @property
    def dtype(self):
        """The tensor's data type."""
        return self.descr

    @property
    def nbytes(self):
        """Bytes from the tensor's lowest to its highest."""
        return self.target.nbytes

    @property
    def generation(self):
        """Generation of the request it belongs to."""
        return self.target.generation

    def to_bytes(self):
        """The reference as bytes, for engines with a wire format of their own.

        Returns
        -------
        bytes
            67 bytes and 16 for each dimension, for a plain dtype.
        """
        text = _dtype_text(self.descr)
        body = _HEAD.pack(_MAGIC, self.target.pool_id, self.target.generation, self.target.seal,
                          self.target.offset, self.target.nbytes, self.target.slot, self.nd, len(text), self.first)
        body += struct.pack(f"<{2 * self.nd}q", *self.shape, *self.strides) + text
        return body + zlib.crc32(body).to_bytes(4, "little")

    @staticmethod
    def from_bytes(data):
        """The reference that `to_bytes` was called on.

        Parameters
        ----------
        data : bytes-like
            The result of `to_bytes`.

        Returns
        -------
        TensorRef

        Raises
        ------
        InvalidReferenceError
            The bytes are truncated, changed, or no reference.
        """
        return _from_bytes(data)

    def __reduce__(self):
        return _from_bytes, (self.to_bytes(),)

    def __richcmp__(self, other, int op):
        if not isinstance(other, TensorRef) or op not in (Py_EQ, Py_NE):
            return NotImplemented
        return (self.to_bytes() == (<TensorRef>other).to_bytes()) == (op == Py_EQ)

    def __hash__(self):
        return hash((self.target.seal, self.target.offset, self.target.nbytes))

    def __repr__(self):
        return (f"<TensorRef {self.shape} {short(str(self.descr), 100)}: {self.target.nbytes} bytes at {self.target.offset}, "
                f"generation {self.target.generation}>")


def _from_bytes(data):
    """`TensorRef.from_bytes`, also for pickle."""
    try:
        view = memoryview(data)
    except (TypeError, BufferError):
        raise InvalidTypeError(f"a reference is bytes, got {short(type(data).__name__)}") from None
    if view.nbytes > _LONGEST:
        raise _bad(f"{view.nbytes} bytes are more than one has")
    raw = view.tobytes()
    cdef Py_ssize_t end = len(raw) - 4  # where the checksum begins
    if end < _HEAD.size or raw[:4] != _MAGIC:
        raise _bad(f"{len(raw)} bytes that do not begin like one")
    if zlib.crc32(raw[:end]) != int.from_bytes(raw[end:], "little"):
        raise _bad("its checksum is wrong, so it was truncated or changed")
    _, pool_id, generation, seal, offset, nbytes, slot, nd, length, first = _HEAD.unpack_from(raw)
    if nd > MAX_DIMS or end != _HEAD.size + 16 * nd + length:
        raise _bad(f"its length, {len(raw)} bytes, is not that of {nd} dimensions")
    numbers = struct.unpack_from(f"<{2 * nd}q", raw, _HEAD.size)
    shape, strides = numbers[:nd], numbers[nd:]
    try:
        dtype = _dtype_of(raw[end - <Py_ssize_t>length:end].decode())
    except Exception as error:
        raise _bad(f"it names no dtype: {short(str(error), 100)}") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise _bad(f"dtype {short(str(dtype), 100)} is not one of plain values")
    low, high = _extent(shape, strides, dtype.itemsize)
    if low + first != 0 or high - low != nbytes or min(shape, default=0) < 0 or high - low >= _MOST:
        raise _bad(f"shape {show(shape)} with strides {show(strides)} is not {nbytes} bytes")
    cdef TensorRef ref = _blank()
    ref.target.pool_id = pool_id
    ref.target.generation = generation
    ref.target.seal = seal
    ref.target.offset = offset
    ref.target.nbytes = nbytes
    ref.target.slot = slot
    ref.descr = dtype
    ref.first = first
    _make_room(ref, nd)
    cdef int i
    for i in range(ref.nd):
        ref.dims[i] = shape[i]
        ref.steps[i] = strides[i]
    return ref


cdef TensorRef _blank():
    cdef TensorRef ref = TensorRef.__new__(TensorRef)
    ref.dims = ref.few
    ref.steps = ref.few + FEW
    return ref


cdef int _make_room(TensorRef ref, int nd) except -1:
    """Makes room for so many dimensions; called once."""
    cdef cnp.npy_intp* room
    if nd > FEW:
        room = <cnp.npy_intp*>malloc(2 * nd * sizeof(cnp.npy_intp))
        if room is NULL:
            raise MemoryError
        ref.dims = room
        ref.steps = room + nd
    ref.nd = nd
    return 0


cdef tuple _extent(object shape, object strides, object itemsize):
    """Offsets of the lowest and highest byte of an array, from its first element."""
    if 0 in shape:
        return 0, 0
    low, high = 0, itemsize
    for dim, step in zip(shape, strides):
        if step < 0:
            low += (dim - 1) * step
        else:
            high += (dim - 1) * step
    return low, high


cdef TensorRef new_ref(Core core, Handle request, object array, object who):
    cdef Status status
    cdef int i
    cdef Py_ssize_t low = 0, high = 0, reach
    if not is_shared(core):
        hooks.messages.not_shared(who)
    if array is not None and not isinstance(array, (cnp.ndarray, DeviceArray)):
        raise InvalidTypeError(f"a reference is to an array of the request, got {type(array).__name__}")
    cdef TensorRef ref = _blank()
    cdef cnp.ndarray source
    cdef DeviceArray on_device = None
    cdef char* data = NULL
    cdef bint empty = False
    if array is None:
        ref.descr = cnp.dtype("u1")
        _make_room(ref, 1)
        ref.dims[0] = 0
        ref.steps[0] = 1
    else:
        if isinstance(array, DeviceArray):
            on_device = array
            ref.descr = on_device.dtype
            data = <char*><uintptr_t>on_device.address
        else:
            source = array
            ref.descr = source.descr
            data = <char*>cnp.PyArray_DATA(source)
        _dtype_text(ref.descr)  # raises here rather than when the reference is sent
        _make_room(ref, array.ndim)
        high = ref.descr.itemsize
        for i in range(ref.nd):
            if on_device is not None:
                ref.dims[i] = on_device.shape[i]
                ref.steps[i] = on_device.strides[i]
            else:
                ref.dims[i] = cnp.PyArray_DIM(source, i)
                ref.steps[i] = cnp.PyArray_STRIDE(source, i)
            empty = empty or ref.dims[i] == 0
            reach = (ref.dims[i] - 1) * ref.steps[i]
            if reach < 0:
                low += reach
            else:
                high += reach
        if empty:
            low = high = 0
    ref.first = -low
    ref.target.pool_id = shared_id(core)
    ref.target.generation = request.generation
    ref.target.slot = request.slot
    ref.target.nbytes = <uint64_t>(high - low)
    status = refer(core, request, data + low, ref.target.nbytes, &ref.target.offset, &ref.target.seal)
    if status == Status.invalid_argument:
        hooks.messages.not_of_the_request(array, who)
    if status != Status.ok:
        failed(core, who, status, 0, None)
    return ref


only_made_by(TensorRef, "a TensorRef is made by Request.ref(array) or TensorRef.from_bytes(data)")

include "peer.pxi"
