"""Requests that the host gives up: by hand, by their id, and by an exception in their with statement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import slabpool
from slabpool import Ack, Pool, RequestState
from tests.scene import Scene, refused


@pytest.fixture(params=["host", "shared"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool("16MiB", memory=request.param)
    yield pool
    assert pool._verify() is None
    assert pool.stats().live == 0
    pool.close()


# ---- by id


@pytest.mark.parametrize("request_id", ["chat", 7, b"chat", np.str_("chat"), np.int64(7)])
def test_by_its_id(pool: Pool, request_id: str | int | bytes) -> None:
    with pool.request("other") as other:
        req = pool.request(request_id, devices=["gpu0"])
        kept = req.zeros(100)
        assert pool.cancel(request_id)
        assert req.cancelled and not other.cancelled
        assert req.state is RequestState.DRAINING
        with pytest.raises(slabpool.RequestClosedError):
            req.empty(1)
        assert not pool.cancel(request_id)
        del kept
        assert req.ack("gpu0") is Ack.RELEASED
        assert not pool.cancel(request_id)
        assert req.cancelled


def test_who_looks_after_the_end_learns_it_until_a_later_one_is_cancelled(pool: Pool) -> None:
    first, unseen = pool.request("first"), pool.request("unseen")
    assert pool.cancel("first") and pool.cancel("unseen")
    assert first.cancelled  # an answer that was given stays
    for i in range(100):
        later = pool.request(i)
        assert not later.cancelled
        assert pool.cancel(i)
        assert later.cancelled
    assert first.cancelled
    assert unseen.cancelled in (True, False)


def test_a_forced_close_cancels() -> None:
    pool = Pool("1MiB")
    req, closed = pool.request("open"), pool.request("closed", devices=["gpu0"])
    closed.close()
    pool.close(force=True)
    assert req.cancelled and not closed.cancelled


def test_an_id_that_is_not_open_changes_nothing() -> None:
    with Pool("1MiB") as pool:
        assert not pool.cancel("never opened")
        closed = pool.request("closed", devices=["gpu0"])
        closed.close()
        assert not pool.cancel("closed")
        assert not closed.cancelled and closed.pending == {"gpu0"}
        assert closed.ack("gpu0") is Ack.RELEASED
        assert not pool.cancel("closed") and not pool.cancel("7") and not pool.cancel(7)


def test_several_open_ones(pool: Pool) -> None:
    twins = [pool.request("twin") for _ in range(3)]
    with pytest.raises(slabpool.AmbiguousRequestError, match="generation="):
        pool.cancel("twin")
    assert not any(twin.cancelled for twin in twins)
    assert not pool.cancel("twin", generation=twins[-1].generation + 1000)
    assert not pool.cancel("other", generation=twins[0].generation)
    assert pool.cancel("twin", generation=twins[0].generation)
    assert pool.cancel("twin", generation=twins[1].generation)
    assert pool.cancel("twin")
    assert all(twin.state is RequestState.RELEASED for twin in twins)


def test_children_go_along_and_need_their_generation(pool: Pool) -> None:
    req = pool.request("chat", devices=["gpu0"])
    one, two = req.child(devices=["gpu0"]), req.child(devices=["gpu0"])
    assert pool.cancel("chat", generation=one.generation)
    assert one.cancelled and not req.cancelled and not two.cancelled
    assert pool.cancel("chat")
    assert req.cancelled and two.cancelled
    assert req.ack("gpu0") is Ack.RELEASED


def test_who_waits_in_the_request_hears_of_it(pool: Pool) -> None:
    async def main() -> None:
        with pool.request("full") as full, pool.request("chat") as req:
            rest = full.empty(16 << 20, "u1")
            task = asyncio.create_task(req.empty_async(1 << 20, "u1"))
            await asyncio.sleep(0)
            assert pool.stats().waiting == 1
            assert pool.cancel("chat")
            with pytest.raises(slabpool.RequestClosedError, match=r"'chat' generation \d+ was cancelled: "):
                await task
            with pytest.raises(slabpool.RequestClosedError, match="was cancelled: no child"):
                req.child()
            del rest

    asyncio.run(main())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s: s.pool.cancel("twins", generation=0), slabpool.InvalidArgumentError, "generation ... 0"),
        (
            lambda s: s.pool.cancel("chat", generation="x"),
            slabpool.InvalidTypeError,
            "generation must be an int",
        ),
        (lambda s: s.pool.cancel(1.5), slabpool.InvalidTypeError, "request_id must be ... 1.5"),
        (lambda s: s.pool.cancel(None), slabpool.InvalidTypeError, "request_id must be ... None"),
    ],
)
def test_bad_arguments(
    scene: Scene, call: Callable[[Scene], object], error: type[Exception], text: str
) -> None:
    refused(scene, call, error, text)


def test_twins_that_the_host_has_closed_are_not_ambiguous(scene: Scene) -> None:
    assert not scene.pool.cancel("twin")


# ---- by an exception


class _OurError(Exception):
    pass


@pytest.mark.parametrize("error", [_OurError, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_an_exception_cancels_and_is_not_swallowed(pool: Pool, error: type[BaseException]) -> None:
    req = pool.request("chat", devices=["gpu0"])
    with pytest.raises(error), req:
        child = req.child(devices=["gpu0"])
        raise error
    assert req.cancelled and child.cancelled
    assert req.ack("gpu0") is Ack.RELEASED
    assert req.cancelled


def test_an_ordinary_end_closes(pool: Pool) -> None:
    for leave in ("end", "return"):

        def work(leave: str = leave) -> slabpool.Request:
            with pool.request("chat", devices=["gpu0"]) as req:
                if leave == "return":
                    return req
            return req

        req = work()
        assert not req.cancelled and req.state is RequestState.DRAINING
        assert req.ack("gpu0") is Ack.RELEASED


def test_a_child_that_fails_leaves_its_parent_alone(pool: Pool) -> None:
    with pool.request("chat", devices=["gpu0"]) as req:
        with pytest.raises(_OurError), req.child(devices=["gpu0"]) as child:
            raise _OurError
        assert child.cancelled and not req.cancelled
        req.empty(1)
    assert req.ack("gpu0") is Ack.RELEASED


def test_what_was_closed_before_the_exception_stays_closed(pool: Pool) -> None:
    with pytest.raises(_OurError), pool.request("chat", devices=["gpu0"]) as req:
        req.close()
        raise _OurError
    assert not req.cancelled
    assert req.ack("gpu0") is Ack.RELEASED


def test_a_task_that_is_cancelled(pool: Pool) -> None:
    opened: list[slabpool.Request] = []

    async def turn() -> None:
        with await pool.request_async("chat", devices=["gpu0"]) as req:
            opened.append(req)
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(turn())
        while not opened:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert opened[0].cancelled
    assert opened[0].ack("gpu0") is Ack.RELEASED


def test_a_turn_that_fails_is_cancelled_and_its_session_keeps_what_it_kept(pool: Pool) -> None:
    session = pool.session("chat")
    with pytest.raises(_OurError), session.request(devices=["gpu0"]) as turn:
        session.keep("kv", turn.full(100, 7, "u1"))
        raise _OurError
    assert turn.cancelled
    assert turn.ack("gpu0") is Ack.RELEASED
    with session.request() as turn:
        assert session["kv"].sum() == 700
        assert not turn.cancelled
    session.close()
