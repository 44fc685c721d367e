# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""What a device sees of an array: `device_pointer`."""

cimport numpy as cnp
from libc.stdint cimport uint64_t, uintptr_t

from slabpool._core.array cimport Core
from slabpool._core.copies cimport address_for
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_dlpack cimport kCudaHost, kCudaManaged
from slabpool._core.cpp_memory cimport MemoryKind
from slabpool._core.device_array cimport DeviceArray, device_array
from slabpool._core.reachable cimport reachable_core

import numpy as np

from slabpool.errors import InvalidArgumentError, InvalidTypeError

cnp.import_array()


cdef class DevicePointer(DeviceArray):
    """A `DeviceArray` that stands for its address where an int is wanted; made by `device_pointer`."""

    def __int__(self):
        return self.address

    def __index__(self):
        return self.address


def device_pointer(array):
    """What a CUDA device sees of an array in pinned or managed memory: the same elements, without a copy.

    Parameters
    ----------
    array : numpy.ndarray or DeviceArray
        In the memory of a pool of ``memory="pinned"``, ``"pinned:N"`` or ``"managed:N"``, slices too; or a
        `DeviceArray` of any pool.

    Returns
    -------
    DeviceArray
        One that can also be given where an int, the address, is wanted. It keeps the array.

    Raises
    ------
    InvalidArgumentError
        An array in other memory, which no device reaches.
    InvalidTypeError
        Not an array.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> if slabpool.cuda.is_available():
    ...     pool = slabpool.Pool("16MiB", memory="pinned")
    ...     x = pool.zeros((2, 3), np.float32)
    ...     shape = slabpool.device_pointer(x[1:]).__cuda_array_interface__["shape"]
    ... else:
    ...     shape = (1, 3)
    >>> shape
    (1, 3)
    """
    cdef DeviceArray given
    cdef Core core
    cdef Block* block
    cdef uint64_t address
    cdef int device, place
    if isinstance(array, DeviceArray):
        given = array
        return given.as_kind(DevicePointer)
    if not isinstance(array, np.ndarray):
        raise InvalidTypeError(f"device_pointer takes a numpy array or a DeviceArray, got {type(array).__name__}")
    cdef void* data = cnp.PyArray_DATA(<cnp.ndarray>array)
    core = reachable_core(data)
    if core is None:
        raise InvalidArgumentError(
            f"an array of shape {array.shape} and dtype {array.dtype} that is in no pool of pinned or managed memory, so "
            "no device reaches it; make it in a pool of memory='pinned' or 'managed:N', or copy it there: pool.copy(array)")
    block = core.pool.find_held(data)
    device = max(core.pool.device(), 0)
    address = <uint64_t><uintptr_t>data
    if core.pool.memory() == MemoryKind.managed:
        place = kCudaManaged
    else:
        place = kCudaHost
        address = address_for(device, address)
    return device_array(DevicePointer, array, core, block, address, array.shape, array.strides, array.dtype, device,
                        place, not array.flags.writeable)
