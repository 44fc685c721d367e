# slabpool/observe/*.hpp: what a pool reports, as plain values.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

from slabpool._core.cpp_request cimport Handle, SourceLocation


cdef extern from "slabpool/observe/stats.hpp" namespace "slabpool" nogil:
    cdef cppclass Stats:
        uint64_t capacity
        uint64_t address_space
        uint64_t committed
        uint64_t live
        uint64_t retained
        uint64_t in_doubt
        uint64_t cached
        uint64_t reserved
        uint64_t peak_live
        uint64_t peak_committed
        uint64_t allocations
        uint64_t frees
        uint64_t requests_open
        uint64_t requests_draining
        uint64_t requests_in_doubt
        uint64_t acks
        uint64_t duplicate_acks
        uint64_t late_acks
        uint64_t stream_acks
        uint64_t exhaustions

    cdef enum class RequestState(int):
        pass

    cdef cppclass RequestInfo:
        string id
        Handle handle
        uint64_t parent_generation
        RequestState state
        uint64_t nbytes
        uint64_t reserved
        int64_t age_ns
        vector[uint32_t] pending
        vector[uint32_t] behind_stream
        uint32_t live_views
        SourceLocation opened_at
        bool kept
        string group

    cdef cppclass GroupInfo:
        string id
        Handle handle
        uint64_t nbytes
        uint64_t quota
        uint64_t reserve
        uint64_t reserved
        uint32_t requests
        uint32_t sessions
        int32_t priority
        int64_t age_ns
        bool closed
        SourceLocation opened_at

    cdef cppclass QuotaInfo:
        string id
        Handle handle
        bool group
        uint64_t quota
        uint64_t used

    cdef cppclass Holder "slabpool::Refusal::Holder":
        RequestInfo info
        bool of_session
        int64_t idle_ns

    cdef cppclass Refusal:
        Stats stats
        bool counts_in_doubt
        uint64_t fragmented
        uint64_t metadata
        uint32_t requests
        vector[Holder] largest
        vector[Holder] oldest
        vector[GroupInfo] groups


cdef extern from "slabpool/observe/event_log.hpp" namespace "slabpool" nogil:
    const uint32_t kNoDevice

    cdef enum class EventKind(int):
        pass

    cdef cppclass Event:
        int64_t time_ns
        uint64_t thread
        EventKind kind
        uint32_t device
        uint64_t generation
        uint64_t bytes


cdef extern from "slabpool/observe/guard.hpp" namespace "slabpool" nogil:
    cdef cppclass Corruption:
        uint64_t address
        uint64_t nbytes
        uint64_t offset
        uint64_t generation
        string file
        uint32_t line
