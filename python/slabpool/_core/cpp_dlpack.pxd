# slabpool/cuda/dlpack.hpp: DLPack's structures.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "slabpool/cuda/dlpack.hpp" namespace "slabpool::dlpack" nogil:
    const int kCpu
    const int kCuda
    const int kCudaHost
    const int kCudaManaged
    const uint64_t kReadOnly
    const uint64_t kIsCopied

    cdef cppclass Version:
        uint32_t major
        uint32_t minor

    cdef cppclass Device:
        int32_t type
        int32_t id

    cdef cppclass DataType:
        uint8_t code
        uint8_t bits
        uint16_t lanes

    cdef cppclass Tensor:
        void* data
        Device device
        int32_t ndim
        DataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

    cdef cppclass Managed:
        Tensor tensor
        void* context
        void (*deleter)(Managed*) noexcept

    cdef cppclass ManagedVersioned:
        Version version
        void* context
        void (*deleter)(ManagedVersioned*) noexcept
        uint64_t flags
        Tensor tensor
