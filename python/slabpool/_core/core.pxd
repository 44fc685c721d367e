# The C++ pool as the Cython modules hold it, and what all of them need: names, waiting for room, locations.
#
# Cimporting this does not include pool.hpp: a module that calls the pool cimports cpp_pool, so that only such modules are
# rebuilt when the header changes.

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.vector cimport vector

from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_memory cimport MemoryKind
from slabpool._core.cpp_pool_declared cimport Pool as CppPool
from slabpool._core.cpp_pool_declared cimport Shortage
from slabpool._core.cpp_request cimport Handle, SourceLocation, string_view
from slabpool._core.cpp_status cimport Status
from slabpool._core.cpp_wait cimport Ahead, Waiter, WaiterInfo, WakeTarget

# numpy's own limit is 64 since 2.0, 32 before; the array call enforces the lower one.
cdef enum:
    MAX_DIMS = 64
    # Bytes from which a call that zeroes memory releases the GIL: for less, switching costs more than it gains.
    BULK = 1 << 18


cdef struct Shape:
    int nd
    cnp.npy_intp dims[MAX_DIMS]


cdef class Core

# Drops what finished copies keep alive; returns whether there was any.
ctypedef bint (*SettleCopies)() noexcept


# Makes the arrays of a pool whose memory the host does not reach. The methods do what wrap(), new_full() and new_copy()
# of array.pxd do for host memory.
cdef class Maker:
    cdef object wrap(self, Core core, Block* block, void* data, cnp.dtype dtype, Shape* shape)
    cdef object full(self, Core core, Handle request, object shape, object value, object dtype, object align,
                     object timeout, object who)
    cdef object copy(self, Core core, Handle request, object array, object align, object timeout, object who)


# The C++ pool. Everything that may still touch its memory keeps it alive.
cdef class Core:
    cdef CppPool* pool                # owned
    cdef object owner                 # weak reference to the Pool, for messages
    cdef PyObject** codes             # by slot: the code whose line its record shows, or null. See lines.pxi
    cdef uint32_t code_slots          # how many of them
    cdef bint records_lines           # debug: every block remembers the line that allocated it
    cdef bint cleans                  # blocks are scrubbed or poisoned when returned: bulk work, done without the GIL
    cdef Maker maker                  # None where the host reaches the memory
    cdef object give_way              # slabpool.sessions.give_way
    cdef public object sessions       # None, or a weak reference to the pool's slabpool.sessions.Sessions
    cdef list heaps                   # None, or weak references to its stream-ordered heaps
    cdef object __weakref__


cdef Handle NO_REQUEST

# Cython converts and decodes a std::string through copies of it, made where no exception may be thrown: without memory
# for the copy the process would end. These two make no copy. The bytes live as long as the view is used.
cdef inline string_view view_of(bytes key) noexcept:
    return string_view(PyBytes_AS_STRING(key), <size_t>PyBytes_GET_SIZE(key))

cdef inline object text_of(const string& text):
    # Messages name files, which need not be UTF-8.
    return PyUnicode_DecodeUTF8(text.data(), <Py_ssize_t>text.size(), "replace")

# Raises unless the core may be called in this process.
cdef int check_here(Core core) except -1
# Raises the exception for a status. `extra`: the timeout, or the device.
cdef int failed(Core core, object request, Status status, uint64_t nbytes, object extra) except -1
# A member of StatusCode.
cdef object status_code(int status)
# In place of constructors: no Python code makes an object of this type, and the text says what does.
cdef int only_made_by(type made, str text) except -1

# ---- what may be freed when there is no room (who is asked, and in which order, is decided in slabpool.sessions)

cdef void note_copies(int under_way, SettleCopies settle) noexcept
cdef bint settle_copies() noexcept
cdef bint trim_heaps(Core core, bint wait) except -1

# ---- waiting for room (waiting.pxi)

