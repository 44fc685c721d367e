# Part of device_array.pyx. DLPack capsules: tensors given to and taken from other libraries without a copy.
#
# Invariants: a tensor that is given keeps its owner until its deleter runs, which may be on any thread, without the
# GIL, and after Python has ended (the owner is leaked then); strides are never null.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New, PyCapsule_SetName
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t

from slabpool._core.cpp_dlpack cimport Managed, ManagedVersioned, Tensor

cdef extern from "Python.h":
    int Py_IsInitialized() nogil

cdef const char* NAME = "dltensor"
cdef const char* USED = "used_dltensor"
cdef const char* NAME_VERSIONED = "dltensor_versioned"
cdef const char* USED_VERSIONED = "used_dltensor_versioned"

# DLPack's codes of kinds of numbers, by numpy's letters; bfloat16 is a type that ml_dtypes adds to numpy.
cdef dict CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
cdef dict LETTERS = {code: letter for letter, code in CODES.items()}
cdef uint8_t BFLOAT = 4
cdef int BUILT_IN = 24  # types with numbers below are numpy's own; others may use its letters for something else
# The newest version whose rules are followed here.
cdef tuple KNOWN = (1, 2)


# ---- giving

cdef void _let_go(void* owner) noexcept with gil:
    Py_DECREF(<object>owner)


cdef void _delete(Managed* managed) noexcept nogil:
    if Py_IsInitialized():
        _let_go(managed.context)
    PyMem_RawFree(managed)


cdef void _delete_versioned(ManagedVersioned* managed) noexcept nogil:
    if Py_IsInitialized():
        _let_go(managed.context)
    PyMem_RawFree(managed)


# Destructors of capsules whose tensor was not taken; taking it renames the capsule.
cdef void _drop(object capsule) noexcept:
    cdef Managed* managed
    if PyCapsule_IsValid(capsule, NAME):
        managed = <Managed*>PyCapsule_GetPointer(capsule, NAME)
        managed.deleter(managed)


cdef void _drop_versioned(object capsule) noexcept:
    cdef ManagedVersioned* managed
    if PyCapsule_IsValid(capsule, NAME_VERSIONED):
        managed = <ManagedVersioned*>PyCapsule_GetPointer(capsule, NAME_VERSIONED)
        managed.deleter(managed)


cdef int _fill(Tensor* tensor, int64_t* room, uint64_t address, tuple shape, tuple strides, cnp.dtype dtype,
               int device_type, int device_id) except -1:
    cdef Py_ssize_t itemsize = dtype.itemsize
    cdef Py_ssize_t nd = len(shape)
    cdef Py_ssize_t i
    cdef int64_t stride
    code = CODES.get(chr(dtype.kind))
    if code is not None and dtype.num < BUILT_IN and dtype.isnative:
        tensor.dtype.code = code
    elif dtype.name == "bfloat16":
        tensor.dtype.code = BFLOAT
    else:
        raise BufferError(f"DLPack has no dtype for {dtype}; give a view as numbers: array.view('u1')")
    tensor.dtype.bits = <uint8_t>(itemsize * 8)
    tensor.dtype.lanes = 1
    for i in range(nd):
        room[i] = shape[i]
        stride = strides[i]
        if stride % itemsize != 0:
            if room[i] > 1:
                raise BufferError(
                    f"DLPack counts strides in elements, and {stride} bytes are no whole number of {dtype}; "
                    "copy the array first")
            stride = 0
        room[nd + i] = stride // itemsize
    tensor.data = <void*>address
    tensor.device.type = device_type
    tensor.device.id = device_id
    tensor.ndim = <int32_t>nd
    tensor.shape = room
    tensor.strides = room + nd
    tensor.byte_offset = 0
    return 0


