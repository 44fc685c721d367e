# slabpool/wait/queue.hpp: a caller's record in the queue of waiters.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

from slabpool._core.cpp_request cimport SourceLocation, string_view


cdef extern from "slabpool/wait/queue.hpp" namespace "slabpool" nogil:
    cdef enum class Resource(unsigned char):
        memory
        addresses
        slots
        quota
        kept
        end

    cdef cppclass Subject:
        uint32_t slot
        uint64_t generation

    cdef cppclass Wanted:
        Resource resource
        uint64_t amount

    cdef cppclass WakeTarget:
        WakeTarget()
        int fd

    cdef cppclass Waiter:
        Waiter()
        int32_t priority
        uint64_t nbytes
        string_view id
        Subject request
        Subject session
        SourceLocation where
        WakeTarget* target
        void* owner
        bool entered()
        bool cancelled()
        const Wanted& blocked_on()

    cdef cppclass WaiterInfo:
        string id
        Subject request
        bool kept
        string group
        Subject of
        string of_id
        bool of_group
        uint64_t nbytes
        int32_t priority
        int64_t waited_ns
        Resource resource
        SourceLocation where

    cdef cppclass Ahead:
        uint32_t count
        vector[WaiterInfo] first
