# Opening a request, of every kind.

from slabpool._core.array cimport Core
from slabpool._core.naming cimport Devices
from slabpool._core.request cimport Request


# Where `parent` is given, a child of it; `opened_at` is (file, line), or None for the caller's.
cdef Request open_request(object pool, Core core, Devices names, object request_id, object devices, object reserve,
                          object quota, object lease, object timeout, Request parent, object opened_at)