cdef object give(object owner, uint64_t address, tuple shape, tuple strides, cnp.dtype dtype, int device_type,
                 int device_id, tuple version, uint64_t flags):
    """A capsule over the elements. With `version`, the newest that the consumer knows, a versioned one."""
    cdef Managed* plain = NULL
    cdef ManagedVersioned* managed = NULL
    cdef size_t room = 2 * len(shape) * sizeof(int64_t)
    cdef bint versioned = version is not None
    cdef void* memory = PyMem_RawMalloc((sizeof(ManagedVersioned) if versioned else sizeof(Managed)) + room)
    if memory is NULL:
        raise MemoryError()
    try:
        if versioned:
            managed = <ManagedVersioned*>memory
            _fill(&managed.tensor, <int64_t*>(managed + 1), address, shape, strides, dtype, device_type, device_id)
            managed.version.major, managed.version.minor = min(version, KNOWN)
            managed.flags = flags
            managed.context = <void*>owner
            managed.deleter = _delete_versioned
            capsule = PyCapsule_New(managed, NAME_VERSIONED, _drop_versioned)
        else:
            plain = <Managed*>memory
            _fill(&plain.tensor, <int64_t*>(plain + 1), address, shape, strides, dtype, device_type, device_id)
            plain.context = <void*>owner
            plain.deleter = _delete
            capsule = PyCapsule_New(plain, NAME, _drop)
    except BaseException:
        PyMem_RawFree(memory)
        raise
    Py_INCREF(owner)  # for the deleter
    return capsule


# ---- taking

@cython.final
cdef class Taken:
    """A tensor taken out of a capsule; its deleter is called when this object dies."""

    def __dealloc__(self):
        cdef Managed* plain
        cdef ManagedVersioned* managed
        if self.managed is NULL:
            return
        if self.versioned:
            managed = <ManagedVersioned*>self.managed
            if managed.deleter != NULL:
                managed.deleter(managed)
        else:
            plain = <Managed*>self.managed
            if plain.deleter != NULL:
                plain.deleter(plain)


cdef Taken take(object capsule):
    """Takes the tensor out of a capsule, on any device, and renames the capsule. Only plain numbers."""
    cdef Taken taken = Taken.__new__(Taken)
    cdef Tensor* tensor
    cdef Py_ssize_t i
    if PyCapsule_IsValid(capsule, NAME_VERSIONED):
        taken.managed = PyCapsule_GetPointer(capsule, NAME_VERSIONED)
        taken.versioned = True
        if (<ManagedVersioned*>taken.managed).version.major != 1:
            major = (<ManagedVersioned*>taken.managed).version.major
            taken.managed = NULL  # its layout is not known, so the capsule keeps it
            raise InvalidArgumentError(f"a DLPack tensor of version {major}, which is not known here; 1 is")
        tensor = &(<ManagedVersioned*>taken.managed).tensor
        PyCapsule_SetName(capsule, USED_VERSIONED)
    elif PyCapsule_IsValid(capsule, NAME):
        taken.managed = PyCapsule_GetPointer(capsule, NAME)
        tensor = &(<Managed*>taken.managed).tensor
        PyCapsule_SetName(capsule, USED)
    else:
        raise InvalidTypeError(f"__dlpack__ must give an unused DLPack capsule, got {show(capsule)}")
    letter = LETTERS.get(tensor.dtype.code)
    if letter is None or tensor.dtype.lanes != 1 or tensor.dtype.bits % 8 != 0:
        raise InvalidTypeError(
            f"a DLPack tensor of type code {tensor.dtype.code}, {tensor.dtype.bits} bits and {tensor.dtype.lanes} "
            "lanes, for which numpy has no dtype; give a view as plain numbers")
    taken.dtype = np.dtype(f"{letter}{tensor.dtype.bits // 8}")
    taken.address = <uint64_t>tensor.data + tensor.byte_offset
    taken.shape = tuple([tensor.shape[i] for i in range(tensor.ndim)])
    if tensor.strides is NULL:
        taken.strides = _strides.c_strides(taken.shape, taken.dtype.itemsize)
    else:
        taken.strides = tuple([tensor.strides[i] * taken.dtype.itemsize for i in range(tensor.ndim)])
    return taken
