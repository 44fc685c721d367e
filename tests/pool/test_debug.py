"""What a pool can check: scrubbed blocks, writes past the end, poison, and the event log."""

from __future__ import annotations

import ctypes
import inspect
import threading
import time
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Pool, PoolExhausted

KiB = 1 << 10
MiB = 1 << 20


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def line() -> int:
    """Line of the caller."""
    return inspect.currentframe().f_back.f_lineno  # type: ignore[union-attr]


# ---- scrubbing


@pytest.mark.parametrize("size", [64, 1000, 100_000, 3 * MiB])
def test_scrub_zeroes_blocks_before_reuse(size: int) -> None:
    with Pool("16MiB", scrub="release") as pool:
        seen = set()
        for _ in range(3):
            with pool.request("tenant") as req:
                secret = req.full(size, 0x5A, "u1")
                seen.add(address(secret))
                del secret
            other = pool.empty(size, "u1")
            assert not other.any()
            assert address(other) in seen
            other[...] = 0x5A
            del other
            whole = pool.empty(-(-size // 64) * 64, "u1")  # the bytes added by rounding are zeroed too
            assert not whole.any()
            del whole


def test_scrub_happens_at_release_not_at_the_next_use() -> None:
    with Pool("16MiB", scrub="release") as pool:
        first, neighbour = pool.full(4096, 0x5A, "u1"), pool.full(4096, 0x5B, "u1")
        place = address(first)
        del first
        # The page stays mapped, because its neighbour is in use.
        assert ctypes.string_at(place, 4096) == bytes(4096)
        assert (neighbour == 0x5B).all()
        del neighbour


def test_without_scrub_memory_keeps_its_contents() -> None:
    # Without this, the two tests above would prove nothing.
    with Pool("16MiB") as pool:
        first, neighbour = pool.full(4096, 0x5A, "u1"), pool.full(4096, 0x5B, "u1")
        place = address(first)
        del first
        assert ctypes.string_at(place, 4096) == b"\x5a" * 4096
        del neighbour


# ---- debug


@pytest.mark.parametrize("debug", [1, 2])
@pytest.mark.parametrize("offset", [0, 1, 63])
def test_write_past_the_end_is_found(debug: Any, offset: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Pool("16MiB", debug=debug) as pool:
        array = pool.zeros(1000, "u1")
        where = line() - 1
        place = address(array)
        ctypes.memset(place + 1000 + offset, 0x41, 1)
        assert pool.corruptions() == []
        del array
        (found,) = pool.corruptions()
        assert (found.address, found.nbytes, found.offset, found.generation) == (place, 1000, offset, 0)
        assert found.allocated_at == f"{__file__}:{where}"
        text = capfd.readouterr().err
        assert f"byte {offset} past the end of a block of 1000 bytes" in text
        assert f"{__file__}:{where}" in text
        # It is only reported: the pool still works, and the next user of the block is not blamed.
        again = pool.zeros(1000, "u1")
        assert not again.any()
        del again
        assert len(pool.corruptions()) == 1


@pytest.mark.parametrize("size", [1, 64, 1000, 131_072, 300_000, 4 * MiB])
def test_write_past_the_end_in_a_request(size: int) -> None:
    with Pool("16MiB", debug=1) as pool:
        req = pool.request("r", ["gpu0"])
        for array in (req.empty(size, "u1"), req.allocate(slabpool.Layout({"a": (size, "u1")}))["a"]):
            array[...] = 255  # writing up to the last byte is no error
        ctypes.memset(
            address(array) + -(-size // 64) * 64, 0x41, 1
        )  # a layout's block ends at a multiple of 64
        del array
        req.close()
        assert req.ack("gpu0") is Ack.RELEASED
        (found,) = pool.corruptions()
        assert (found.generation, found.offset, found.nbytes) == (req.generation, 0, -(-size // 64) * 64)


def test_freed_blocks_are_poisoned() -> None:
    with Pool("16MiB", debug=1) as pool:
        first, neighbour = pool.zeros(4096, "u1"), pool.zeros(4096, "u1")
        place = address(first)
        del first
        left = ctypes.string_at(place, 4096)
        assert set(left) == {left[0]}
        assert left[0] != 0
        assert not neighbour.any()
        del neighbour


def test_no_false_corruption_is_found() -> None:
    with Pool("16MiB", debug=2, scrub="release") as pool:
        for size in (0, 1, 64, 100, 5000, 70_000, 300_000, 3 * MiB):
            for align in (64, 4096):
                array = pool.full(size, 255, "u1", align=align)
                assert address(array) % align == 0
                with pool.request("r") as req:
                    assert not req.zeros(size, "u1", align=align).any()
                del array
        assert pool.corruptions() == []
        assert pool._verify() is None


def test_wrong_byte_is_found_once_where_memory_is_retained() -> None:
    with Pool("16MiB", debug=1) as pool:
        with pool.request("r") as req:
            kept = req.zeros(1000, "u1")
        ctypes.memset(address(kept) + 1000, 0x41, 1)
        assert pool.corruptions() == []  # a view may still write, so the block is checked when it comes back
        del kept
        assert [found.generation for found in pool.corruptions()] == [req.generation]


# ---- events


def test_events_of_one_request() -> None:
    with Pool("1MiB", events=100) as pool:
        begin = time.monotonic_ns()
        req = pool.request("r", ["gpu0", 1])
        kept, gone = req.empty(4 * KiB, "u1"), req.empty(64, "u1")
        own = pool.empty(128, "u1")
        req.ack("gpu0")
        del gone
        req.close()
        req.ack(1)
        del own, kept
        with pool.request("s", reserve="1MiB"), pytest.raises(PoolExhausted):
            pool.empty(2048, "u1")
        events = pool.events()
        g = req.generation
        assert [(e.kind, e.generation, e.device, e.nbytes) for e in events][:10] == [
            ("open", g, None, 0),
            ("allocate", g, None, 4 * KiB),
            ("allocate", g, None, 64),
            ("allocate", 0, None, 128),
            ("ack", g, "gpu0", 0),
            ("close", g, None, 0),
            ("ack", g, 1, 0),
            ("release", g, None, 64),
            ("retain", g, None, 4 * KiB),
            ("free", 0, None, 128),
        ]
        assert (events[10].kind, events[10].generation, events[10].nbytes) == ("free", g, 4 * KiB)
        assert [(e.kind, e.nbytes) for e in events[11:]] == [
            ("open", MiB), ("exhausted", 2048), ("close", 0), ("release", 0)
        ]  # fmt: skip
        times = [e.time_ns for e in events]
        assert times == sorted(times)
        assert begin <= times[0] <= times[-1] <= time.monotonic_ns()
        assert {e.thread for e in events} == {threading.get_native_id()}
        pool.close(force=True)


def test_events_keep_the_latest() -> None:
    with Pool("1MiB", events=8) as pool:
        for number in range(20):
            pool.request(number).close()
        events = pool.events()
        assert len(events) == 8
        assert [e.generation for e in events if e.kind == "open"][-1] == 20
        assert events[-1].kind == "release"


def test_events_of_threads() -> None:
    with Pool("1MiB", events=1000) as pool:
        threads = [
            threading.Thread(target=lambda: [pool.empty(64, "u1") for _ in range(20)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([e for e in pool.events() if e.kind == "allocate"]) == 80
        assert len({e.thread for e in pool.events()}) >= 1


def test_events_are_off_by_default() -> None:
    with Pool("1MiB") as pool:
        pool.request("r").close()
        assert pool.events() == []
