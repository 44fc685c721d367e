"""Request.activate: which request is active where, and that the activation ends with its block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

import slabpool


@pytest.fixture
def pool() -> Iterator[slabpool.Pool]:
    with slabpool.Pool("1MiB") as pool:
        yield pool


def test_the_innermost_block_counts(pool: slabpool.Pool) -> None:
    with pool.request("outer") as outer, pool.request("inner") as inner:
        assert slabpool.active_request() is None
        with outer.activate():
            with inner.activate() as given:
                assert given is inner
                assert slabpool.active_request() is inner
                with outer.activate():
                    assert slabpool.active_request() is outer
                assert slabpool.active_request() is inner
            assert slabpool.active_request() is outer
        assert slabpool.active_request() is None


def test_an_error_ends_the_activation(pool: slabpool.Pool) -> None:
    with pool.request("r") as req:
        with pytest.raises(ZeroDivisionError), req.activate():
            raise ZeroDivisionError
        assert slabpool.active_request() is None


def test_an_activation_is_for_one_block(pool: slabpool.Pool) -> None:
    with pool.request("r") as req:
        activation = req.activate()
        with activation, pytest.raises(RuntimeError, match="for one `with` block"):
            activation.__enter__()
        assert slabpool.active_request() is None
        with pytest.raises(RuntimeError, match="for one `with` block"):
            activation.__enter__()


def test_another_thread_has_no_active_request(pool: slabpool.Pool) -> None:
    seen: list[object] = ["not asked"]
    with pool.request("r") as req, req.activate():
        thread = threading.Thread(target=lambda: seen.append(slabpool.active_request()))
        thread.start()
        thread.join()
    assert seen == ["not asked", None]


def test_tasks_inherit_the_activation_until_the_block_ends(pool: slabpool.Pool) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def task() -> list[object]:
            inside = slabpool.active_request()
            await go.wait()
            return [inside, slabpool.active_request()]

        with pool.request("r") as req:
            with req.activate():
                work = asyncio.ensure_future(task())
                await asyncio.sleep(0)
            go.set()
            assert await work == [req, None]

    asyncio.run(main())
