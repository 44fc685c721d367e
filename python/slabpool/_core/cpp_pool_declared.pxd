# The C++ core's Pool and the plain values that its calls take and return, declared without their header.
#
# core.pxd uses this, so that modules which only pass a pool on are not rebuilt when pool.hpp changes. A module that calls
# the pool cimports cpp_pool, which includes the header.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport unique_ptr
from libcpp.optional cimport optional
from libcpp.string cimport string
from libcpp.vector cimport vector

from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_memory cimport MemoryKind
from slabpool._core.cpp_cuda cimport StreamName
from slabpool._core.cpp_request cimport (
    AckResult, DeviceRegistry, Handle, LevelNeed, OpenSpec, SourceLocation, handle_span, string_view,
)
from slabpool._core.cpp_observe cimport Corruption, Event, GroupInfo, QuotaInfo, Refusal, RequestInfo, Stats
from slabpool._core.cpp_pressure cimport PressureChange, PressureWatch
from slabpool._core.cpp_shared cimport PeerFiles
from slabpool._core.cpp_status cimport Error, Status
from slabpool._core.cpp_wait cimport Ahead, Waiter, WaiterInfo, WakeTarget


cdef extern from * namespace "slabpool" nogil:
    """
    namespace slabpool { class Pool; }
    """
    const size_t kDefaultAlign
    const size_t kMaxAlign
    const unsigned kPendingDevices "slabpool::Pool::kPendingDevices"
    const unsigned kLiveViews "slabpool::Pool::kLiveViews"

    cdef cppclass PoolOptions:
        uint64_t capacity
        bool scrub_on_release
        int debug
        size_t events
        bool huge_pages
        int numa_node
        bool shared
        MemoryKind memory
        int device

    cdef cppclass Allocation:
        Block* block
        Status status

    cdef cppclass AllocateSpec:
        AllocateSpec()
        uint64_t nbytes
        uint64_t align
        Handle request
        bool view
        bool zero
        SourceLocation where

    cdef cppclass KeepSpec:
        KeepSpec()
        string_view id
        Block* block
        Handle from_ "from"
        Handle session
        optional[Handle] instead_of
        SourceLocation where

    cdef cppclass Kept "slabpool::Pool::Kept":
        uint64_t bytes
        uint64_t quota
        uint32_t pins
        int64_t idle_since_ns
        uint64_t drawn

    cdef cppclass Acked "slabpool::Pool::Acked":
        Status status
        AckResult result

    cdef enum class Adopted "slabpool::RequestTable::Adopted"(int):
        ok
        closed
        released
        quota_exceeded
        not_its

    cdef cppclass Tagged "slabpool::Depot::Tagged":
        uint64_t blocks
        uint64_t bytes

    cdef cppclass Shortage "slabpool::Pool::Shortage":
        uint64_t bytes
        bool pages

    cdef cppclass Groups "slabpool::Depot::Groups":
        vector[Block*] blocks
        vector[uint32_t] ends
        vector[uint8_t] chosen

    cdef enum class Planned "slabpool::Depot::Planned"(int):
        never
        room
        chosen

    cdef cppclass Pool:
        @staticmethod
        unique_ptr[Pool] create(const PoolOptions& options, Error& error)
        Allocation allocate(const AllocateSpec& spec)
        Block* allocate_quickly(uint64_t nbytes)
        Allocation allocate_as "allocate"(const AllocateSpec& spec, Waiter& waiter)
        void note_exhausted(Handle request, uint64_t nbytes)
        Allocation open_growing(Handle request, uint64_t most, Waiter* waiter)
        Status grow(Block& block, Handle request, uint64_t nbytes, uint64_t& usable, Waiter* waiter)
        cppclass Extent:
            uint64_t from_ "from"
            uint64_t to
        bool give_part(Block& block, Handle request, uint64_t first, uint64_t last, uint32_t views, Extent& kept)
        void cancel_growing(Block& block, Handle request)
        void hold_view(Block& block)
        Status open_view(Block& block, uint32_t serial, Handle request)
        void drop_view(Block& block)
        Block* find(const void* address)
        Block* find_held(const void* address)
        Status open(const OpenSpec& spec, Handle& handle)
        Status open_as "open"(const OpenSpec& spec, Handle& handle, Waiter* waiter)
        bint may_come(Status status, const Waiter& waiter)
        void enter(Waiter& waiter)
        void enter_end(Waiter& waiter, Handle request)
        void leave(Waiter& waiter)
        bint wait(Waiter& waiter, int64_t until_ns)
        bint is_first(const Waiter& waiter)
        void set_gives_way(bint may)
        Waiter* take_woken(WakeTarget& target)
        bint take_again(Waiter& waiter)
        uint32_t waiting()
        vector[WaiterInfo] waiters() except +
        Ahead ahead_of(const Waiter& waiter) except +
        bint in_circle()
        uint64_t wakeups()
        void add_watch(PressureWatch& watch)
        void remove_watch(PressureWatch& watch)
        bint take_change(PressureWatch& watch, PressureChange& change, bint look)
        bint has_change(const PressureWatch& watch)
        bint wait_change(PressureWatch& watch, int64_t until_ns)
        Acked ack(Handle handle, uint32_t device)
        Acked ack_id(string_view id, uint32_t device, optional[uint64_t] generation)
        Acked ack_after(Handle handle, uint32_t device, const StreamName& on, Error& error)
        Acked ack_id_after(string_view id, uint32_t device, optional[uint64_t] generation, const StreamName& on,
                           Error& error)
        bint must_poll()
        void close_request(Handle handle, bool cancel)
        Status cancel_id(string_view id, optional[uint64_t] generation, bool& cancelled)
        Status adopt(Block& block, Handle from_, Handle to, Adopted& adopted, LevelNeed& refused)
        void discard(Handle handle)
        Status add_device(Handle handle, uint32_t device)
        uint64_t device_lost(uint32_t device)
        void heartbeat(uint32_t device)
        void retire_devices(vector[uint32_t]& retired) except +
        AckResult ack_retired(Handle handle)
        bool released(Handle handle)
        bool is_open(Handle handle)
        bool cancelled(Handle handle)
        bool wait_released(Handle handle, int64_t deadline_ns)
        bool describe(Handle handle, RequestInfo& info, unsigned parts) except +
        DeviceRegistry& devices()
        Status open_session(string_view id, uint64_t quota, SourceLocation where, Handle& session,
                            optional[Handle] group)
        Status keep(const KeepSpec& spec, Handle& kept)
        Handle owner_of(const Block& block)
        Status pin(Handle by, handle_span kept)
        bool kept(Handle session, Kept& figures)
        Status set_quota(Handle session, uint64_t quota)
        void set_kept_quota(uint64_t quota)
        uint64_t kept_bytes()
        bint take_idle(Handle& session)
        uint64_t bytes_not_kept()
        bint charged_to(Handle session, Handle level)
        uint64_t over_quota(Handle request, uint64_t nbytes, bint drawn, Handle& level)
        Shortage shortage(Handle request, uint64_t nbytes, bint pages)
        Planned plan_return(Status status, const Shortage& shortage, Handle request, Groups& groups)
        Status open_group(OpenSpec spec, Handle& group, Waiter* waiter)
        vector[GroupInfo] groups() except +
        bool describe_group(Handle group, GroupInfo& info) except +
        bool describe_quota(Handle request, uint64_t nbytes, bint drawn, QuotaInfo& info) except +
        bool describe_level(Handle level, QuotaInfo& info) except +
        bool shared()
        uint64_t shared_id()
        bool attach_peer(uint32_t device, PeerFiles& files, Error& error)
        int writable_data()
        uint64_t detach_peer(uint32_t device)
        bint peer_holds(uint32_t device) noexcept
        void dismiss_peers()
        Status refer(Handle handle, const void* data, uint64_t nbytes, uint64_t& offset, uint64_t& seal)
        int bell()
        void answer_bell()
        MemoryKind memory()
        bool host_reaches()
        Error refusal() except +
        int device()
        Stats stats()
        uint64_t held_bytes()
        uint64_t quarantined_bytes()
        uint64_t fragmented_bytes()
        uint64_t metadata_bytes()
        vector[RequestInfo] requests(int64_t older_than_ns) except +
        vector[Event] events() except +
        vector[Corruption] corruptions() except +
        Tagged tagged(uint8_t tag)
        Refusal explain_exhausted() noexcept
        const char* verify()
        uint64_t trim()
        Status close(bool force)
        bool closed()
        bool usable_here()
