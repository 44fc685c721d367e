"""The whole public API with its types, as in a user's program. Checked by mypy --strict, and run.

`assert_type` is exact: an Any where a type is known is an error. tests/test_stubs.py checks that no public
name, method or field is missing here: give each object a parameter annotated with its class.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import assert_type

import slabpool
from slabpool import cuda
from slabpool.connector import AckAggregator

# As the functions of an engine might take them.
DTYPES: list[DTypeLike] = ["f4", np.float16, np.dtype("i4"), float, [("a", "i4"), ("b", "f8")]]


def make_pools() -> slabpool.Pool:
    slabpool.Pool(1 << 20).close()
    slabpool.Pool(np.int64(1 << 20)).close()
    return slabpool.Pool(
        "16MiB",
        memory="host",
        name="sample",
        scrub="release",
        debug=1,
        events=64,
        huge_pages=False,
        numa_node=None,
    )


def use_pool(pool: slabpool.Pool) -> None:
    assert_type(pool.name, str)
    assert_type(pool.memory, str)
    assert_type(pool.capacity, int)
    assert_type(pool.closed, bool)
    assert_type(pool.empty(3), NDArray[np.float64])
    assert_type(pool.empty(3, np.float16), NDArray[np.float16])
    assert_type(pool.empty((2, 3), np.dtype(np.int32), align=4096, timeout=0.5), NDArray[np.int32])
    assert_type(pool.empty([2, 3], "f4"), NDArray[Any])
    assert_type(pool.zeros(np.int64(3)), NDArray[np.float64])
    assert_type(pool.zeros((), np.uint8, align=64, timeout=None), NDArray[np.uint8])
    assert_type(pool.zeros(4, float), NDArray[Any])
    assert_type(pool.zeros(4, [("a", "i4"), ("b", "f8")]), NDArray[Any])
    for dtype in DTYPES:
        pool.empty(4, dtype)
    assert_type(pool.full(3, np.float32(1.5)), NDArray[np.float32])
    assert_type(pool.full((3,), 7, np.uint8, align=128, timeout=0), NDArray[np.uint8])
    assert_type(pool.full(3, 1.5), NDArray[Any])
    assert_type(pool.full(3, 1.5, "f2"), NDArray[Any])
    assert_type(pool.copy(np.arange(3, dtype=np.int16)), NDArray[np.int16])
    assert_type(pool.copy([1, 2, 3], align=64, timeout=1), NDArray[Any])
    assert_type(pool.stats(), slabpool.Stats)
    assert_type(pool.requests(), list[slabpool.RequestRecord])
    assert_type(pool.leaks(), list[slabpool.RequestRecord])
    assert_type(pool.leaks(older_than=0.5), list[slabpool.RequestRecord])
    assert_type(pool.events(), list[slabpool.Event])
    assert_type(pool.corruptions(), list[slabpool.Corruption])
    assert_type(pool.trim(), int)


def use_numpy(pool: slabpool.Pool) -> None:
    with slabpool.numpy_handler(pool, threads=True) as handler:
        assert_type(handler, slabpool.numpy_handler)
        arrays = np.ones(3)
    usage = slabpool.numpy_usage(pool)
    assert_type(usage, slabpool.NumpyUsage)
    assert read_usage(usage)[0] == 1 and arrays.sum() == 3


def read_usage(usage: slabpool.NumpyUsage) -> tuple[int, int]:
    return usage.arrays, usage.nbytes


def use_connector(pool: slabpool.Pool) -> None:
    aggregator = AckAggregator(ranks=[0, "1"])
    assert_type(aggregator.ranks, tuple[str | int, ...])
    with pool.request("watched", devices=[0]) as req:
        assert_type(aggregator.watch(req), slabpool.Request)
    expected = aggregator.expect("expected", ranks=["1"])
    assert_type(expected, slabpool.Request)
    assert_type(aggregator.report(0, ["watched", 7, b"x", ("watched", 1)]), list[slabpool.Ack])
    assert_type(aggregator.rank_lost("1"), int)
    assert_type(aggregator.rank_back("1"), None)
    for req in aggregator.free():
        assert_type(req, slabpool.Request)
    assert_type(len(aggregator), int)


def open_requests(pool: slabpool.Pool) -> None:
    with pool.request(
        "chat-42", devices=["gpu0", 1], reserve="64KiB", quota=1 << 20, lease=30, timeout=1
    ) as req:
        assert_type(req, slabpool.Request)
        use_request(req)
    use_holders(pool, req)
    pool.request(7, {"gpu0"}).close()
    pool.request(b"id", (f"gpu{i}" for i in range(1))).close()
    assert_type(pool.ack(7, "gpu0"), slabpool.Ack)
    assert_type(pool.heartbeat("gpu0"), None)
    assert_type(pool.device_lost("gpu0"), int)


def use_request(req: slabpool.Request) -> None:
    assert_type(req.id, str | int | bytes)
    assert_type(req.generation, int)
    assert_type(req.parent, int | None)
    assert_type(req.quota, int | None)
    assert_type(req.priority, int)
    assert_type(req.pending, frozenset[str | int])
    assert_type(req.state, slabpool.RequestState)
    assert_type(req.nbytes, int)
    assert_type(req.live_views, int)
    assert_type(req.cancelled, bool)
    assert_type(req.empty(3), NDArray[np.float64])
    assert_type(req.empty((2, 3), np.float16, align=64, timeout=None), NDArray[np.float16])
    assert_type(req.zeros(3, np.dtype(np.complex64)), NDArray[np.complex64])
    assert_type(req.zeros(3, ">u2"), NDArray[Any])
    assert_type(req.full(3, np.int8(1)), NDArray[np.int8])
    assert_type(req.full((3,), 7, np.uint8), NDArray[np.uint8])
    assert_type(req.copy(np.zeros(3, np.float16)), NDArray[np.float16])
    layout = slabpool.Layout({"k": ((2, 8), np.float16), "v": (16, "f4")})
    tensors = req.allocate(layout, zero=True, timeout=0.5)
    assert_type(tensors, slabpool.Tensors)
    use_layout(layout, tensors)
    use_growable(req.growable((2, 0, 8), np.float16, axis=1, limit=64, timeout=0.5), req)
    with req.activate() as active:
        assert_type(active, slabpool.Request)
        assert_type(slabpool.active_request(), slabpool.Request | None)
    with req.child(devices=["gpu0"]) as step:
        assert_type(step, slabpool.Request)
    assert_type(step.ack("gpu0"), slabpool.Ack)


def use_holders(pool: slabpool.Pool, req: slabpool.Request) -> None:
    req.close()
    again = pool.request("chat-42")
    use_new_device(again)
    with pool.request("other") as other:
        array = other.zeros(4)
        with pool.request("adopts") as adopting:
            use_adopt(adopting, array)
    assert_type(pool.cancel("none"), bool)
    assert_type(pool.cancel("none", generation=1), bool)
    assert_type(req.ack("gpu0"), slabpool.Ack)
    assert_type(req.ack("gpu0", stream=1), slabpool.Ack)
    assert_type(pool.ack("chat-42", 1, generation=req.generation), slabpool.Ack)
    assert_type(pool.ack("chat-42", 1, stream=1), slabpool.Ack)
    assert_type(req.wait(), bool)
    assert_type(req.wait(timeout=0), bool)


def use_adopt(req: slabpool.Request, array: NDArray[Any]) -> None:
    assert_type(req.adopt(array), None)


def use_new_device(req: slabpool.Request) -> None:
    assert_type(req.add_device("gpu9"), None)
    assert_type(req.cancel(), None)
    assert_type(req.remove_device("gpu9"), slabpool.Ack)


def use_growable(tensor: slabpool.GrowableTensor, req: slabpool.Request) -> None:
    assert_type(tensor.extend(2, timeout=0.5), NDArray[Any])
    assert_type(tensor.extend(), NDArray[Any])
    assert_type(tensor.truncate(1), NDArray[Any])
    assert_type(tensor.truncate(1, release=True), NDArray[Any])
    assert_type(tensor.drop_front(1), NDArray[Any])
    assert_type(tensor.first, int)
    assert_type(tensor.array, NDArray[Any])
    assert_type(tensor.shape, tuple[int, ...])
    assert_type(tensor.dtype, np.dtype[Any])
    assert_type(tensor.request, slabpool.Request | None)
    assert tensor.request is req
    assert_type((tensor.axis, tensor.length, tensor.limit, tensor.nbytes), tuple[int, int, int, int])
    assert_type(len(tensor), int)


def use_tinygrad(pool: slabpool.Pool) -> None:
    from slabpool import tinygrad

    with tinygrad.install(pool, device="CPU") as here:
        assert_type(here, tinygrad.Installed)
        assert_type(tinygrad.installed("CPU"), tinygrad.Installed | None)
        assert_type(here.pool, slabpool.Pool)
        assert_type(here.device, str)
        here.uninstall()
    for kept in tinygrad.retained(pool):
        assert_type((kept.request_id, kept.generation), tuple[str | int | bytes, int])
        assert_type((kept.nbytes, kept.buffers, kept.keeper), tuple[int, int, str])
    tinygrad.uninstall()


def use_torch_on_a_gpu(device: slabpool.Pool) -> None:
    import slabpool.torch

    assert_type(slabpool.torch.use_cuda(device), None)
    with slabpool.torch.mem_pool(device):
        pass


def use_cupy(device: slabpool.Pool, pinned: slabpool.Pool) -> None:
    from slabpool import cupy

    with cupy.install(device, pinned=pinned) as here:
        assert_type(here, cupy.Installed)
        assert_type(cupy.installed(), cupy.Installed | None)
        assert_type(here.pools, tuple[slabpool.Pool, ...])
        assert_type(here.pinned, slabpool.Pool | None)
        here.uninstall()
    cupy.uninstall()


def use_numba(device: slabpool.Pool, context: Any) -> None:
    from slabpool import numba

    numba.use_cuda(device)
    manager = numba.MemoryManager(context=context)
    assert_type(manager.interface_version, int)
    assert_type(manager.pool, slabpool.Pool)


def use_cuda_core(device: slabpool.Pool, stream: Any) -> None:
    from slabpool.cuda_core import PoolMemoryResource

    resource = PoolMemoryResource(device)
    resource.allocate(1 << 20, stream=stream).close()
    assert_type(resource.pool, slabpool.Pool)
    assert_type((resource.is_device_accessible, resource.is_host_accessible), tuple[bool, bool])
    assert_type((resource.is_managed, resource.device_id), tuple[bool, int])


def use_exo(node: Any, api: Any, pool: slabpool.Pool) -> None:
    from slabpool import exo

    adapter = exo.install(node, pool=pool, api=api)
    assert_type(adapter, exo.Adapter)
    assert_type(adapter.pool, slabpool.Pool)
    assert_type(adapter.counts(), dict[str, int])
    assert_type(adapter.runs(), list[exo.RunRecord])
    for run in adapter.runs():
        assert_type((run.request_id, run.run, run.entry, run.reason), tuple[str, str, str, str])
        assert_type((run.ring, run.pending), tuple[tuple[str, ...], frozenset[str]])
        assert_type((run.generation, run.nbytes, run.idle), tuple[int, int, float])
    try:
        assert_type(adapter.cancel("chat-42"), bool)
    except (exo.RunRefusedError, exo.RunFailedError):
        adapter.uninstall()


def use_layout(layout: slabpool.Layout, tensors: slabpool.Tensors) -> None:
    assert_type(layout.names, tuple[str, ...])
    assert_type(layout.nbytes, int)
    assert_type(layout["k"], tuple[tuple[int, ...], np.dtype[Any]])
    assert_type(len(layout), int)
    assert_type(list(layout), list[str])
    assert_type("k" in layout, bool)
    assert_type(tensors.layout, slabpool.Layout)
    assert_type(tensors["k"], NDArray[Any])
    assert_type(tensors.k, NDArray[Any])
    assert_type(tensors.keys(), tuple[str, ...])
    assert_type(tensors.values(), list[NDArray[Any]])
    assert_type(tensors.items(), list[tuple[str, NDArray[Any]]])
    assert_type(len(tensors), int)
    assert_type(list(tensors), list[str])
    assert_type("k" in tensors, bool)


def read_stats(stats: slabpool.Stats) -> int:
    held = stats.live + stats.retained + stats.in_doubt + stats.cached
    peaks = stats.peak_live + stats.peak_committed
    requests = stats.requests_open + stats.requests_draining + stats.requests_in_doubt
    counts = (
        stats.allocations
        + stats.frees
        + stats.acks
        + stats.duplicate_acks
        + stats.late_acks
        + stats.stream_acks
        + stats.exhaustions
    )
    return (
        held
        + peaks
        + requests
        + counts
        + stats.capacity
        + stats.address_space
        + stats.committed
        + stats.reserved
        + stats.quarantined
        + stats.file_bytes
        + stats.fragmented
        + stats.metadata
        + stats.waiting
    )


def read_record(record: slabpool.RequestRecord) -> str:
    assert_type(record.request_id, str | int | bytes)
    assert_type(record.generation, int)
    assert_type(record.state, slabpool.RequestState)
    assert_type(record.nbytes, int)
    assert_type(record.age, float)
    assert_type(record.pending, frozenset[str | int])
    assert_type(record.live_views, int)
    assert_type(record.opened_at, str)
    assert_type(record.parent, int | None)
    assert_type(record.kept_as, str | None)
    assert_type(record.behind_stream, frozenset[str | int])
    assert_type(record.reserved, int)
    assert_type(record.group, str | int | bytes | None)
    return str(record)


def read_event(event: slabpool.Event) -> tuple[int, int, str, int, str | int | None, int]:
    return event.time_ns, event.thread, event.kind, event.generation, event.device, event.nbytes


def read_corruption(corruption: slabpool.Corruption) -> tuple[int, int, int, int, str]:
    where = corruption.allocated_at
    return corruption.address, corruption.nbytes, corruption.offset, corruption.generation, where


def of_ack(ack: slabpool.Ack) -> bool:
    if ack is slabpool.Ack.PENDING or ack is slabpool.Ack.RELEASED:
        return True
    return ack not in (slabpool.Ack.DUPLICATE, slabpool.Ack.LATE)


def of_state(state: slabpool.RequestState) -> str:
    over = slabpool.RequestState.DRAINING, slabpool.RequestState.IN_DOUBT, slabpool.RequestState.RELEASED
    if state in over or state is slabpool.RequestState.KEPT:
        return state.value
    return slabpool.RequestState.OPEN.value


#: Each error, under the built-in exception that a program would already catch.
def share() -> None:
    with slabpool.Pool("1MiB", memory="shared", name=f"sample-{os.getpid()}") as pool:
        req = pool.request("r", ["gpu0"])
        refer(req, req.full(3, 7, np.int32))
        peer = slabpool.attach(pool.name, device="gpu0", timeout=10)
        assert_type(peer, slabpool.Peer)
        be_a_device(peer, req.ref())
        req.close()
        assert_type(pool.device_lost("gpu0", kill=True), int)


def refer(req: slabpool.Request, array: NDArray[np.int32]) -> None:
    ref = req.ref(array)
    assert_type(ref, slabpool.TensorRef)
    carry(ref)


def carry(ref: slabpool.TensorRef) -> None:
    assert_type(ref.to_bytes(), bytes)
    assert_type(slabpool.TensorRef.from_bytes(ref.to_bytes()), slabpool.TensorRef)
    assert_type(ref.shape, tuple[int, ...])
    assert_type(ref.strides, tuple[int, ...])
    assert_type(ref.dtype, np.dtype[Any])
    assert_type(ref.nbytes, int)
    assert_type(ref.generation, int)


def be_a_device(peer: slabpool.Peer, ref: slabpool.TensorRef) -> None:
    with peer:
        assert_type(peer.name, str)
        assert_type(peer.device, str | int)
        assert_type(peer.open(ref), NDArray[Any])
        assert_type(peer.open(ref, writable=True), NDArray[Any])
        assert_type(peer.cancelled(ref), bool)
        assert_type(peer.wait_cancelled(ref, 0), bool)
        assert_type(peer.wait_cancelled(ref, timeout=0.0), bool)
        assert_type(peer.heartbeat(), None)
        assert_type(peer.lost, bool)
        assert_type(peer.wait_lost(timeout=0.0), bool)
        assert_type(peer.ack(ref), slabpool.Ack)
    peer.close()


ERRORS: dict[type[Exception], list[type[slabpool.SlabpoolError]]] = {
    ValueError: [
        slabpool.InvalidArgumentError,
        slabpool.TooManyDevicesError,
        slabpool.DuplicateDeviceError,
        slabpool.TensorTooLargeError,
        slabpool.NameInUseError,
        slabpool.InvalidReferenceError,
        slabpool.StaleReferenceError,
    ],
    OSError: [slabpool.SystemRefusedError],
    ConnectionError: [slabpool.AttachError, slabpool.OwnerLostError],
    TypeError: [slabpool.InvalidTypeError],
    MemoryError: [
        slabpool.MemoryLimitError,
        slabpool.PoolExhausted,
        slabpool.QuotaExceededError,
        slabpool.TensorTooLargeError,
    ],
    LookupError: [slabpool.UnknownDeviceError, slabpool.AmbiguousRequestError],
    RuntimeError: [
        slabpool.RequestClosedError,
        slabpool.SessionLostError,
        slabpool.PoolClosedError,
        slabpool.PoolBusyError,
        slabpool.ForkedPoolError,
        slabpool.DeviceLostError,
        slabpool.DeviceUnavailableError,
        slabpool.DeviceAttachedError,
    ],
}


async def open_in_a_loop(pool: slabpool.Pool) -> None:
    req = await pool.request_async("async", ["gpu0"], reserve=4096, quota="1MiB", lease=1.5, timeout=5)
    assert_type(req, slabpool.Request)
    assert_type(
        await pool.empty_async((2, 3), np.float32, align=64, timeout=5, priority=1), NDArray[np.float32]
    )
    assert_type(await pool.zeros_async(3), NDArray[np.float64])
    await allocate_in_a_loop(req)
    await grow_in_a_loop(req.growable(0, np.uint8, limit=8))
    await drain_in_a_loop(req)


async def allocate_in_a_loop(req: slabpool.Request) -> None:
    layout = slabpool.Layout({"k": (8, np.float16)})
    assert_type(await req.empty_async(3, "u1"), NDArray[Any])
    assert_type(await req.zeros_async(3, np.uint8, timeout=None), NDArray[np.uint8])
    assert_type(await req.allocate_async(layout, zero=True, timeout=5, priority=None), slabpool.Tensors)


async def grow_in_a_loop(tensor: slabpool.GrowableTensor) -> None:
    assert_type(await tensor.extend_async(2, timeout=5), NDArray[Any])


async def drain_in_a_loop(req: slabpool.Request) -> None:
    req.close()
    req.ack("gpu0")
    await req.released()


def open_sessions(pool: slabpool.Pool) -> None:
    session = pool.session("chat-42", budget="1MiB", ttl=600, priority=1)
    assert_type(session, slabpool.Session)
    assert_type(pool.session_budget, int | None)
    pool.session_budget = "8MiB"
    pool.session_budget = None
    with session:
        use_session(pool, session)
    end_session(session)


def open_groups(pool: slabpool.Pool) -> None:
    group = pool.group("tenant-a", quota="1MiB", reserve=4096, priority=1)
    assert_type(group, slabpool.Group)
    use_group(group)
    for record in pool.groups():
        read_group(record)


def use_group(group: slabpool.Group) -> None:
    assert_type(group.id, str | int | bytes)
    assert_type((group.quota, group.reserve, group.priority), tuple[int | None, int, int])
    with group, group.request("r", ["gpu0"], reserve=1, quota="64KiB", lease=1, timeout=1, priority=2) as req:
        assert_type(req, slabpool.Request)
        assert_type(group.session("s", budget=4096, ttl=1, priority=1), slabpool.Session)
        use_child(req)
    group.close()
    assert_type(group.closed, bool)
    read_group(group.stats())


def use_child(req: slabpool.Request) -> None:
    assert_type(req.group, str | int | bytes | None)
    assert_type(req.child(reserve=1, quota=4096, lease=1), slabpool.Request)


def read_group(record: slabpool.GroupRecord) -> None:
    assert_type(record.group_id, str | int | bytes)
    assert_type((record.nbytes, record.quota), tuple[int, int | None])
    assert_type(
        (record.reserve, record.reserved, record.requests, record.sessions), tuple[int, int, int, int]
    )
    assert_type((record.priority, record.closed), tuple[int, bool])
    assert_type((record.age, record.opened_at), tuple[float, str])


async def open_under(group: slabpool.Group) -> None:
    assert_type(await group.request_async("r", timeout=1), slabpool.Request)


def end_session(session: slabpool.Session) -> None:
    assert_type(session.close(), None)
    assert_type((session.closed, session.expired, session.evicted), tuple[bool, bool, bool])


def use_session(pool: slabpool.Pool, session: slabpool.Session) -> None:
    with session.request(["gpu0"], reserve="64KiB", quota="1MiB", lease=30, timeout=1) as turn:
        assert_type(turn, slabpool.Request)
        assert_type(session.keep("kv", turn.zeros(3)), None)
        session.keep("layout", turn.allocate(slabpool.Layout({"k": (3, "f4")})))
        session.keep("grows", turn.growable((0, 8), limit=64))
        assert_type(turn.ack("gpu0"), slabpool.Ack)
    assert_type(session.id, str | int | bytes)
    assert_type(session.group, str | int | bytes | None)
    assert_type(session.ttl, float | None)
    assert_type(session.budget, int | None)
    assert_type(session.nbytes, int)
    assert_type(session.in_use, bool)
    assert_type(session["kv"], Any)
    assert_type(session.writable("kv"), Any)
    assert_type((session.priority, session.pinned), tuple[int, bool])
    session.on_evict(lambda leaves: print(leaves["kv"]))
    session.on_evict(None)
    session.pin()
    assert_type(session.unpin(), None)
    with session.pin() as same:
        assert_type(same, slabpool.Session)
    assert_type(list(session), list[str])
    assert_type(len(session), int)
    assert_type("kv" in session, bool)
    assert_type(session.drop("layout"), None)
    for record in pool.sessions():
        read_session(record)
    read_session_stats(pool.session_stats())

    async def wait() -> None:
        with await session.request_async(reserve=1, quota=None, lease=None, timeout=1) as turn:
            assert_type(turn, slabpool.Request)

    asyncio.run(wait())


def read_session(record: slabpool.SessionRecord) -> None:
    assert_type(record.session_id, str | int | bytes)
    assert_type(record.nbytes, int)
    assert_type(record.names, tuple[str, ...])
    assert_type(record.idle, float | None)
    assert_type(record.requests, int)
    assert_type(record.budget, int | None)
    assert_type(record.ttl, float | None)
    assert_type(record.age, float)
    assert_type(record.opened_at, str)
    assert_type((record.priority, record.pinned), tuple[int, bool])
    assert_type(record.group, str | int | bytes | None)


def read_session_stats(stats: slabpool.SessionStats) -> None:
    assert_type((stats.hits, stats.misses, stats.expired, stats.evicted), tuple[int, int, int, int])
    assert_type((stats.evicted_for_bytes, stats.evicted_for_addresses), tuple[int, int])
    assert_type((stats.evicted_for_slots, stats.evicted_for_budget), tuple[int, int])
    assert_type(stats.evicted_for_quota, int)


def use_watch(pool: slabpool.Pool) -> None:
    told: list[slabpool.Pressure] = []
    with pool.on_pressure(0.1, told.append, hysteresis=0.05, loop=None) as watch:
        assert_type(watch, slabpool.PressureWatch)
        array = pool.empty(pool.capacity // 4, "u1")
        read_watch(watch)
        del array
    read_pressure(told[0])


def read_watch(watch: slabpool.PressureWatch) -> None:
    assert_type(watch.check(), int)
    assert_type(watch.wait(timeout=0), bool)
    assert_type((watch.fraction, watch.hysteresis), tuple[float, float])
    assert_type((watch.high, watch.closed), tuple[bool, bool])
    assert_type(watch.close(), None)
    assert_type(watch.serve(), None)


def read_pressure(now: slabpool.Pressure) -> None:
    assert_type((now.high, now.usage, now.fraction), tuple[bool, float, float])


def read_waiter(record: slabpool.WaiterRecord) -> None:
    assert_type(record.request_id, str | int | bytes | None)
    assert_type(record.nbytes, int)
    assert_type(record.priority, int)
    assert_type(record.waited, float)
    assert_type(record.resource, str)
    assert_type(record.where, str)
    assert_type(record.deadlock, bool)
    assert_type(record.generation, int | None)
    assert_type(record.group, str | int | bytes | None)
    assert_type(record.quota_of, tuple[str, str | int | bytes, int] | None)


def use_device(pool: slabpool.Pool) -> None:
    # A type checker cannot know the memory of a pool; device_pointer says what its arrays are.
    with pool.request("r") as req:
        use_array(slabpool.device_pointer(req.zeros((2, 4), np.float32)))


def use_array(array: slabpool.DeviceArray) -> None:
    assert_type(array.shape, tuple[int, ...])
    assert_type(array.strides, tuple[int, ...])
    assert_type(array.dtype, np.dtype[Any])
    for number in (
        array.device,
        array.ndim,
        array.size,
        array.itemsize,
        array.nbytes,
        array.ptr,
        array.stream,
    ):
        assert_type(number, int)
    assert_type(len(array), int)
    assert_type(array.T, slabpool.DeviceArray)
    assert_type(array[1:, ..., None, 2], slabpool.DeviceArray)
    assert_type(array.reshape(-1), slabpool.DeviceArray)
    assert_type(array.reshape((4, 2)), slabpool.DeviceArray)
    assert_type(array.transpose(1, 0), slabpool.DeviceArray)
    assert_type(array.view(np.uint8), slabpool.DeviceArray)
    assert_type(array.on(None), slabpool.DeviceArray)
    assert_type(array.copy_to_host(), NDArray[Any])
    assert_type(array.copy_from_host(np.ones((2, 4), np.float32), stream=None), None)
    assert_type(array.copy_to(array[::-1]), slabpool.DeviceArray)
    assert_type(array.__cuda_array_interface__, dict[str, Any])
    assert_type(array.__dlpack_device__(), tuple[int, int])
    assert_type(int(slabpool.device_pointer(array)), int)


def look_at_devices() -> None:
    assert_type(cuda.is_available(), bool)
    assert_type(cuda.why_unavailable(), str | None)
    if cuda.is_available():
        assert_type(cuda.driver_version(), tuple[int, int])
        assert_type(cuda.free_bytes(0), int)
        for device in cuda.devices():
            read_device(device)


def read_device(device: cuda.Device) -> None:
    assert_type(device.number, int)
    assert_type(device.name, str)
    assert_type(device.total_bytes, int)
    assert_type(device.pci, str)
    assert_type(device.numa_node, int | None)
    assert_type(device.virtual_memory, bool)
    assert_type(device.exportable, bool)
    assert_type(device.managed, bool)


def leave(pool: slabpool.Pool) -> None:
    req = pool.request("r", ["gpu0"])
    read_record(pool.requests()[0])
    req.close()
    of_state(req.state)
    of_ack(req.ack("gpu0"))
    read_stats(pool.stats())
    assert_type(pool.waiters(), list[slabpool.WaiterRecord])
    use_watch(pool)
    read_waiter(slabpool.WaiterRecord("r", 1, 0, 0.5, "memory", "serve.py:1"))
    read_event(pool.events()[0])
    read_corruption(slabpool.Corruption(0, 0, 0, 0, ""))
    pool.close(force=True)


def main() -> None:
    assert_type(slabpool.__version__, str)
    for folder in (slabpool.get_include(), slabpool.get_lib(), slabpool.get_cmake_dir()):
        assert_type(folder, str)
        assert os.path.isdir(folder)
    for builtin, errors in ERRORS.items():
        assert all(issubclass(error, builtin) for error in errors)
    with make_pools() as pool:
        use_pool(pool)
        use_numpy(pool)
        use_connector(pool)
        open_requests(pool)
        asyncio.run(open_in_a_loop(pool))
        open_sessions(pool)
        open_groups(pool)
        asyncio.run(open_under(pool.group("tenant-b")))
        leave(pool)
    look_at_devices()
    if cuda.is_available():
        with slabpool.Pool("64MiB", memory="cuda:0") as pool:
            use_device(pool)
    share()


if __name__ == "__main__":
    main()
