"""Lines that reports show: noted where something is opened, and found when it is reported."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest

from slabpool import Ack, Pool, PoolExhausted

LINE = 3


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool("1MiB") as pool:
        yield pool
        pool.close(force=True)


class Template:
    """Generated code whose line LINE is `call`, as a server that compiles templates has it."""

    def __init__(self, name: str, call: str) -> None:
        self.place = f"{name}:{LINE}"
        space: dict[str, Any] = {}
        exec(compile(f"def f(pool):\n  x = 1\n  return {call}\n", name, "exec"), space)
        self.run = space.pop("f")
        self.code: weakref.ref[CodeType] = weakref.ref(self.run.__code__)

    def forget(self) -> weakref.ref[CodeType]:
        """Drops the function. What is left of it is what the pool keeps."""
        del self.run
        return self.code


OPEN = "pool.request('r', ['gpu0'])"


def test_a_record_shows_its_line_when_the_code_is_gone(pool: Pool) -> None:
    template = Template("<a template>", OPEN)
    request = template.run(pool)
    code = template.forget()
    assert pool.requests()[0].opened_at == template.place
    assert template.place in repr(request)
    request.close()
    assert pool.requests()[0].opened_at == template.place
    assert request.ack("gpu0") is Ack.RELEASED
    assert pool.requests() == []
    pool.request("next").close()  # in the same slot
    assert code() is None


def test_a_record_with_retained_bytes_keeps_its_line(pool: Pool) -> None:
    template = Template("<a template>", "pool.request('r')")
    request = template.run(pool)
    view = request.empty(1000)
    request.close()
    code = template.forget()
    pool.request("another slot").close()
    assert pool.requests()[0].opened_at == template.place
    del view
    pool.request("next").close()
    pool.request("next").close()
    assert code() is None


def test_code_is_kept_once_for_each_record(pool: Pool) -> None:
    template = Template("<a template>", OPEN)
    code = template.run.__code__
    before = sys.getrefcount(code)
    for _ in range(1000):
        request = template.run(pool)
        pool.requests()
        repr(request)
        request.close()
        request.ack("gpu0")
    assert sys.getrefcount(code) == before + 1
    requests = [template.run(pool) for _ in range(100)]
    assert sys.getrefcount(code) == before + 100
    for request in requests:
        request.close()
        request.ack("gpu0")
    for _ in range(100):
        pool.request("r", ["gpu0"])  # closed with the pool
    pool.close(force=True)
    gc.collect()
    assert sys.getrefcount(code) == before


def test_templates_without_end_are_not_kept(pool: Pool) -> None:
    codes = []
    for i in range(500):
        template = Template(f"<template {i}>", OPEN)
        request = template.run(pool)
        request.close()
        request.ack("gpu0")
        codes.append(template.forget())
    assert sum(code() is not None for code in codes) <= 1


def test_a_pool_that_goes_drops_the_code() -> None:
    pool = Pool("1MiB")
    template = Template("<a template>", OPEN)
    template.run(pool).close()
    code = template.forget()
    pool.close(force=True)
    assert code() is not None
    del pool
    gc.collect()
    assert code() is None


@pytest.mark.parametrize(
    ("call", "look"),
    [
        ("pool.group('g')", "groups"),
        ("pool.session('s')", "sessions"),
        ("(lambda r: (r, r.child()))(pool.request('r'))", "requests"),
        ("pool.group('g').request('r')", "requests"),
        ("pool.group('g').session('s')", "sessions"),
        ("pool.session('s').request()", "requests"),
    ],
)
def test_all_that_is_opened_shows_its_line(pool: Pool, call: str, look: str) -> None:
    template = Template("<a template>", call)
    kept = template.run(pool)
    template.forget()
    assert template.place in [record.opened_at for record in getattr(pool, look)()], kept


def test_what_a_session_keeps_shows_the_line_that_kept_it(pool: Pool) -> None:
    session = pool.session("s")
    with session.request() as turn:
        tensor = turn.zeros(100)
        template = Template("<a template>", "pool[0].keep('kv', pool[1])")
        template.run((session, tensor))
        template.forget()
    assert template.place in [record.opened_at for record in pool.requests() if record.kept_as == "kv"]


def test_coroutines_show_the_line_that_made_them(pool: Pool) -> None:
    async def main() -> None:
        template = Template("<a template>", "pool.request_async('r', reserve='1MiB')")
        first = await template.run(pool)
        second = asyncio.ensure_future(template.run(pool))
        await asyncio.sleep(0.01)
        code = template.forget()
        assert [waiter.where for waiter in pool.waiters()] == [template.place]
        first.close()
        (await second).close()
        del second
        assert pool.requests() == []
        pool.request("next").close()
        await asyncio.sleep(0)
        gc.collect()
        assert code() is None

    asyncio.run(main())


def test_a_refusal_shows_lines_of_requests_that_are_gone(pool: Pool) -> None:
    template = Template("<a template>", "pool.request('r', reserve='1MiB')")
    request = template.run(pool)
    code = template.forget()
    with pytest.raises(PoolExhausted) as refused:
        pool.request("s", reserve="1MiB")
    request.close()
    pool.request("next").close()
    assert code() is not None
    assert template.place in str(refused.value)


def test_debug_blocks_keep_no_code(pool: Pool) -> None:
    with Pool("1MiB", debug=True) as checked:
        template = Template("<a template>", "pool.empty(10)")
        held = template.run(checked)
        code = template.forget()
        assert code() is None
        del held


def test_reports_beside_threads_that_open_and_forget(pool: Pool) -> None:
    stop = threading.Event()
    wrong: list[str] = []

    def report() -> None:
        while not stop.is_set():
            wrong.extend(r.opened_at for r in pool.requests() if not r.opened_at.startswith("<template "))

    observers = [threading.Thread(target=report) for _ in range(2)]
    for observer in observers:
        observer.start()
    try:
        for i in range(300):
            template = Template(f"<template {i}>", "pool.request('r')")
            template.run(pool).close()
    finally:
        stop.set()
        for observer in observers:
            observer.join()
    assert not wrong
