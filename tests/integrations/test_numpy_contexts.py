"""The scope of `numpy_handler`: blocks that nest and overlap, tasks, generators, contexts, threads.

In each case the handler ends with its block, in whatever order blocks end, and serves no pool memory
afterwards.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool import numpy_handler, numpy_usage
from tests.integrations.numpy_pool import DEFAULT, numpys_pool, ours  # noqa: F401
from tests.integrations.numpy_suite import handler_name


def test_blocks_nest_and_errors_leave_them(pool: slabpool.Pool) -> None:
    with slabpool.Pool("1MiB", name="inner") as inner:
        with numpy_handler(pool):
            with pytest.raises(ZeroDivisionError), numpy_handler(inner):
                a = np.ones(10)
                assert handler_name() == "slabpool inner"
                1 / 0
            b = np.ones(10)
            assert ours(b)
        assert handler_name(a) == "slabpool inner"
        assert (numpy_usage(inner).arrays, numpy_usage(pool).arrays) == (1, 1)
        del a, b


def test_one_object_is_entered_once_at_a_time(pool: slabpool.Pool) -> None:
    handler = numpy_handler(pool)
    with handler:
        with pytest.raises(slabpool.InvalidArgumentError, match="in force already"):
            handler.__enter__()
        assert ours()
    with handler:
        assert ours()
    with pytest.raises(slabpool.InvalidArgumentError, match="not in force"):
        handler.__exit__(None, None, None)


def test_bad_arguments_are_refused(pool: slabpool.Pool) -> None:
    with pool.request("r") as req:
        for wrong in (req, "pool", None):
            with pytest.raises(slabpool.InvalidTypeError, match="needs a Pool"):
                numpy_handler(wrong)  # type: ignore[arg-type]
            with pytest.raises(slabpool.InvalidTypeError, match="needs a Pool"):
                numpy_usage(wrong)  # type: ignore[arg-type]


def test_any_name_can_name_a_handler() -> None:
    with slabpool.Pool("1MiB", name="größe" * 100) as pool, numpy_handler(pool):
        name = handler_name()
        assert name is not None and name.startswith("slabpool gr\\xf6") and len(name) == 126


def test_tasks_inherit_the_handler_until_its_block_ends(pool: slabpool.Pool) -> None:
    async def work(entered: asyncio.Event, go_on: asyncio.Event) -> list[object]:
        said: list[object] = [ours(np.ones(10))]
        entered.set()
        await go_on.wait()
        return [*said, ours(), numpy_usage(pool).arrays, np.ones(10).sum(), numpy_usage(pool).arrays]

    async def main() -> None:
        entered, go_on = asyncio.Event(), asyncio.Event()
        outside = asyncio.create_task(asyncio.sleep(0, result=None))
        with numpy_handler(pool):
            inside = asyncio.create_task(work(entered, go_on))
            await entered.wait()
            assert await asyncio.to_thread(ours)
        await outside
        go_on.set()
        # The task's context still has the handler, but the handler's block has ended.
        assert await inside == [True, True, 0, 10.0, 0]
        assert handler_name() == DEFAULT

    asyncio.run(main())


def test_a_task_that_enters_does_not_touch_others(pool: slabpool.Pool) -> None:
    async def work(number: int, barrier: list[asyncio.Event]) -> bool:
        with numpy_handler(pool):
            barrier[number].set()
            await barrier[1 - number].wait()  # both are inside now
            inside = ours(np.ones(3))
        return inside and handler_name() == DEFAULT

    async def main() -> list[bool]:
        barrier = [asyncio.Event(), asyncio.Event()]
        return await asyncio.gather(work(0, barrier), work(1, barrier))

    assert asyncio.run(main()) == [True, True]


def test_generators_that_overlap_leave_nothing_behind(pool: slabpool.Pool) -> None:
    def generate() -> Iterator[bool]:
        with numpy_handler(pool):
            while True:
                yield ours(np.ones(3))

    first, second, third = generate(), generate(), generate()
    assert next(first) and next(second)
    first.close()  # not in the reverse order of their start
    assert ours()  # the second one's handler is in force
    assert next(third)
    second.close()
    assert ours()
    third.close()
    assert handler_name() == DEFAULT


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_overlapping_without_end_keeps_no_pools() -> None:
    def generate() -> Iterator[None]:
        with numpy_handler(slabpool.Pool("1MiB")):
            yield

    def overlap(times: int) -> None:
        last = generate()
        next(last)
        for _ in range(times):
            new = generate()
            next(new)
            last.close()
            last = new
        last.close()

    def addresses() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")

    overlap(10)
    before = addresses()
    overlap(100)  # each pool takes 64 MiB of addresses
    assert handler_name() == DEFAULT
    assert addresses() - before < 10 * (64 << 20)


def test_an_exit_in_another_context_ends_only_its_own_block(pool: slabpool.Pool) -> None:
    handler = numpy_handler(pool)
    other = contextvars.copy_context()
    with slabpool.Pool("1MiB", name="other") as second:
        handler.__enter__()
        array = np.ones(10)
        there = numpy_handler(second)
        other.run(there.__enter__)
        other.run(handler.__exit__, None, None, None)
        assert other.run(handler_name) == "slabpool other"
        other.run(there.__exit__, None, None, None)
        # This context still has the handler, but the handler gives ordinary memory.
        used = numpy_usage(pool)
        more = np.ones(1000)
        assert used == numpy_usage(pool) and more.sum() == 1000
        with numpy_handler(second):
            assert handler_name() == "slabpool other"
        # The handler that was in force before the one that ended.
        assert handler_name() == DEFAULT
        del array


# ---- threads


def _in_thread(function: Callable[[], object]) -> object:
    said: list[object] = []
    thread = threading.Thread(target=lambda: said.append(function()))
    thread.start()
    thread.join()
    return said[0]


def test_threads_are_left_alone_unless_asked_for(pool: slabpool.Pool) -> None:
    with numpy_handler(pool):
        assert _in_thread(handler_name) == DEFAULT
    with numpy_handler(pool, threads=True):
        with numpy_handler(pool):
            assert _in_thread(ours)  # the outer block asked for threads
        assert _in_thread(ours)
        assert _in_thread(lambda: _in_thread(ours))
        with ThreadPoolExecutor(1) as executor:
            array = executor.submit(np.arange, 1000).result()
            assert ours(array)
            assert executor.submit(lambda: array.sum()).result() == 999 * 500
    assert _in_thread(handler_name) == DEFAULT
    array = np.empty(0)


def test_threads_of_other_contexts_are_left_alone(pool: slabpool.Pool) -> None:
    asked, answered = threading.Event(), threading.Event()
    said: list[object] = []

    def outsider() -> None:
        asked.wait()
        said.append(handler_name())
        said.append(_in_thread(handler_name))  # started while the handler is in force, but not by its context
        answered.set()

    thread = threading.Thread(target=outsider)
    thread.start()
    with numpy_handler(pool, threads=True):
        asked.set()
        answered.wait()
    thread.join()
    assert said == [DEFAULT, DEFAULT]


def test_threads_with_their_own_run_and_failed_starts(pool: slabpool.Pool) -> None:
    class Own(threading.Thread):
        said: object = None

        def run(self) -> None:
            self.said = ours(), "run" in vars(self)

    with numpy_handler(pool, threads=True):
        thread = Own()
        thread.start()
        thread.join()
        assert thread.said == (True, False)
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
        assert "run" not in vars(thread)
        said: list[object] = []
        odd = threading.Thread()
        run = lambda: said.append(ours())  # noqa: E731
        odd.run = run  # type: ignore[method-assign]
        odd.start()
        odd.join()
        assert said == [True] and odd.run is run
        gone = weakref.ref(thread)
        del thread
        assert gone() is None  # without the garbage collector


def test_threads_free_each_others_arrays(pool: slabpool.Pool) -> None:
    count, rounds = 4, 200
    start = threading.Barrier(count)
    boxes: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(count)]
    wrong: list[object] = []

    def work(number: int) -> None:
        draw = random.Random(number)
        start.wait()
        for step in range(rounds):
            array = np.full(draw.randrange(1, 40_000), number, np.uint8)
            boxes[(number + step) % count].append(array)
            box = boxes[number]
            while len(box) > 3:
                taken = box.pop()
                if not (taken == taken[0]).all():
                    wrong.append(taken)

    with numpy_handler(pool, threads=True):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    boxes.clear()
