"""slabpool.exo and HTTP clients, on a real aiohttp server over a stand-in API (exo_shapes.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any

import pytest

import slabpool
from slabpool.exo import Adapter
from tests.integrations.exo_engine_shapes import reference
from tests.integrations.exo_shapes import Api, Node, make_ring, nothing_kept, until
from tests.integrations.test_exo import PROMPTS, gate, numpy_caches

assert numpy_caches  # the fixture applies to this module too


@pytest.fixture(autouse=True)
def aiohttp(require_module: Callable[[str], ModuleType]) -> ModuleType:
    return require_module("aiohttp")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Served:
    """Two nodes, each with an API; the API of node "a" listens."""

    def __init__(self) -> None:
        self.nodes = make_ring("a", "b")
        self.apis = [Api(node) for node in self.nodes]
        self.adapters = [slabpool.exo.install(node, pool=slabpool.Pool("16MiB")) for node in self.nodes]
        self.port = free_port()

    @property
    def a(self) -> Node:
        return self.nodes[0]

    @property
    def at_a(self) -> Adapter:
        return self.adapters[0]

    async def connect(self, name: str, prompt: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"id": name, "prompt": prompt}).encode()
        writer.write(
            b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        return reader, writer

    async def ask(self, name: str, prompt: str) -> str:
        reader, writer = await self.connect(name, prompt)
        text = (await reader.read()).decode()
        writer.close()
        return text


def served(body: Callable[[Served], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test with an API that listens; at its end neither node keeps anything."""

    def test() -> None:
        async def main() -> None:
            here = Served()
            await here.apis[0].run("127.0.0.1", here.port)
            await body(here)
            await until(lambda: nothing_kept(*here.adapters))
            assert not here.apis[0].token_queues and not here.apis[1].token_queues
            assert "token_queues" in here.at_a.counts()

        asyncio.run(main())

    test.__name__ = body.__name__
    return test


@served
async def test_answers(here: Served) -> None:
    for i, prompt in enumerate(PROMPTS):
        text = await here.ask(f"r{i}", prompt)
        assert "200 OK" in text
        assert [f"[{token}]" for token in reference(prompt)] == [
            line for line in text.split("\r\n\r\n", 1)[1].splitlines() if line.startswith("[")
        ]


@served
async def test_a_client_hangs_up_during_its_answer(here: Served) -> None:
    arrived, go = gate(here.nodes[1], 2)
    reader, writer = await here.connect("gone", PROMPTS[0])
    await reader.readuntil(b"\n[")
    await arrived.wait()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await until(lambda: here.at_a.runs()[0].reason == "the client disconnected")
    go.set()
    await until(lambda: nothing_kept(*here.adapters))
    assert here.nodes[1].inference_engine.steps["gone"] == 3  # the remaining steps were not run


@served
async def test_a_client_hangs_up_before_its_answer(here: Served) -> None:
    arrived, go = gate(here.a)
    _, writer = await here.connect("gone", PROMPTS[0])
    await arrived.wait()
    writer.close()
    await until(lambda: here.at_a.runs()[0].reason == "the client disconnected")
    go.set()


@served
async def test_a_client_hangs_up_while_its_prompt_waits(here: Served) -> None:
    """The prompt waits for an earlier one of the same id, and never begins."""
    arrived, go = gate(here.a)
    first = asyncio.ensure_future(here.ask("same", PROMPTS[0]))
    await arrived.wait()
    _, writer = await here.connect("same", PROMPTS[1])
    await until(lambda: here.apis[0].handled == 2)
    writer.close()
    go.set()
    assert str(reference(PROMPTS[0])[-1]) in await first


@served
async def test_a_failed_prompt_is_reported_at_once(here: Served) -> None:
    async def fail(request_id: str) -> None:
        raise ArithmeticError("a layer is broken")

    here.nodes[1].inference_engine.before = fail
    text = await asyncio.wait_for(here.ask("bad", PROMPTS[0]), 10)
    assert "node b: ArithmeticError: a layer is broken" in text


def test_an_api_that_is_serving_is_refused() -> None:
    async def main() -> None:
        (node,) = make_ring("a")
        api = Api(node)
        api.app.freeze()
        with pytest.raises(slabpool.InvalidArgumentError, match="already serving"):
            slabpool.exo.install(node, pool=slabpool.Pool("1MiB"))
        assert "process_prompt" not in vars(node)

    asyncio.run(main())
