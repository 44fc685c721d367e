# slabpool/pool/pool.hpp: the C++ core's Pool, and the plain values that its calls take and return.

from slabpool._core.cpp_pool_declared cimport (
    Acked, Adopted, AllocateSpec, Allocation, Groups, KeepSpec, Kept, Planned, Pool, PoolOptions, Shortage, Tagged,
    kDefaultAlign, kLiveViews, kMaxAlign, kPendingDevices,
)


cdef extern from "slabpool/pool/pool.hpp":
    pass
