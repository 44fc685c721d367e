"""A window of a shared pool: what a device has not acknowledged stays readable, whatever the owner drops."""

from __future__ import annotations

import pytest

import slabpool
from slabpool import Ack, StaleReferenceError
from slabpool.arguments.sizes import show_size
from tests.process.devices import ack, attached, total

with slabpool.Pool("1MiB") as _pool, _pool.request("page") as _request:
    PAGE = _request.growable(1, "u1", limit=1).nbytes
KiB = 1 << 10
ROWS = 1000


def test_rows_stay_until_the_device_that_may_read_them_acknowledges(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        with shared_pool.request("r", devices=["gpu0"]) as req:
            tensor = req.growable((ROWS, KiB), "u1", limit=1 << 16)
            tensor.array[:] = 1
            whole = tensor.nbytes
            ref = req.ref(tensor.array)
            tensor.drop_front(ROWS // 2)
            tensor.truncate(ROWS // 4, release=True)
            assert tensor.nbytes == whole
            # Other requests take all that is free, and write to it.
            other = shared_pool.empty(shared_pool.stats().capacity - whole, "u1")
            other[:] = 9
            assert device.ask(total, ref) == ROWS * KiB
            del other
            assert device.ask(ack, ref) is Ack.PENDING
            assert tensor.drop_front(0).sum() == ROWS // 4 * KiB
            assert tensor.nbytes <= ROWS // 4 * KiB + 2 * PAGE
            assert shared_pool.stats().live == tensor.nbytes
            with pytest.raises(StaleReferenceError):
                device.ask(total, ref)
            # A device that is named from here on reads the rows that are left.
            req.add_device("gpu0")
            assert device.ask(total, req.ref(tensor.array)) == ROWS // 4 * KiB
            assert device.ask(ack, req.ref(tensor.array)) is Ack.PENDING
            del tensor
        assert shared_pool.stats().live == 0


def test_rows_go_when_the_device_dies(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,), shared_pool.request("r", devices=["gpu0"]) as req:
        tensor = req.growable((ROWS, KiB), "u1", limit=1 << 16)
        whole = tensor.nbytes
        assert device.ask(total, req.ref(tensor.array)) == 0
        tensor.drop_front(ROWS)
        assert tensor.nbytes == whole
        device.kill()
        shared_pool.device_lost("gpu0")
        tensor.drop_front(0)
        assert tensor.nbytes <= PAGE, "of the end, where the next row begins"
        assert shared_pool.stats().committed <= whole
        del tensor


def test_a_reserve_goes_back_while_the_device_reads(shared_pool: slabpool.Pool) -> None:
    with attached(shared_pool, "gpu0") as (device,):
        req = shared_pool.request("r", devices=["gpu0"], reserve="12MiB")
        x = req.empty((100, KiB), "u1")
        x[:] = 1
        (record,) = shared_pool.requests()
        assert record.reserved == shared_pool.stats().reserved > 11 << 20
        assert f"{show_size(record.nbytes)} and {show_size(record.reserved)} of its reserve left, for" in str(
            record
        )
        ref = req.ref(x)
        req.close()
        (record,) = shared_pool.leaks()
        assert record.reserved == shared_pool.stats().reserved == 0
        assert "reserve" not in str(record)
        other = shared_pool.empty(15 << 20, "u1")
        other[:] = 9
        assert device.ask(total, ref) == 100 * KiB
        del x, other
        assert device.ask(ack, ref) is Ack.RELEASED
        shared_pool.trim()
        assert shared_pool.stats().committed == 0
