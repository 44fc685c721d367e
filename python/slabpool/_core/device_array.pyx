# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Arrays over memory that a CUDA device reaches and the host may not: shape, dtype and address, never contents.

What must stay true: the host reads and writes nothing here; whatever shows these elements (a slice, a capsule,
a copy that is under way) has the owner, and with it the block; nothing is copied that nobody asked to copy.
"""

cimport cython
cimport numpy as cnp
from libc.stdint cimport uint64_t, uintptr_t

from slabpool._core.array cimport NO_REQUEST, Core, allocate, as_dtype, own
from slabpool._core.copies cimport copy_elements, order_streams
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_copies cimport Stream, kLegacyStream
from slabpool._core.cpp_dlpack cimport kCuda, kCudaHost, kIsCopied, kReadOnly
from slabpool._core.cpp_request cimport Handle
from slabpool._core.dlpack cimport give
from slabpool._core.reachable cimport is_reachable
from slabpool._core.stream cimport stream_of

import operator

import numpy as np

from slabpool._core import strides as _strided
from slabpool.errors import InvalidArgumentError, InvalidTypeError

cnp.import_array()

cdef bint _making = False  # by the functions here, and not by somebody who calls the type


cdef _no_contents(str what, str instead="copy_to_host() gives a numpy array"):
    raise InvalidTypeError(f"{what}: its elements are in the memory of a device, and nothing is copied unasked; {instead}")


cdef class DeviceArray:
    """An array in the memory of a CUDA device: what pools of ``memory="cuda:0"`` give in place of numpy arrays.

    It has a shape, a dtype and an address; its contents are read and written by whatever works on the device.
    Libraries take it without a copy through ``__dlpack__`` or ``__cuda_array_interface__``, and `copy_to_host`,
    `copy_from_host` and `copy_to` copy. A live array keeps its block, as a numpy array of a host pool does: so
    do its slices, and tensors that other libraries made of it through DLPack. What ends *later* than the last of them
    is work that is still queued on a stream: keep the array until it is done, or let the array's request
    wait for it (``request.ack(device, stream=stream)``).

    Ints, slices, ``...`` and ``None`` as an index, `reshape`, `transpose` and `view` give arrays over the same
    memory. Whatever would have to copy is refused.

    Attributes
    ----------
    shape, strides : tuple of int
        Strides in bytes.
    dtype : numpy.dtype
    device : int
        Number of the CUDA device.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> def roundtrip(pool):
    ...     x = pool.copy(np.arange(6, dtype="f4").reshape(2, 3))
    ...     return x[:, 1:].T.copy_to_host().tolist()
    >>> if slabpool.cuda.is_available():
    ...     result = roundtrip(slabpool.Pool("64MiB", memory="cuda:0"))
    ... else:
    ...     result = [[1.0, 4.0], [2.0, 5.0]]
    >>> result
    [[1.0, 4.0], [2.0, 5.0]]
    """

    def __cinit__(self):
        if not _making:
            raise InvalidTypeError("a DeviceArray is made by a pool of memory='cuda:N' or its requests: pool.empty(...)")

    # ---- what it is

    cdef bint is_contiguous(self):
        return _strided.is_c_contiguous(self.shape, self.strides, self.dtype.itemsize)

    @property
    def ndim(self):
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self):
        """Number of elements."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size

    @property
    def itemsize(self):
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self):
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def ptr(self):
        """Address of the first element, for the device."""
        return self.address

    @property
    def stream(self):
        """Handle of the stream that the array is used on: what other libraries are told to wait for.

        1, the legacy default stream, unless it was made with `on`.
        """
        return <uintptr_t>self.queued_on

    @property
    def T(self):
        """The array with its axes reversed; no copy."""
        return self.transpose()

    def __len__(self):
        if not self.shape:
            raise InvalidTypeError("len() of a 0-d array")
        return self.shape[0]

    def __repr__(self):
        cdef Handle owner
        if self.place == kCuda:
            where = f"cuda:{self.device}"
        else:
            where = f"{'pinned' if self.place == kCudaHost else 'managed'} memory, device {self.device}"
        if self.core is not None and self.core.pool.usable_here():
            owner = self.core.pool.owner_of(self.block[0])
            if owner.generation:
                where += f", of request generation {owner.generation}"
        return f"<{type(self).__name__} {self.shape} {self.dtype} on {where}>"

    # ---- other arrays over the same memory

    cdef DeviceArray over(self, uint64_t address, tuple shape, tuple strides, cnp.dtype dtype):
        cdef DeviceArray array
        if len(shape) > 64:
            raise InvalidArgumentError(f"an array has at most 64 dimensions, not {len(shape)}")
        array = self.as_kind(type(self))
        array.address = address
        array.shape = shape
        array.strides = strides
        array.dtype = dtype
        return array

    cdef DeviceArray as_kind(self, type kind):
        """The same, of another type."""
        cdef DeviceArray array = device_array(kind, self.owner, self.core, self.block, self.address, self.shape,
                                              self.strides, self.dtype, self.device, self.place, self.readonly_)
        array.queued_on = self.queued_on
        return array

    def on(self, stream):
        """The same array, used on a stream: other libraries are told to wait for that one.

        Nothing is queued or waited for here.

        Parameters
        ----------
        stream : int, or a stream of torch, CuPy, Numba or cuda.core
            None: the legacy default stream.

        Returns
        -------
        DeviceArray
        """
        cdef Stream handle = stream_of(stream)
        cdef DeviceArray array = self.over(self.address, self.shape, self.strides, self.dtype)
        array.queued_on = handle
        return array

    def __getitem__(self, key):
        shape, strides, offset = _strided.index(self.shape, self.strides, key)
        return self.over(<uint64_t>(self.address + <Py_ssize_t>offset), shape, strides, self.dtype)

    def reshape(self, *shape):
        """The same elements, in C order, as another shape; one dimension may be -1.

        Raises
        ------
        InvalidArgumentError
            Not as many elements, or that shape would need a copy.
        """
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        new, strides = _strided.reshape(self.shape, self.strides, self.dtype.itemsize, shape)
        return self.over(self.address, new, strides, self.dtype)

    def transpose(self, *axes):
        """The array with its axes in another order; reversed by default."""
        if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
            axes = axes[0]
        shape, strides = _strided.transpose(self.shape, self.strides, axes or None)
        return self.over(self.address, shape, strides, self.dtype)

    def view(self, dtype):
        """The same bytes as elements of another dtype.

        Raises
        ------
        InvalidArgumentError
            The items are of another size, and the last axis does not consist of whole ones side by side.
        InvalidTypeError
            Not a dtype, or one that holds Python objects.
        """
        cdef cnp.dtype new = as_dtype(dtype)
        shape, strides = _strided.view(self.shape, self.strides, self.dtype, new)
        return self.over(self.address, shape, strides, new)

    # ---- for other libraries

    @property
    def __cuda_array_interface__(self):
        # Version 3, as Numba's documentation defines it: 0 is the address of what is empty, and no stream.
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.address if self.size else 0, bool(self.readonly_)),
            "strides": None if self.is_contiguous() else self.strides,
            "version": 3,
            "stream": <uintptr_t>self.queued_on,
        }

    def __dlpack_device__(self):
        """(type, number) of the device, by DLPack's numbers: 2 is CUDA, 3 pinned memory, 13 managed memory."""
        return self.place, self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule over these elements, which keeps their memory.

        Parameters
        ----------
        stream : int, optional
            The consumer's, by its handle: what is queued there from now on waits for what is queued on this array's
            own `stream`. 1 or None is the legacy default stream, 2 the per-thread one, -1: nothing waits.
        max_version : tuple of int, optional
            The newest version of DLPack that the consumer knows; by default that from before 1.0.
        dl_device : tuple of int, optional
            Where the consumer wants it; only where it is.
        copy : bool, optional
            True: over a copy of its own, in the same pool and of no request. By default, and with False, nothing is copied.

        Raises
        ------
        BufferError
            Another device, or a dtype or strides that DLPack has no way to tell.
        InvalidArgumentError
            Stream 0, which DLPack does not allow because it does not say which one it is.
        """
        if dl_device is not None and tuple(dl_device) != (self.place, self.device):
            raise BufferError(
                f"this array is on DLPack device {(self.place, self.device)}, and {tuple(dl_device)} was asked for; "
                "nothing is copied unasked, copy_to_host() gives a numpy array")
        if max_version is None or max_version[0] < 1:
            version = None
        else:
            version = (operator.index(max_version[0]), operator.index(max_version[1]))
        cdef uint64_t flags = kReadOnly if self.readonly_ else 0
        if flags and version is None:
            raise BufferError("this array is read-only, which DLPack from before 1.0 cannot tell; pass max_version=(1, 0)")
        cdef bint waits = not (isinstance(stream, int) and stream == -1)
        cdef Stream consumer = kLegacyStream
        if waits and stream is not None:
            if operator.index(stream) == 0:
                raise InvalidArgumentError(
                    "stream 0 may be the legacy default stream or the per-thread one: pass 1 or 2, or -1 not to wait")
            consumer = stream_of(stream)
        cdef DeviceArray given = self
        if copy is not None and copy:
            if self.core is None:
                raise BufferError("there is no pool to copy this array into; copy_to() copies into an array of yours")
            given = copy_of(self)
            flags |= kIsCopied
        capsule = give(given.owner, given.address, given.shape, given.strides, given.dtype, given.place,
                       given.device, version, flags)
        if waits:
            order_streams(self.device, given.queued_on, consumer, "making the consumer's stream wait for the array")
        return capsule

    # ---- copies

    def copy_to_host(self, out=None, *, stream=None):
        """The elements as a numpy array.

        Parameters
        ----------
        out : numpy.ndarray, optional
            Where to; of the same shape and dtype. By default a new array.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            Queue the copy there, after what is queued there now. By default it is queued on the array's own
            stream and waited for.

        Returns
        -------
        numpy.ndarray
            `out`, or the new array. With `stream`, and `out` in pinned or managed memory of a slabpool pool, the
            call returns at once and the contents are there when the stream has come past the copy: synchronise it before
            you read. Both memories are kept until then, whatever becomes of the arrays. In all other cases
            the copy is done when the call returns.

        Raises
        ------
        InvalidArgumentError, InvalidTypeError
            `out` does not fit, or is read-only.
        DeviceLostError
            The GPU failed.

        Examples
        --------
        >>> import slabpool
        >>> def fetch(x, staging, stream):  # x on the device, staging an array of a pinned pool
        ...     x.copy_to_host(staging, stream=stream)
        ...     stream.synchronize()
        ...     return staging
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        elif not isinstance(out, np.ndarray):
            raise InvalidTypeError(f"out must be a numpy array, got {type(out).__name__}")
        elif not out.flags.writeable:
            raise InvalidArgumentError("out is read-only")
        check_same(self, out, "out")
        copy_elements(
            self.device, self.queued_on if stream is None else stream_of(stream), self.shape,
            self.dtype.itemsize, <uint64_t><uintptr_t>cnp.PyArray_DATA(<cnp.ndarray>out), out.strides,
            self.address, self.strides, (self.owner, out) if stream is not None and is_reachable(out) else None,
            f"copying {self.nbytes} bytes to the host")
        return out

    def copy_from_host(self, array, *, stream=None):
        """Overwrites the elements with those of a numpy array.

        Parameters
        ----------
        array : array_like
            Of the same shape and dtype: nothing is converted or broadcast.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            Queue the copy there, after what is queued there now. With `array` in pinned or managed memory of
            a slabpool pool the call then returns at once: change the array only when the stream has come past the copy.
            Both memories are kept until then. By default, and in all other cases, the copy is done when the call returns.

        Raises
        ------
        InvalidArgumentError
            Another shape or dtype, or this array is read-only.
        DeviceLostError
            The GPU failed.
        """
        source = np.asarray(array)
        check_same(self, source, "the array")
        check_writable(self)
        copy_elements(
            self.device, self.queued_on if stream is None else stream_of(stream), self.shape,
            self.dtype.itemsize, self.address, self.strides,
            <uint64_t><uintptr_t>cnp.PyArray_DATA(<cnp.ndarray>source), source.strides,
            (self.owner, source) if stream is not None and is_reachable(source) else None,
            f"copying {self.nbytes} bytes from the host")

    def copy_to(self, DeviceArray out not None, *, stream=None):
        """Copies the elements to another array on this device.

        Parameters
        ----------
        out : DeviceArray
            Of the same shape and dtype. If the two overlap, the result is undefined.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            Queue the copy there, after what is queued there now, and return at once; both memories are kept until
            it is done. By default it is queued on this array's stream and waited for.

        Returns
        -------
        DeviceArray
            `out`.
        """
        check_same(self, out, "out")
        check_near(self, out.device, out.place)
        check_writable(out)
        copy_elements(
            self.device, self.queued_on if stream is None else stream_of(stream), self.shape, self.dtype.itemsize,
            out.address, out.strides, self.address, self.strides,
            None if stream is None else (self.owner, out.owner), f"copying {self.nbytes} bytes on the device")
        return out

    # ---- what it is not

    def __array__(self, *args, **kwargs):
        _no_contents("a DeviceArray is no numpy array")

    def __iter__(self):
        _no_contents("a DeviceArray gives no elements one by one")

    def __contains__(self, item):
        _no_contents("a DeviceArray cannot be searched")

    def __setitem__(self, key, value):
        _no_contents("a DeviceArray takes no elements", "x[key].copy_from_host(array) copies to it")

    def __bool__(self):
        _no_contents("a DeviceArray is neither true nor false")

    def __float__(self):
        _no_contents("a DeviceArray is no number")

    def __complex__(self):
        _no_contents("a DeviceArray is no number")

    def __reduce__(self):
        raise InvalidTypeError(
            "a DeviceArray is memory of a device in this process: it cannot be pickled; copy_to_host() gives an array "
            "that can")


