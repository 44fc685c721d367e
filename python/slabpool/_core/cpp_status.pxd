# slabpool/base/status.hpp and error.hpp: why a call failed.

from libcpp.string cimport string


cdef extern from "slabpool/base/status.hpp" namespace "slabpool" nogil:
    cdef enum class Status(int):
        ok
        invalid_argument
        exhausted
        too_large
        system_refused
        quota_exceeded
        too_many_requests
        too_many_devices
        duplicate_device
        unknown_device
        request_closed
        ambiguous
        pool_closed
        pool_busy
        forked
        no_addresses
        device_lost
        waiters_ahead
        too_deep
        name_in_use


cdef extern from "slabpool/base/error.hpp" namespace "slabpool" nogil:
    cdef cppclass Error:
        Error()
        Status status
        int system_errno
        string text
