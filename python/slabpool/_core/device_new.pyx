# cython: language_level=3, boundscheck=False, wraparound=False, binding=False
"""How arrays in device memory are made and filled: what `wrap`, `full` and `copy` do where the host cannot.

All of it is done when the call returns, for every stream. Values are converted, and arguments looked at, before
anything is allocated.
"""

cimport cython
cimport numpy as cnp
from libc.stdint cimport uint64_t, uintptr_t

from slabpool._core.array cimport Core, Maker, Shape, as_dtype, new_array, own
from slabpool._core.copies cimport copy_elements, order_streams, repeat_bytes
from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_copies cimport Stream, kLegacyStream
from slabpool._core.cpp_dlpack cimport kCpu, kCuda, kCudaManaged
from slabpool._core.cpp_request cimport Handle
from slabpool._core.device_array cimport DeviceArray, check_near, device_array
from slabpool._core.dlpack cimport Taken, take
from slabpool._core.stream cimport stream_of

import numpy as np

from slabpool._core import strides as _strided
from slabpool.errors import InvalidArgumentError, InvalidTypeError

cnp.import_array()

# Types of DLPack devices whose memory a CUDA device reaches.
cdef tuple OURS = (kCuda, kCudaManaged)


cdef class DeviceMaker(Maker):
    cdef object wrap(self, Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape):
        cdef object owner = own(core, block, True)
        cdef tuple dims = tuple([shape.dims[i] for i in range(shape.nd)])
        return device_array(DeviceArray, owner, core, block, <uintptr_t>data, dims,
                            _strided.c_strides(dims, dtype.itemsize), dtype, core.pool.device(), kCuda, False)

    cdef object full(self, Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who):
        cdef cnp.dtype descr = as_dtype(np.asarray(value).dtype if dtype is None else dtype)
        cdef DeviceArray array
        cdef cnp.ndarray element
        cdef const unsigned char* raw
        cdef uint64_t nbytes, itemsize = descr.itemsize
        cdef str what
        if np.ndim(value) == 0:
            element = np.empty((), descr)
            np.copyto(element, value, casting="unsafe")
        else:
            element = np.empty(shape, descr)  # a value for each element, or one that is broadcast
            np.copyto(element, value, casting="unsafe")
            return self.copy(core, request, element, align, timeout, who)
        array = new_array(core, request, shape, descr, align, False, timeout, who)
        nbytes = array.nbytes
        if nbytes == 0:
            return array
        what = f"filling {nbytes} bytes"
        raw = <const unsigned char*>cnp.PyArray_DATA(element)
        if raw[:itemsize] == raw[:1] * itemsize:
            repeat_bytes(array.device, kLegacyStream, array.address, nbytes, 0, raw[0], what)
        else:
            copy_elements(array.device, kLegacyStream, (), itemsize, array.address, (), <uintptr_t>raw, (), None, what)
            repeat_bytes(array.device, kLegacyStream, array.address, nbytes, itemsize, 0, what)
        return array

    cdef object copy(self, Core core, Handle request, object source, object align, object timeout, object who):
        cdef _Source found = _source_of(core, source)
        cdef DeviceArray array = new_array(core, request, found.shape, found.dtype, align, False, timeout, who)
        if found.stream is not NULL:
            order_streams(array.device, found.stream, kLegacyStream, "waiting for the stream of the array's producer")
        copy_elements(array.device, kLegacyStream, found.shape, found.dtype.itemsize, array.address, array.strides,
                      found.address, found.strides, None, f"copying {array.nbytes} bytes to the device")
        return array


cdef Maker _maker = DeviceMaker()


cdef Maker device_maker():
    return _maker


@cython.final
cdef class _Source:
    """What is to be copied, wherever it is."""

    cdef object keep
    cdef uint64_t address
    cdef tuple shape
    cdef tuple strides
    cdef cnp.dtype dtype
    cdef Stream stream      # null: nothing to wait for


cdef _Source _source_of(Core core, object given):
    cdef _Source source = _Source.__new__(_Source)
    cdef DeviceArray array
    source.keep = given
    if isinstance(given, DeviceArray):
        array = given
        check_near(array, core.pool.device(), kCuda)
        source.address = array.address
        source.shape = array.shape
        source.strides = array.strides
        source.dtype = array.dtype
        source.stream = array.queued_on
        return source
    if not isinstance(given, (np.ndarray, np.generic)):
        interface = getattr(given, "__cuda_array_interface__", None)
        if interface is not None:
            return _of_interface(source, interface)
        if hasattr(given, "__dlpack_device__") and given.__dlpack_device__()[0] != kCpu:
            return _of_dlpack(source, given)
    host = np.asarray(given)
    as_dtype(host.dtype)  # raises for objects
    source.keep = host
    source.address = <uintptr_t>cnp.PyArray_DATA(<cnp.ndarray>host)
    source.shape = host.shape
    source.strides = host.strides
    source.dtype = host.dtype
    return source


cdef _Source _of_interface(_Source source, object interface):
    if interface.get("mask") is not None:
        raise InvalidArgumentError("the array has a mask, which is not copied; give the data and the mask one by one")
    source.address = interface["data"][0]
    source.shape = tuple(interface["shape"])
    source.dtype = as_dtype(np.dtype(interface["typestr"]))
    strides = interface.get("strides")
    source.strides = _strided.c_strides(source.shape, source.dtype.itemsize) if strides is None else tuple(strides)
    stream = interface.get("stream")
    if stream is not None:
        if stream == 0:
            raise InvalidArgumentError("its __cuda_array_interface__ names stream 0, which that interface does not allow")
        source.stream = stream_of(stream)
    return source


cdef _Source _of_dlpack(_Source source, object given):
    cdef Taken taken
    device = given.__dlpack_device__()
    if device[0] not in OURS:
        raise InvalidTypeError(
            f"the array is on DLPack device {tuple(device)}, from where a CUDA device cannot copy; copy it to the host first")
    # The producer makes our stream wait for the array.
    try:
        capsule = given.__dlpack__(stream=<uintptr_t>kLegacyStream, max_version=(1, 0))
    except TypeError:  # from before DLPack 1.0
        capsule = given.__dlpack__(stream=<uintptr_t>kLegacyStream)
    taken = take(capsule)
    source.keep = (given, taken)
    source.address = taken.address
    source.shape = taken.shape
    source.strides = taken.strides
    source.dtype = taken.dtype
    return source
