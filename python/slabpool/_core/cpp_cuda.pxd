# slabpool/cuda/*.hpp: streams and copies, the driver, and what it says of its devices.

from libc.stdint cimport int64_t, uint64_t
from libcpp cimport bool
from libcpp.string cimport string

from slabpool._core.cpp_status cimport Error


cdef extern from "slabpool/cuda/api.hpp" namespace "slabpool::cuda" nogil:
    ctypedef void* Stream
    ctypedef void* Event
    const Stream kLegacyStream


cdef extern from "<span>" nogil:
    cdef cppclass extents "std::span<const std::int64_t>":
        extents()
        extents(const int64_t* first, size_t count)


cdef extern from "slabpool/cuda/copies.hpp" namespace "slabpool::cuda" nogil:
    cdef cppclass CopySpec:
        CopySpec()
        uint64_t to
        uint64_t from_ "from"
        size_t itemsize
        extents shape
        extents to_strides
        extents from_strides

    int copy(int device, Stream stream, const CopySpec& spec, Event* mark) except +
    int repeat(int device, Stream stream, uint64_t to, size_t bytes, size_t period, unsigned char value) except +
    bool passed(int device, Event mark)
    void forget(int device, Event mark)
    int order(int device, Stream before, Stream after) except +
    int device_address(int device, const void* host, uint64_t& address) except +
    string describe(int result, bool& lost) except +


cdef extern from "slabpool/cuda/stream_marks.hpp" namespace "slabpool::cuda" nogil:
    cdef cppclass StreamName:
        StreamName()
        Stream stream
        int device


cdef extern from "slabpool/cuda/driver.hpp" namespace "slabpool::cuda" nogil:
    cdef cppclass Driver:
        @staticmethod
        const Driver* get(Error& error)
        int version()
        int devices()
        const string& library()


cdef extern from "slabpool/cuda/device_info.hpp" namespace "slabpool::cuda" nogil:
    cdef struct DeviceInfo:
        string name
        uint64_t total_bytes
        string pci
        int numa_node
        bool virtual_memory
        bool exportable
        bool managed

    bool describe_device(const Driver& driver, int device, DeviceInfo& info, Error& error) except +
    bool free_memory(const Driver& driver, int device, uint64_t& bytes, Error& error) except +
