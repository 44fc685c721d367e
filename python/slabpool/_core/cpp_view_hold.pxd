# slabpool/adapters/view_hold.hpp: a view's hold on a block.

from slabpool._core.cpp_block cimport Block
from slabpool._core.cpp_pool_declared cimport Pool


cdef extern from "slabpool/adapters/view_hold.hpp" namespace "slabpool" nogil:
    cdef cppclass ViewHold:
        ViewHold()
        void take(Pool& pool, Block& block)
        const Block* block()
