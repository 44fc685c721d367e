# slabpool/shared/*.hpp: devices in other processes.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport unique_ptr

from slabpool._core.cpp_block cimport byte
from slabpool._core.cpp_request cimport AckResult
from slabpool._core.cpp_status cimport Error


cdef extern from "slabpool/shared/owner.hpp" namespace "slabpool" nogil:
    cdef cppclass PeerFiles:
        int data
        int table
        int board
        int tally
        int bell


cdef extern from "slabpool/shared/peer.hpp" namespace "slabpool" nogil:
    cdef cppclass Reference:
        uint64_t pool_id
        uint64_t generation
        uint64_t seal
        uint64_t offset
        uint64_t nbytes
        uint32_t slot

    cdef enum class PeerStatus(int):
        ok
        closed
        other_pool
        over
        forged
        out_of_range
        unknown_device
        acknowledged
        read_only

    cdef cppclass PeerAcked "slabpool::SharedPeer::Acked":
        PeerStatus status
        AckResult result

    cdef enum class PeerHost "slabpool::SharedPeer::Host"(int):
        holds
        cancelled
        done

    cdef cppclass SharedPeer:
        @staticmethod
        unique_ptr[SharedPeer] create(uint32_t device, int data, int table, int board, int tally, int bell,
                                      Error& error) except +
        uint64_t pool_id()
        int cuda_device()
        PeerStatus open(const Reference& reference, bool writable, byte*& data)
        PeerAcked ack(const Reference& reference)
        void heartbeat()
        PeerStatus host_of(const Reference& reference, PeerHost& host)
        PeerStatus wait_for_host(const Reference& reference, int64_t deadline_ns, PeerHost& host)
        bool map_writable(int data)
        bool writable()
        void lose()
        bool lost()
        bool usable_here()
