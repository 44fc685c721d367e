# slabpool/cuda/driver.hpp and device_info.hpp: the CUDA driver, and what it says of its devices.
from libc.stdint cimport uint64_t
from libcpp cimport bool
from libcpp.string cimport string


cdef extern from "slabpool/base/error.hpp" namespace "slabpool" nogil:
    cdef struct Error:
        string text


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
