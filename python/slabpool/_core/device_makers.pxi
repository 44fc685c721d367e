# Part of device_array.pyx. How device arrays are made and filled: what wrap(), new_full() and new_copy() do where the
# host cannot access the memory, and device_pointer().
#
# All work is done when a call returns, for every stream. Values are converted, and arguments checked, before anything
# is allocated.

cdef DeviceArray device_array(object owner, Core core, Block* block, uint64_t address, tuple shape, tuple strides,
                              cnp.dtype dtype, int device, int place, bint readonly, bint pointer=False):
    cdef DeviceArray array
    if pointer:
        array = DevicePointer.__new__(DevicePointer)
    else:
        array = DeviceArray.__new__(DeviceArray)
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
    """A copy in C order, in the array's pool and held by no request; made on the array's stream."""
    cdef Core core = array.core
    cdef uint64_t nbytes = array.nbytes
    cdef Block* block = allocate(core, NO_REQUEST, nbytes, 64, True, False, None, None)
    cdef object owner = own(core, block, True)
    cdef tuple strides = _strides.c_strides(array.shape, array.dtype.itemsize)
    cdef DeviceArray made = device_array(
        owner, core, block, <uintptr_t>block.data, array.shape, strides, array.dtype, array.device,
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
    """Raises for a copy between two devices: device memory is mapped for one device only."""
    if array.device != device and array.place == kCuda and place == kCuda:
        raise InvalidArgumentError(
            f"the array is on device {array.device} and the copy would be on device {device}; copy through the host: "
            "copy_to_host() into an array of a pinned pool, and copy_from_host() from there")
    return 0


cdef int check_writable(DeviceArray array) except -1:
    if array.readonly_:
        raise InvalidArgumentError("this device's array is read-only")
    return 0


# ---- the maker of pools of device memory

# Types of DLPack devices whose memory a CUDA device reaches.
cdef tuple OURS = (kCuda, kCudaManaged)


cdef class DeviceMaker(Maker):
    cdef object wrap(self, Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape):
        cdef object owner = own(core, block, True)
        cdef tuple dims = tuple([shape.dims[i] for i in range(shape.nd)])
        return device_array(owner, core, block, <uintptr_t>data, dims,
                            _strides.c_strides(dims, dtype.itemsize), dtype, device_of(core), kCuda, False)

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
    """The source of a copy, in host or device memory."""

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
        check_near(array, device_of(core), kCuda)
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
        raise InvalidArgumentError("the array has a mask, which is not copied; pass the data and the mask separately")
    source.address = interface["data"][0]
    source.shape = tuple(interface["shape"])
    source.dtype = as_dtype(np.dtype(interface["typestr"]))
    strides = interface.get("strides")
    source.strides = _strides.c_strides(source.shape, source.dtype.itemsize) if strides is None else tuple(strides)
    stream = interface.get("stream")
    if stream is not None:
        if stream == 0:
            raise InvalidArgumentError(
                "its __cuda_array_interface__ names stream 0, which that interface does not allow")
        source.stream = stream_of(stream)
    return source


cdef _Source _of_dlpack(_Source source, object given):
    cdef Taken taken
    device = given.__dlpack_device__()
    if device[0] not in OURS:
        raise InvalidTypeError(
            f"the array is on DLPack device {tuple(device)}, from which a CUDA device cannot copy; "
            "copy it to the host first")
    # The producer makes this stream wait for the array.
    try:
        capsule = given.__dlpack__(stream=<uintptr_t>kLegacyStream, max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = given.__dlpack__(stream=<uintptr_t>kLegacyStream)
    taken = take(capsule)
    source.keep = (given, taken)
    source.address = taken.address
    source.shape = taken.shape
    source.strides = taken.strides
    source.dtype = taken.dtype
    return source


# ---- pinned and managed memory

cdef class DevicePointer(DeviceArray):
    """A `DeviceArray` that is its address where an int is expected; made by `device_pointer`."""

    def __int__(self):
        return self.address

    def __index__(self):
        return self.address


def device_pointer(array):
    """The elements of an array in pinned or managed memory, as a CUDA device accesses them; no copy.

    Parameters
    ----------
    array : numpy.ndarray or DeviceArray
        In the memory of a pool of ``memory="pinned"``, ``"pinned:N"`` or ``"managed:N"``, slices too; or a
        `DeviceArray` of any pool.

    Returns
    -------
    DeviceArray
        It can also be passed where an int, the address, is expected. It keeps the array alive.

    Raises
    ------
    InvalidArgumentError
        The array is in other memory, which no device can access.
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
        return given.again(True)
    if not isinstance(array, np.ndarray):
        raise InvalidTypeError(f"device_pointer takes a numpy array or a DeviceArray, got {type(array).__name__}")
    cdef void* data = cnp.PyArray_DATA(<cnp.ndarray>array)
    core = reachable_core(data)
    if core is None:
        raise InvalidArgumentError(
            f"an array of shape {array.shape} and dtype {array.dtype} that is in no pool of pinned or managed memory, "
            "so no device can access it; make it in a pool of memory='pinned' or 'managed:N', or copy it there: "
            "pool.copy(array)")
    block = find_held(core, data)
    device = max(device_of(core), 0)
    address = <uint64_t><uintptr_t>data
    if memory_of(core) == MemoryKind.managed:
        place = kCudaManaged
    else:
        place = kCudaHost
        address = address_for(device, address)
    return device_array(array, core, block, address, array.shape, array.strides, array.dtype, device, place,
                        not array.flags.writeable, True)