cdef DeviceArray device_array(type kind, object owner, Core core, Block* block, uint64_t address, tuple shape,
                              tuple strides, cnp.dtype dtype, int device, int place, bint readonly):
    """An array of this type over memory that `owner` keeps; `core` and `block` say whose it is, if it is a pool's."""
    global _making
    cdef DeviceArray array
    _making = True
    try:
        array = kind.__new__(kind)
    finally:
        _making = False
    array.owner = owner
    array.core = core
    array.block = block
    array.address = address
    array.queued_on = kLegacyStream
    array.dtype = dtype
    array.shape = shape
    array.strides = strides
    array.device = device
    array.place = place
    array.readonly_ = readonly
    return array


cdef DeviceArray copy_of(DeviceArray array):
    """A copy, in C order, in the array's pool and of no request; done on the array's stream."""
    cdef Core core = array.core
    cdef uint64_t nbytes = array.nbytes
    cdef Block* block = allocate(core, NO_REQUEST, nbytes, 64, True, False, None, None)
    cdef object owner = own(core, block, True)
    cdef tuple strides = _strided.c_strides(array.shape, array.dtype.itemsize)
    cdef DeviceArray made = device_array(
        DeviceArray, owner, core, block, <uintptr_t>block.data, array.shape, strides, array.dtype, array.device,
        array.place, False)
    copy_elements(array.device, array.queued_on, array.shape, array.dtype.itemsize, made.address, strides,
                  array.address, array.strides, (array.owner, owner), f"copying {nbytes} bytes on the device")
    made.queued_on = array.queued_on
    return made


cdef int check_same(DeviceArray array, object other, str what) except -1:
    if other.shape != array.shape:
        raise InvalidArgumentError(f"{what} must have the shape {array.shape}, and has {other.shape}")
    if other.dtype != array.dtype:
        raise InvalidArgumentError(
            f"{what} must have the dtype {array.dtype}, and has {other.dtype}; a copy converts nothing: use astype() "
            "on the host's side")
    return 0


cdef int check_near(DeviceArray array, int device, int place) except -1:
    """Mapped memory is mapped for one device, and only the host's is for all."""
    if array.device != device and array.place == kCuda and place == kCuda:
        raise InvalidArgumentError(
            f"the array is on device {array.device} and the copy would be on device {device}; copy through the host: "
            "copy_to_host() into an array of a pinned pool, and copy_from_host() from there")
    return 0


cdef int check_writable(DeviceArray array) except -1:
    if array.readonly_:
        raise InvalidArgumentError("this device's array is read-only")
    return 0
