"""Tensors that change requests: the same bytes, charged once, and returned with the last reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Layout, Pool, RequestState
from tests.scene import Scene, refused


@pytest.fixture(params=["host", "shared"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool("16MiB", memory=request.param)
    yield pool
    assert pool._verify() is None
    assert pool.stats().live + pool.stats().retained == 0
    pool.close()


def test_the_bytes_move(pool: Pool) -> None:
    with pool.request("decode") as decode:
        with pool.request("prefill") as prefill:
            kv = prefill.full((3, 1000), 7, np.int32)
            address, nbytes = kv.ctypes.data, prefill.nbytes
            decode.adopt(kv)
            assert (prefill.nbytes, decode.nbytes) == (0, nbytes)
            assert pool.stats().live == nbytes
        assert prefill.state is RequestState.RELEASED
        assert kv.ctypes.data == address and (kv == 7).all()
        kv[0] = 8
        del kv
        assert pool.stats().live == decode.nbytes == nbytes


@pytest.mark.parametrize(
    "cut",
    [lambda x: x[1:], lambda x: x[:, ::2], lambda x: x[::-1, :, ::-3], lambda x: x.T, lambda x: x.view("u1")],
)
def test_a_slice_moves_its_whole_block(pool: Pool, cut: Callable[[Any], Any]) -> None:
    with pool.request("a") as a, pool.request("b") as b:
        whole = a.zeros((4, 5, 6), np.float32)
        nbytes = a.nbytes
        b.adopt(cut(whole))
        assert (a.nbytes, b.nbytes) == (0, nbytes)
        del whole


def test_tensors_of_a_layout_move_together(pool: Pool) -> None:
    layout = Layout({"k": ((2, 8), "f4"), "v": ((2, 8), "f4")})
    with pool.request("b") as b:
        with pool.request("a") as a:
            tensors = a.allocate(layout, zero=True)
            tensors.k[0] = 1
            b.adopt(tensors)
            assert (a.nbytes, b.nbytes) == (0, layout.nbytes)
        assert tensors.k.sum() == 8  # of b from now on
        tensors.v[:] = 2
    with pytest.raises(slabpool.RequestClosedError):
        _ = tensors.k
    with pool.request("c") as c, pytest.raises(slabpool.RequestClosedError, match="released"):
        c.adopt(tensors)


def test_a_growable_tensor_grows_within_the_other_quota(pool: Pool) -> None:
    with pool.request("b", quota="256KiB") as b:
        with pool.request("a", quota="64KiB") as a:
            keys = a.growable((10, 1024), "u1", limit=1 << 20)
            keys.array[:] = 7
            with pytest.raises(slabpool.QuotaExceededError):
                keys.extend(100)
            b.adopt(keys)
            assert keys.request is b and a.nbytes == 0
            keys.extend(100)[10:] = 8
        assert keys.array[:10].sum() == 7 * 10 * 1024
        with pytest.raises(slabpool.QuotaExceededError):
            keys.extend(1000)
        assert b.nbytes == keys.nbytes
    with pytest.raises(slabpool.RequestClosedError):
        keys.extend(1000)
    del keys


def test_a_growable_tensor_gives_nothing_back_that_the_first_reader_may_read(pool: Pool) -> None:
    a, b = pool.request("a", devices=["gpu0"]), pool.request("b")
    keys = a.growable((64, 4096), "u1", limit=1 << 20)
    b.adopt(keys)
    nbytes = keys.nbytes
    keys.truncate(1, release=True)
    assert keys.nbytes == nbytes
    a.close()
    assert a.ack("gpu0") is Ack.RELEASED
    keys.truncate(1, release=True)
    assert keys.nbytes == 4096
    b.close()
    del keys


def test_what_an_array_of_it_takes_along_grows_no_more(pool: Pool) -> None:
    with pool.request("a") as a, pool.request("b") as b:
        keys = a.growable((10, 1024), "u1", limit=1 << 20)
        b.adopt(keys.array)
        text = r"any more: .*has adopted.* the GrowableTensor itself, or adopt it"
        assert keys.request is None
        for _ in range(2):
            nbytes = keys.nbytes
            with pytest.raises(slabpool.RequestClosedError, match=f"grow {text}"):
                keys.extend(100)
            with pytest.raises(slabpool.RequestClosedError, match=f"give memory back {text}"):
                keys.truncate(1, release=True)
            with pytest.raises(slabpool.RequestClosedError, match=f"give memory back {text}"):
                keys.drop_front(9)
            assert (keys.length, keys.nbytes) == (10, nbytes)
            a.close()
        assert keys.truncate(5).shape == (5, 1024)
        assert f"taken over as generation {b.generation}" in repr(keys)
        del keys


def test_a_session_that_keeps_an_array_of_it_takes_it_over_too(pool: Pool) -> None:
    session = pool.session("chat")
    with session.request() as turn:
        keys = turn.growable((10, 1024), "u1", limit=1 << 20)
        session.keep("kv", keys.array)
        assert keys.request is None
    with pytest.raises(slabpool.RequestClosedError, match="grow any more: a session keeps"):
        keys.extend(100)
    with pytest.raises(slabpool.RequestClosedError, match="give memory back any more: a session keeps"):
        keys.truncate(1, release=True)
    del keys
    session.close()


def test_the_bytes_wait_for_the_devices_of_both(pool: Pool) -> None:
    prefill = pool.request("prefill", devices=["gpu0"])
    decode = pool.request("decode", devices=["gpu1"])
    kv = prefill.full(5000, 7, "u1")
    decode.adopt(kv)
    assert decode.live_views == 2  # the array, and one for prefill's devices
    del kv
    prefill.close()
    decode.close()
    assert decode.ack("gpu1") is Ack.RELEASED
    assert pool.stats().retained > 0
    assert prefill.ack("gpu0") is Ack.RELEASED
    assert pool.stats().retained == 0


def test_along_a_chain_and_back(pool: Pool) -> None:
    requests = [pool.request(str(i), devices=["gpu0"]) for i in range(4)]
    x = requests[0].full(100, 7, "u1")
    nbytes = requests[0].nbytes
    for _ in range(10):
        for req in (*requests[1:], requests[0]):
            req.adopt(x)
            assert [r.nbytes for r in requests] == [nbytes if r is req else 0 for r in requests]
    assert x.sum() == 700 and requests[0].live_views == 4
    del x
    for req in requests:
        req.close()
    for req in requests[:-1]:
        assert req.ack("gpu0") is Ack.RELEASED
        assert pool.stats().live + pool.stats().retained == nbytes
    assert requests[-1].ack("gpu0") is Ack.RELEASED


def test_quotas_are_charged_and_given_back_exactly(pool: Pool) -> None:
    with pool.request("a", quota="8KiB") as a, pool.request("b", quota="8KiB") as b:
        x = a.empty(8192, "u1")
        b.adopt(x)
        with pytest.raises(slabpool.QuotaExceededError):
            b.empty(1, "u1")
        y = a.empty(8192, "u1")  # a has its quota again
        with pytest.raises(slabpool.QuotaExceededError, match=r"quota of 8 KiB .* 8 KiB itself"):
            b.adopt(y)
        assert (a.nbytes, b.nbytes) == (8192, 8192)
        with pytest.raises(slabpool.QuotaExceededError):
            a.empty(1, "u1")
        with pytest.raises(slabpool.QuotaExceededError):
            a.adopt(x)
        del x, y


def test_a_child_and_its_parent_share_a_quota(pool: Pool) -> None:
    with pool.request("a", quota="8KiB") as a:
        with a.child() as step:
            x = step.empty(8192, "u1")
            a.adopt(x)
            assert (step.nbytes, a.nbytes) == (0, 8192)
            step.adopt(x)
            assert (step.nbytes, a.nbytes) == (8192, 0)
            a.adopt(x)
        assert step.state is RequestState.RELEASED
        with pytest.raises(slabpool.QuotaExceededError):
            a.empty(1, "u1")
        del x


def test_who_waits_for_the_first_quota_is_served(pool: Pool) -> None:
    async def main() -> None:
        with pool.request("a", quota="8KiB") as a, pool.request("b") as b:
            x = a.empty(8192, "u1")
            task = asyncio.create_task(a.empty_async(8192, "u1"))
            await asyncio.sleep(0)
            assert pool.stats().waiting == 1
            b.adopt(x)
            y = await task
            del x, y

    asyncio.run(main())


def test_of_a_request_that_the_host_has_closed(pool: Pool) -> None:
    a = pool.request("a", devices=["gpu0"])
    x = a.full(100, 7, "u1")
    a.close()
    with pool.request("b") as b:
        b.adopt(x)
        assert a.ack("gpu0") is Ack.RELEASED
        assert x.sum() == 700 and b.nbytes > 0
        del x


def test_a_session_keeps_what_was_adopted(pool: Pool) -> None:
    session = pool.session("chat")
    a = pool.request("a", devices=["gpu0"])
    with session.request() as turn:
        x = a.full(100, 7, "u1")
        turn.adopt(x)
        session.keep("kv", x)
        del x
    with pool.request("b") as b, pytest.raises(slabpool.InvalidArgumentError, match="a session keeps"):
        b.adopt(session["kv"])
    session.close()
    a.close()
    assert pool.stats().live + pool.stats().retained > 0
    assert a.ack("gpu0") is Ack.RELEASED


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_of_another_pool(pool: Pool) -> None:
    with Pool("1MiB") as other, other.request("r") as theirs, pool.request("b") as mine:
        layout = Layout({"k": (8, "f4")})
        for tensor in (theirs.zeros(4), theirs.allocate(layout), theirs.growable(4, limit=8)):
            with pytest.raises(
                slabpool.InvalidArgumentError, match="not in the memory of a request of this pool"
            ):
                mine.adopt(tensor)
        del tensor
        assert (theirs.nbytes > 0, mine.nbytes) == (True, 0)


ADOPT: list[tuple[Callable[[Scene], object], type[Exception], str]] = [
    (
        lambda s: s.bounded.adopt(np.zeros(4)),
        slabpool.InvalidArgumentError,
        "cannot adopt the array of shape (4,) ... not in the memory ... copy(array)",
    ),
    (lambda s: s.bounded.adopt(s.array[:0]), slabpool.InvalidArgumentError, "no bytes"),
    (lambda s: s.req.adopt(s.array), slabpool.InvalidArgumentError, "'chat' ... (1000,) ... already"),
    (lambda s: s.req.adopt(s.tensors), slabpool.InvalidArgumentError, "'chat' ... already"),
    (lambda s: s.closed.adopt(s.array), slabpool.RequestClosedError, "'closed' ... closed by the host"),
    (lambda s: s.over.adopt(s.array), slabpool.RequestClosedError, "'over' ... released"),
    (lambda s: s.over.adopt(s.tensors), slabpool.RequestClosedError, "'over' ... released"),
    (lambda s: s.bounded.adopt(b"bytes"), slabpool.InvalidTypeError, "adopts an array ... bytes"),
    (lambda s: s.bounded.adopt(None), slabpool.InvalidTypeError, "adopts an array ... NoneType"),
    (lambda s: s.bounded.adopt([1.0]), slabpool.InvalidTypeError, "adopts an array ... list"),
]


@pytest.mark.parametrize(("call", "error", "text"), ADOPT)
def test_refusals_change_nothing(
    scene: Scene, call: Callable[[Scene], object], error: type[Exception], text: str
) -> None:
    refused(scene, call, error, text)


def test_memory_of_no_request(pool: Pool) -> None:
    x = pool.zeros(4)
    with pool.request("b") as b, pytest.raises(slabpool.InvalidArgumentError, match="not in the memory"):
        b.adopt(x)
    del x


def test_of_a_released_request(pool: Pool) -> None:
    with pool.request("a") as a:
        x = a.zeros(4)
    with pool.request("b") as b:
        with pytest.raises(slabpool.RequestClosedError, match=f"generation {a.generation}, is released"):
            b.adopt(x)
        assert b.nbytes == 0
    del x


def test_a_closed_pool_ends_it_all() -> None:
    pool = Pool("1MiB")
    a, b = pool.request("a", devices=["gpu0"]), pool.request("b")
    x = a.zeros(4)
    b.adopt(x)
    pool.close(force=True)
    assert x.sum() == 0
    with pytest.raises(slabpool.RequestClosedError):
        b.adopt(x)
    del x
    assert pool.stats().live + pool.stats().retained == 0


def test_a_refusal_names_the_quota_that_refuses() -> None:
    pool = slabpool.Pool("4MiB")
    source = pool.request("source")
    array = source.empty(400 << 10, "u1")
    group = pool.group("tenant", quota="300KiB")
    around = pool.request("around", quota="200KiB")
    for target, text in (
        (
            pool.request("own", quota="100KiB"),
            "its quota of 100 KiB would be exceeded; it holds 0 bytes itself",
        ),
        (group.request("in a group"), "group 'tenant' holds 0 bytes of its quota of 300 KiB"),
        (
            around.child(quota="1MiB"),
            "request 'around' generation .*, around it, holds .* of its quota of 200",
        ),
    ):
        with pytest.raises(slabpool.QuotaExceededError, match=text) as caught:
            target.adopt(array)
        assert "which stays with generation 1" in str(caught.value)
        assert target.nbytes == 0
    pool.close(force=True)
