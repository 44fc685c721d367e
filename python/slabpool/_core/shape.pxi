# Part of array.pyx. Shapes, dtypes and alignments as callers pass them.

# The dtype of the last call and what it became: most programs pass the same one each time.
cdef object _last_asked = None
cdef cnp.dtype _last_dtype = None


cdef cnp.dtype _new_dtype(object asked):
    global _last_asked, _last_dtype
    cdef cnp.dtype dtype
    try:
        dtype = np.dtype(asked)
    except Exception as error:  # numpy has many, and shows what it refuses
        raise InvalidTypeError(
            f"dtype must be something numpy understands, got {show(asked)}: {short(str(error), 200)}") from None
    if holds_objects(<PyObject*>dtype):
        raise InvalidTypeError(
            f"dtype {short(str(dtype), 100)} holds Python objects, which pooled memory cannot keep; "
            "use a dtype of plain values (numbers, bytes, fixed-length text, structures of these)"
        )
    if dtype.itemsize == 0:
        dtype = np.empty(0, dtype).dtype  # text without a length: numpy makes it one character
    if isinstance(asked, (type, str)):  # not a list of fields, which may change
        _last_asked = asked
        _last_dtype = dtype
    return dtype


cdef cnp.dtype as_dtype(object dtype):
    if dtype is _last_asked and dtype is not None:
        return _last_dtype
    if isinstance(dtype, cnp.dtype) and not holds_objects(<PyObject*>dtype) and (<cnp.dtype>dtype).itemsize != 0:
        return <cnp.dtype>dtype
    return _new_dtype(dtype)


cdef _bad_shape(object shape):
    if isinstance(shape, (tuple, list)):
        for dim in shape:
            try:
                if operator.index(dim) < 0:
                    raise InvalidArgumentError(f"shape has a negative dimension: {show(shape)}")
            except TypeError:
                raise InvalidTypeError(
                    f"shape must be an int or a tuple of ints, got {show(shape)} with a dimension of type "
                    f"{type(dim).__name__}"
                ) from None
        raise InvalidArgumentError(f"shape is too large: {show(shape)} has more bytes than an address can hold")
    raise InvalidTypeError(f"shape must be an int or a tuple of ints, got {show_typed(shape)}")


cdef uint64_t parse_shape(object shape, Py_ssize_t itemsize, Shape* out) except? 0xFFFFFFFFFFFFFFFF:
    cdef long long plain = plain_shape(<PyObject*>shape, itemsize, out.dims)
    if plain >= 0:
        out.nd = <int>PyTuple_GET_SIZE(shape)
        return <uint64_t>plain
    return _parse_shape(shape, itemsize, out)


cdef uint64_t _parse_shape(object shape, Py_ssize_t itemsize, Shape* out) except? 0xFFFFFFFFFFFFFFFF:
    cdef unsigned long long nbytes = <unsigned long long>itemsize
    cdef Py_ssize_t dim
    cdef int i
    if type(shape) is int:
        dim = as_dim(<PyObject*>shape)
        if dim < 0 or mul_overflows(nbytes, <unsigned long long>dim, &nbytes) or nbytes > 0x7FFFFFFFFFFFFFFF:
            _bad_shape((shape,))
        out.nd = 1
        out.dims[0] = dim
        return nbytes
    if type(shape) is not tuple:
        if isinstance(shape, (list, tuple)):
            shape = tuple(shape)
        else:
            try:
                shape = (operator.index(shape),)
            except TypeError:
                _bad_shape(shape)
    cdef Py_ssize_t nd = PyTuple_GET_SIZE(shape)
    if nd > MAX_DIMS:
        raise InvalidArgumentError(f"shape has {nd} dimensions; numpy arrays have at most {MAX_DIMS}")
    out.nd = <int>nd
    cdef bint empty = False
    for i in range(out.nd):
        dim = as_dim(<PyObject*>PyTuple_GET_ITEM(shape, i))
        if dim < 0:
            _bad_shape(shape)
        out.dims[i] = dim
        if dim == 0:
            empty = True
        elif mul_overflows(nbytes, <unsigned long long>dim, &nbytes) or nbytes > 0x7FFFFFFFFFFFFFFF:
            _bad_shape(shape)
    return 0 if empty else nbytes


cdef uint64_t _parse_align(object align) except 0:
    try:
        value = operator.index(align)
    except TypeError:
        raise InvalidTypeError(f"align must be an int, got {show_typed(align)}") from None
    if value < 1 or value > kMaxAlign or value & (value - 1):
        raise InvalidArgumentError(f"align must be a power of two from 1 to {kMaxAlign} bytes, got {show(value)}")
    return value
