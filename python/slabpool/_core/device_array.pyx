# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""Arrays over memory that a CUDA device reaches and the host may not: shape, dtype and address, never contents.

Invariants: the host reads and writes nothing here; everything that shows these elements (a slice, a capsule, a copy
that is under way) keeps the owner, and with it the block; nothing is copied unless the caller asks for a copy.
"""

cimport cython
cimport numpy as cnp
from libc.stdint cimport uint64_t, uintptr_t

from slabpool._core.array cimport allocate, as_dtype, new_array, own
from slabpool._core.core cimport (
    NO_REQUEST, Shape, device_of, find_held, is_reachable, memory_of, only_made_by, owner_of, reachable_core,
)
from slabpool._core.cpp_cuda cimport kLegacyStream
from slabpool._core.cpp_dlpack cimport kCpu, kCuda, kCudaHost, kCudaManaged, kIsCopied, kReadOnly
from slabpool._core.cpp_memory cimport MemoryKind
from slabpool._core.cpp_request cimport Handle
from slabpool._core.cuda cimport address_for, copy_elements, order_streams, repeat_bytes, stream_of

import operator

import numpy as np

from slabpool._core import strides as _strides
from slabpool.arguments.texts import short, show
from slabpool.errors import InvalidArgumentError, InvalidTypeError

cnp.import_array()  # or a dtype's size is read as numpy 1 had it

include "dlpack.pxi"


cdef _no_contents(str what, str instead="copy_to_host() gives a numpy array"):
    raise InvalidTypeError(f"{what}: its elements are in device memory, and nothing is copied implicitly; {instead}")


cdef class DeviceArray:
    """An array in the memory of a CUDA device, returned by pools of ``memory="cuda:0"`` instead of numpy arrays.

    It has a shape, a dtype and an address; only kernels on the device read and write its contents. Libraries take it
    without a copy through ``__dlpack__`` or ``__cuda_array_interface__``; `copy_to_host`, `copy_from_host` and
    `copy_to` copy. A live array keeps its block, as a numpy array of a host pool does. So do its slices, and tensors
    that other libraries made of it through DLPack. Work that is still queued on a stream does *not* keep the block:
    keep the array until the work is done, or let the array's request wait for it (``request.ack(device,
    stream=stream)``).

    Ints, slices, ``...`` and ``None`` as an index, `reshape`, `transpose` and `view` return arrays over the same
    memory. Anything that would need a copy is refused.

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

    # ---- what it is

    cdef bint is_contiguous(self):
        return _strides.is_c_contiguous(self.shape, self.strides, self.dtype.itemsize)

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
        """Handle of the stream that the array is used on (int), which other libraries wait for.

        1, the legacy default stream, unless the array was made with `on`.
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
        if self.place == kCuda:
            where = f"cuda:{self.device}"
        else:
            where = f"{'pinned' if self.place == kCudaHost else 'managed'} memory, device {self.device}"
        if self.core is not None:
            generation = owner_of(self.core, self.block).generation
            if generation:
                where += f", of request generation {generation}"
        return f"<{type(self).__name__} {self.shape} {short(str(self.dtype), 100)} on {where}>"

    # ---- other arrays over the same memory

    cdef DeviceArray over(self, uint64_t address, tuple shape, tuple strides, cnp.dtype dtype):
        cdef DeviceArray array
        if len(shape) > 64:
            raise InvalidArgumentError(f"an array has at most 64 dimensions, not {len(shape)}")
        array = self.again(isinstance(self, DevicePointer))
        array.address = address
        array.shape = shape
        array.strides = strides
        array.dtype = dtype
        return array

    cdef DeviceArray again(self, bint pointer):
        """The same array as another object; with `pointer` a DevicePointer."""
        cdef DeviceArray array = device_array(self.owner, self.core, self.block, self.address, self.shape, self.strides,
                                              self.dtype, self.device, self.place, self.readonly_, pointer)
        array.queued_on = self.queued_on
        return array

    def on(self, stream):
        """The same array, used on a stream: other libraries then wait for that stream.

        The call queues nothing and waits for nothing.

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
        shape, strides, offset = _strides.index(self.shape, self.strides, key)
        return self.over(<uint64_t>(self.address + <Py_ssize_t>offset), shape, strides, self.dtype)

    def reshape(self, *shape):
        """The same elements, in C order, as another shape; one dimension may be -1.

        Raises
        ------
        InvalidArgumentError
            Another number of elements, or that shape would need a copy.
        """
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        new, strides = _strides.reshape(self.shape, self.strides, self.dtype.itemsize, shape)
        return self.over(self.address, new, strides, self.dtype)

    def transpose(self, *axes):
        """The array with its axes in another order; reversed by default."""
        if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
            axes = axes[0]
        shape, strides = _strides.transpose(self.shape, self.strides, axes or None)
        return self.over(self.address, shape, strides, self.dtype)

    def view(self, dtype):
        """The same bytes as elements of another dtype.

        Raises
        ------
        InvalidArgumentError
            The new items are of another size, and the last axis is not contiguous or not a multiple of it.
        InvalidTypeError
            Not a dtype, or one that holds Python objects.
        """
        cdef cnp.dtype new = as_dtype(dtype)
        shape, strides = _strides.view(self.shape, self.strides, self.dtype, new)
        return self.over(self.address, shape, strides, new)

    # ---- for other libraries

    @property
    def __cuda_array_interface__(self):
        # Version 3, as Numba's documentation defines it: the address of an empty array is 0, and 0 is no stream.
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
        """A DLPack capsule over these elements, which keeps their block.

        Parameters
        ----------
        stream : int, optional
            Handle of the consumer's stream: work queued there from now on waits for the work on this array's own
            `stream`. 1 or None is the legacy default stream, 2 the per-thread one; with -1 nothing waits.
        max_version : tuple of int, optional
            The newest version of DLPack that the consumer knows; by default the one before 1.0.
        dl_device : tuple of int, optional
            The device on which the consumer wants it; only its own device is possible.
        copy : bool, optional
            If true, the capsule is over a copy in the same pool that belongs to no request. By default nothing is
            copied.

        Raises
        ------
        BufferError
            Another device, or a dtype or strides that DLPack cannot express.
        InvalidArgumentError
            Stream 0, which DLPack does not allow because it is ambiguous.
        """
        if dl_device is not None and tuple(dl_device) != (self.place, self.device):
            raise BufferError(
                f"this array is on DLPack device {(self.place, self.device)}, and {tuple(dl_device)} was asked for; "
                "nothing is copied implicitly, copy_to_host() gives a numpy array")
        if max_version is None or max_version[0] < 1:
            version = None
        else:
            version = (operator.index(max_version[0]), operator.index(max_version[1]))
        cdef uint64_t flags = kReadOnly if self.readonly_ else 0
        if flags and version is None:
            raise BufferError(
                "this array is read-only, which DLPack before 1.0 cannot express; pass max_version=(1, 0)")
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
            The destination, of the same shape and dtype. By default a new array.
        stream : int, or a stream of torch, CuPy, Numba or cuda.core, optional
            Queue the copy there. By default it is queued on the array's own stream, and the call waits for it.

        Returns
        -------
        numpy.ndarray
            `out`, or the new array. With `stream`, and `out` in pinned or managed memory of a slabpool pool, the call
            returns once the copy is queued: synchronise the stream before you read. Both memories are kept until then,
            also if the arrays die. In all other cases the copy is done when the call returns.

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
            Queue the copy there. With `array` in pinned or managed memory of a slabpool pool the call returns once the
            copy is queued: do not change the array before the stream has passed the copy. Both memories are kept until
            then. By default, and in all other cases, the copy is done when the call returns.

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
            Queue the copy there and return; both memories are kept until it is done. By default it is queued on this
            array's stream, and the call waits for it.

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


include "device_makers.pxi"

only_made_by(DeviceArray, "a DeviceArray is made by a pool of memory='cuda:N' or its requests: pool.empty(...)")
only_made_by(DevicePointer, "a DevicePointer is made by device_pointer(array)")
