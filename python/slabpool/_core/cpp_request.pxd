# slabpool/request/*.hpp: handles on requests, and what opening one takes.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.optional cimport optional
from libcpp.string cimport string


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view()
        string_view(const char* data, size_t size)
        bint empty()


cdef extern from "<span>" namespace "std" nogil:
    cdef cppclass device_span "std::span<const std::uint32_t>":
        device_span()
        device_span(const uint32_t* data, size_t size)


cdef extern from "slabpool/request/handle.hpp" namespace "slabpool" nogil:
    cdef cppclass Handle:
        uint32_t slot
        uint64_t generation


cdef extern from "slabpool/request/levels.hpp" namespace "slabpool" nogil:
    cdef cppclass LevelNeed:
        Handle at
        uint64_t excess


cdef extern from "slabpool/base/source_location.hpp" namespace "slabpool" nogil:
    cdef cppclass SourceLocation:
        const char* file
        uint32_t line
        bool in_code


cdef extern from "<span>" namespace "std" nogil:
    cdef cppclass handle_span "std::span<const slabpool::Handle>":
        handle_span()
        handle_span(const Handle* data, size_t size)


cdef extern from "slabpool/request/device_registry.hpp" namespace "slabpool" nogil:
    cdef cppclass DeviceRegistry:
        optional[uint32_t] hold(string_view name) except +
        void hold_number "hold"(uint32_t device)
        void drop(uint32_t device)
        optional[uint32_t] find(string_view name)
        uint32_t room()


cdef extern from "slabpool/request/holder_set.hpp" namespace "slabpool" nogil:
    const uint32_t kMaxDevices


cdef extern from "slabpool/request/table.hpp" namespace "slabpool" nogil:
    const uint32_t kMaxRequests

    cdef enum class AckResult(int):
        pending
        released
        duplicate
        late

    cdef cppclass OpenSpec:
        OpenSpec()
        string_view id
        device_span devices
        optional[Handle] parent
        uint64_t reserve
        uint64_t quota
        int64_t lease_ns
        int32_t priority
        SourceLocation where
