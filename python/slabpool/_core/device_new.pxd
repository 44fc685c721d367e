# How arrays in device memory are made and filled.

from slabpool._core.array cimport Maker


cdef Maker device_maker()