# One attempt at what may find no room, at once. The waiter may be null: a caller that has not waited.
ctypedef Status (*Attempt)(Core core, void* job, Waiter* waiter) noexcept

# 0 without a timeout.
cdef int64_t deadline_of(object timeout) except -1
cdef int64_t next_slice(int64_t deadline) noexcept


# The waiters of one event loop and pool.
cdef class LoopWaiters:
    cdef WakeTarget target
    cdef Core core


# A line of the user's program (lines.pxi).
cdef class Site:
    cdef SourceLocation where
    cdef object code


cdef class LineReport:
    cdef vector[PyObject*] codes
    cdef dict lines
    # For each line of the report, before Python code runs.
    cdef int add(self, const SourceLocation& where) except -1
    cdef object line(self, const SourceLocation& where)


# How a caller looks for room: whether it waits, and its place in the queue while it does. What calls take as `timeout` is
# seconds, None, or one of these.
cdef class Wait:
    cdef Waiter waiter
    cdef Core core              # while it is used
    cdef object code            # that the waiter's line is in, or None
    cdef LoopWaiters loop       # the waiter's target
    cdef bytes key              # the waiter's id
    cdef public object timeout  # as the caller gave it, for messages
    cdef object priority        # None: that of the request
    cdef Handle group           # in which a request is being opened; generation 0: none
    cdef int64_t deadline       # 0: it does not wait
    cdef bint in_loop           # it waits in an event loop, between attempts
    cdef public bint last       # the loop makes no further attempt
    cdef readonly bint waits    # another attempt may succeed later
    cdef Ahead before           # what stood before it when it gave up
    cdef LineReport lines       # of those
    cdef readonly bint circle   # the requests that wait for memory hold what they wait for
    cdef public object future   # the loop's


# `timeout`, or a Wait with this priority.
cdef object patience(object timeout, object priority)
# A Wait for a call with this timeout, in the name of a request (None: no request).
cdef Wait wait_of(Core core, object timeout, object request)
# A Wait of a coroutine, which a later call takes as its timeout.
cdef Wait loop_wait(Core core, object priority)
# The final status after attempts. `status`: of the first one, made without a waiter; waiters_ahead if none was made. Running
# out is counted for the request, with `nbytes`: those of one tensor or, with `pages`, those by which whole pages are exceeded
# (a reserve, growth, addresses).
cdef Status find_room(Core core, Status status, Attempt attempt, void* job, Wait wait, Handle request,
                      uint64_t nbytes, bint pages) except *
cdef object waiter_record(const WaiterInfo& info, bint circle, LineReport lines)

# ---- calls of the pool, for modules that do not include pool.hpp

cdef Status open_view(Core core, Block* block, uint32_t serial, Handle request) noexcept
# The request that holds a block; generation 0 without one, and in a child of fork.
cdef Handle owner_of(Core core, Block* block) noexcept
# The live block that an address is in; null if there is none.
cdef Block* find_held(Core core, const void* address) noexcept
cdef MemoryKind memory_of(Core core) noexcept
# Number of the CUDA device of the memory; -1 without one.
cdef int device_of(Core core) noexcept
cdef bint is_shared(Core core) noexcept
cdef uint64_t shared_id(Core core) noexcept
cdef Status refer(Core core, Handle request, const void* data, uint64_t nbytes, uint64_t* offset,
                  uint64_t* seal) noexcept

# ---- pools of memory that the host and CUDA devices both reach (pinned, managed), found by an address

cdef int add_reachable(Core core) except -1
# The pool in whose range the address is, which the caller keeps alive; None if there is none.
cdef Core reachable_core(const void* address)
cdef bint is_reachable(object array) except -1

# ---- names of requests, sessions and devices (names.pxi)

cdef bytes name_key(object name, str what)

cdef enum:
    KEY_ROOM = 128

cdef extern from *:
    const char* utf8_of "PyUnicode_AsUTF8AndSize"(object text, Py_ssize_t* size)  # null with an exception set
    void forget_error "PyErr_Clear"()

