# slabpool/base/status.hpp: why a call did not do what it was asked to.


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
        timed_out
        no_addresses
        device_lost
