# What the core tells of a pool, as records.

from slabpool._core.array cimport Core
from slabpool._core.naming cimport Devices


cdef object state_of(int state)
cdef object stats_of(Core core)
cdef list records_of(Core core, Devices devices, object older_than)
cdef list events_of(Core core, Devices devices)
cdef list corruptions_of(Core core)