# The key of a name of up to 126 bytes that is exactly a str, in `room`, which has KEY_ROOM bytes. Otherwise nothing: then
# name_key() makes it, or raises.
cdef inline string_view short_key(object name, char* room) noexcept:
    cdef Py_ssize_t size = 0
    cdef const char* text
    if type(name) is not str:
        return string_view()
    text = utf8_of(name, &size)
    if text is NULL:
        forget_error()
        return string_view()
    if size + 1 >= KEY_ROOM:
        return string_view()
    room[0] = b's'
    memcpy(room + 1, text, <size_t>size)
    return string_view(room, <size_t>size + 1)

# (id, None) of a request or a session; (id, name) of a tensor that a session keeps.
cdef tuple identity(bytes raw, bint kept)
cdef object state_of(int state)
cdef object ack_answer(int result)

# A name that was looked up. Exactly a str or an int, so the same object is the same name.
cdef struct KnownName:
    PyObject* name              # owned, or null
    uint32_t number


cdef class Devices:
    cdef Core core
    cdef str pool               # its name, for messages
    cdef dict numbers           # name -> number
    cdef KnownName* last        # 2 ** last_bits of `numbers`, found by the address of the name: see known_name()
    cdef int last_bits
    # number -> name; None where no request has named one. retire() replaces both lists: a caller that takes a list after
    # numbers were read from the core, and before the GIL is released or Python code runs, has the names of that moment.
    cdef list names
    cdef list former            # (time in ns, {number: name}): what events say of numbers taken back then

    cdef uint32_t hold(self, object device) except? 0xFFFFFFFF
    cdef uint32_t hold_key(self, object device, bytes key) except? 0xFFFFFFFF
    cdef int hold_all(self, tuple devices) except -1
    cdef void drop_all(self, tuple devices) noexcept
    cdef tuple made_known(self, tuple devices, object parent)
    cdef Status find_room(self, tuple devices, Status status, Attempt attempt, void* job, Wait wait, Handle parent,
                          uint64_t reserve) except *
    cdef int retire(self) except -1
    cdef void forget_last(self) noexcept
    cdef bint fit_last(self) noexcept
    cdef int64_t number_of(self, object device) except -2
    cdef object known(self, object device, object request)
    cdef int64_t known_to(self, object named, object device, object request) except? -2
    # What Request.ack does rarely: here, where the compiler cannot inline it there; with few enough arguments for registers.
    cdef object ack_other_name(self, const Handle* handle, object named, object device, object request)
    cdef object ack_without_gil(self, const Handle* handle, uint32_t number, object named, object device, object request)
    cdef object late(self, Status status, const Handle* handle, object named, object device, object request)


# Where the number of this name is, if its `name` is this object; otherwise number_of() finds it.
cdef inline KnownName* known_name(Devices devices, object device) noexcept:
    # Fibonacci hashing: the upper bits of the product depend on all bits of the address.
    return &devices.last[(<uint64_t><uintptr_t><PyObject*>device * <uint64_t>0x9E3779B97F4A7C15) >> (64 - devices.last_bits)]


# The names of these devices (frozenset).
cdef object names_of(list names, const vector[uint32_t]& numbers)

# ---- lines of the user's program (lines.pxi)

# Of the Python code that is running, whose frame keeps what the result points to.
cdef SourceLocation caller() noexcept
cdef Site caller_site()
# The same, of a file, for what the core reports itself.
cdef SourceLocation caller_line() except *
# Called with the GIL held since the core opened a record for this caller, or after a look that the slot is still the
# record's: what a record shows is kept until another one has the slot.
cdef void note_code(Core core, Handle handle, const SourceLocation& where) noexcept
cdef void show_line(Wait wait, const SourceLocation& where) noexcept
# ``file:line``, or "" where no line was recorded.
cdef object location(const SourceLocation& where)
