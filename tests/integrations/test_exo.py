"""slabpool.exo on stand-ins (exo_shapes.py): prompts begin, end and fail, and afterwards nothing is kept.

The KV caches here are numpy arrays over the request's memory, because the stand-in engine uses numpy.
tests/integrations/test_exo_tinygrad.py has tinygrad's tensors, and benchmarks/exo runs exo itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import slabpool
from slabpool.exo import Adapter, RunRefusedError, _engine, _runs
from slabpool.exo._wire import Message, Tag, parse, tagged, untagged
from tests.integrations.exo_engine_shapes import CONTEXT, LAYERS, TOKENS, Shard, reference
from tests.integrations.exo_shapes import Node, answer, make_ring, nothing_kept, until
from tests.waiting import PATIENCE

PROMPTS = [f"prompt number {i}" for i in range(8)]
#: Bytes of the caches of one request on one of two nodes.
KV = 2 * CONTEXT * 8 * LAYERS // 2


@pytest.fixture(autouse=True)
def numpy_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(request: slabpool.Request, x: Any, attention: Any) -> Any:
        shape = (2, x.shape[0], attention.max_context, attention.n_kv_heads, attention.head_dim)
        return SimpleNamespace(length=attention.max_context), request.zeros(shape, x.dtype)

    monkeypatch.setattr(_engine, "make_cache", make)


def install(nodes: list[Node], capacity: str = "16MiB") -> list[Adapter]:
    return [slabpool.exo.install(node, pool=slabpool.Pool(capacity)) for node in nodes]


def scene(body: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test with two nodes, "a" and "b", and their adapters; at its end nothing is kept."""

    def test() -> None:
        async def main() -> None:
            nodes = make_ring("a", "b")
            adapters = install(nodes)
            await body(*nodes, *adapters)
            await until(lambda: nothing_kept(*adapters))
            assert all(adapter.pool._verify() is None for adapter in adapters)

        asyncio.run(main())

    test.__name__ = body.__name__
    test.__doc__ = body.__doc__
    return test


def gate(node: Node, done: int = 0) -> tuple[asyncio.Event, asyncio.Event]:
    """Stops the node's engine in requests that have done `done` steps, until the second event is set. The
    first event says that a request has stopped there.
    """
    arrived, go = asyncio.Event(), asyncio.Event()

    async def before(request_id: str) -> None:
        if node.inference_engine.steps[request_id] == done:
            arrived.set()
            await go.wait()

    node.inference_engine.before = before
    return arrived, go


def test_the_stand_ins_have_the_faults() -> None:
    """Without the adapter, entries stay, a repeated id fails, and three requests at once get wrong tokens."""

    async def main() -> None:
        a, b = make_ring("a", "b")
        assert await answer(a, "x", PROMPTS[0]) == reference(PROMPTS[0])
        assert a.outstanding_requests and a.buffered_token_output and b.buffered_token_output
        assert a.inference_engine.states
        together = await asyncio.gather(
            *(answer(a, f"r{i}", prompt) for i, prompt in enumerate(PROMPTS)), return_exceptions=True
        )
        assert together != [reference(prompt) for prompt in PROMPTS]

    asyncio.run(main())


@scene
async def test_one_after_another(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """At either node."""
    for i, prompt in enumerate(PROMPTS):
        assert await answer((a, b)[i % 2], f"r{i}", prompt) == reference(prompt)


@scene
async def test_the_same_id_again(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    for prompt in PROMPTS:
        assert await answer(b, "again", prompt) == reference(prompt)


@scene
async def test_many_at_once(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """More requests than the engine's LRU holds; each keeps its own memory."""
    arrived, go = gate(b)
    work = [asyncio.ensure_future(answer(a, f"r{i}", prompt)) for i, prompt in enumerate(PROMPTS)]
    await until(lambda: len(at_b.runs()) == len(PROMPTS))
    assert at_a.counts()["live"] == len(PROMPTS) * KV
    assert {run.pending for run in at_a.runs()} == {frozenset("ab")}
    assert arrived.is_set()
    go.set()
    assert await asyncio.gather(*work) == [reference(prompt) for prompt in PROMPTS]


@scene
async def test_requests_of_one_id_at_once_are_served_in_turn(
    a: Node, b: Node, at_a: Adapter, at_b: Adapter
) -> None:
    finished: list[list[int]] = []

    def on_token(name: str, tokens: list[int], done: bool) -> None:
        if not finished or len(finished[-1]) == TOKENS:
            finished.append([])
        finished[-1].extend(tokens)

    a.on_token.register("all").on_next(on_token)
    await asyncio.gather(*(a.process_prompt(Shard(0, 0), prompt, "one") for prompt in PROMPTS[:3]))
    await until(lambda: sum(map(len, finished)) == 3 * TOKENS)
    assert finished == [reference(prompt) for prompt in PROMPTS[:3]]


@scene
async def test_one_id_at_two_nodes_at_once_is_refused(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """The two are not mixed up: the second one to reach a node gets an error."""
    arrived, go = gate(a)
    first = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[0], "one"))
    await arrived.wait()  # b does not know of it yet
    with pytest.raises(
        RunRefusedError, match="'one' entered at node b while a request with the same id, from node a"
    ):
        await b.process_prompt(Shard(0, 0), PROMPTS[1], "one")
    go.set()
    await first


@scene
async def test_cancelled_in_the_middle(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """The step that is running keeps its memory until it ends."""
    arrived, go = gate(b, 1)
    work = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[0], "gone"))
    await arrived.wait()
    assert at_a.cancel("gone")
    await until(lambda: bool(at_b.runs()) and at_b.runs()[0].reason == "the client disconnected")
    assert at_b.runs()[0].pending == frozenset("ab")  # b computes, and a waits for b's ack
    assert at_b.counts()["live"] == KV
    go.set()
    await work
    assert not at_a.cancel("gone")
    await until(lambda: nothing_kept(at_a, at_b))
    assert b.inference_engine.steps["gone"] == 2


@scene
async def test_cancelled_before_the_first_round_ends(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """No memory is taken for a request that is over."""
    arrived, go = gate(b)
    work = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[0], "gone"))
    await arrived.wait()
    assert at_a.cancel("gone")
    await until(lambda: bool(at_b.runs()) and at_b.runs()[0].reason != "")
    go.set()
    await work
    await until(lambda: nothing_kept(at_a, at_b))
    assert b.inference_engine.steps["gone"] == 0
    assert at_b.pool.stats().allocations == 0


@scene
async def test_an_error_in_the_engine(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    async def fail(request_id: str) -> None:
        raise ArithmeticError("a layer is broken")

    b.inference_engine.before = fail
    await a.process_prompt(Shard(0, 0), PROMPTS[0], "bad")
    await until(lambda: nothing_kept(at_a, at_b))
    b.inference_engine.before = None
    assert await answer(a, "good", PROMPTS[1]) == reference(PROMPTS[1])


@scene
async def test_an_error_in_the_first_step(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """The caller gets the error, whichever node was asked."""

    async def fail(request_id: str) -> None:
        raise ArithmeticError("a layer is broken")

    a.inference_engine.before = fail
    for node in (a, b):
        with pytest.raises(ArithmeticError, match="a layer is broken"):
            await node.process_prompt(Shard(0, 0), PROMPTS[0], "bad")


@scene
async def test_no_room(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """A request that finds no room fails; running requests continue."""
    arrived, go = gate(a, 1)
    works = asyncio.ensure_future(answer(a, "runs", PROMPTS[0]))
    await arrived.wait()
    with at_b.pool.request("hog") as hog:
        for nbytes in (1 << 20, 64 << 10, 1 << 10):
            with pytest.raises(slabpool.PoolExhausted):
                while True:
                    hog.empty(nbytes, "u1")
        await a.process_prompt(Shard(0, 0), PROMPTS[1], "no room")
        await until(lambda: [run.request_id for run in at_a.runs()] == ["runs"])
    go.set()
    assert await works == reference(PROMPTS[0])


@scene
async def test_a_node_is_lost(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """Its acks count once exo has dropped the node; the other node continues alone."""
    arrived, go = gate(b)
    work = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[0], "doomed"))
    await arrived.wait()
    a.peers[0].down = b.peers[0].down = True
    a.discovered, b.discovered = [], []
    await a.update_peers()
    assert at_a.runs()[0].reason == "node b was lost"
    await b.update_peers()
    go.set()
    await work
    await until(lambda: nothing_kept(at_a, at_b))
    await a.collect_topology()
    assert await answer(a, "alone", PROMPTS[1]) == reference(PROMPTS[1])


@scene
async def test_a_peer_that_does_not_answer(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """The prompt gets an error; its memory waits for the silent node's ack, or until exo drops the node."""
    a.peers[0].down = True
    await a.process_prompt(Shard(0, 0), PROMPTS[0], "silent")
    await until(lambda: bool(at_a.runs()) and "Lost" in at_a.runs()[0].reason)
    for _ in range(3):
        await a.update_peers()
    assert at_a.runs()[0].pending == frozenset("b")
    a.peers[0].down = False
    await sweeps(a, b, at_a, at_b)


async def sweeps(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """Looks for peers until nothing is kept. exo looks every other second."""
    deadline = time.monotonic() + PATIENCE
    while not nothing_kept(at_a, at_b):
        assert time.monotonic() < deadline, f"still kept: {at_a.counts()}, {at_b.counts()}"
        for node in (a, b):
            await node.update_peers()
        await asyncio.sleep(0.001)


@scene
async def test_messages_are_lost(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """All of them are lost, so the end of the request is announced again."""
    a.peers[0].loses = b.peers[0].loses = lambda status: parse(status) is not None
    for i, prompt in enumerate(PROMPTS[:3]):
        assert await answer((a, b)[i % 2], f"r{i}", prompt) == reference(prompt)
    await asyncio.sleep(0)
    assert at_a.runs() and at_b.runs()
    a.peers[0].loses = b.peers[0].loses = lambda status: False
    await sweeps(a, b, at_a, at_b)


@scene
async def test_a_restarted_node(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """It has forgotten its requests, and the others learn that when they ask."""
    arrived, _ = gate(b)
    work = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[0], "forgotten"))
    await arrived.wait()
    for task in [*b.tasks, *a.tasks]:
        task.cancel()
    await work
    (fresh,) = (node for node in make_ring("a", "b") if node.id == "b")
    fresh.discovered[0].node = a
    at_fresh = slabpool.exo.install(fresh, pool=slabpool.Pool("16MiB"))
    a.peers[0].node = fresh
    b.discovered = []
    await b.update_peers()  # the old b, whose tasks are gone, now counts a as lost
    b.inference_engine.before = None
    await sweeps(a, fresh, at_a, at_fresh)


@scene
async def test_late_messages_are_refused(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    assert await answer(a, "x", PROMPTS[0]) == reference(PROMPTS[0])
    await until(lambda: nothing_kept(at_a, at_b))
    seen: list[str] = []
    original = b.process_tensor

    async def note(shard: Any, tensor: Any, request_id: str, state: Any = None) -> None:
        seen.append(request_id)
        await original(shard, tensor, request_id, state)

    b.process_tensor = note  # type: ignore[method-assign]
    assert await answer(a, "y", PROMPTS[0]) == reference(PROMPTS[0])
    await until(lambda: nothing_kept(at_a, at_b))
    for name in seen:
        with pytest.raises(RunRefusedError, match=r"'y' \(run a:.*\) is over on node b; work for it is late"):
            await original(Shard(2, 3), np.zeros((1, 1)), name)
    with pytest.raises(RunRefusedError, match="from a node without slabpool"):
        await original(Shard(2, 3), np.zeros((1, 1)), "y")
    assert len(seen) == TOKENS


@scene
async def test_the_ring_changes(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """Layers are divided anew: a running request fails, and does not continue with wrong tokens."""
    arrived, go = gate(b)
    work = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[0], "old ring"))
    await arrived.wait()
    a.topology = {"a", "b", "c"}
    go.set()
    await work
    await until(lambda: nothing_kept(at_a, at_b))
    a.topology = {"a", "b"}


@scene
async def test_three_nodes_in_one_scene(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """A ring of three nodes, with prompts at each."""
    nodes = make_ring("p", "q", "r", "s")
    adapters = install(nodes)
    works = [answer(nodes[i % 4], f"r{i}", prompt) for i, prompt in enumerate(PROMPTS)]
    assert await asyncio.gather(*works) == [reference(prompt) for prompt in PROMPTS]
    await until(lambda: nothing_kept(*adapters))


@scene
async def test_a_new_engine_continues_with_the_states(a: Node, b: Node, at_a: Adapter, at_b: Adapter) -> None:
    """exo makes a new engine when peers change, but the states belong to the requests."""
    arrived, go = gate(b)
    work = asyncio.ensure_future(answer(a, "x", PROMPTS[0]))
    await arrived.wait()
    a.inference_engine = type(a.inference_engine)()
    go.set()
    assert await work == reference(PROMPTS[0])


def test_uninstall_restores_the_node() -> None:
    async def main() -> None:
        a, b = make_ring("a", "b")
        before = set(vars(a))
        adapters = install([a, b])
        assert await answer(a, "x", PROMPTS[0]) == reference(PROMPTS[0])
        arrived, go = gate(b)
        work = asyncio.ensure_future(a.process_prompt(Shard(0, 0), PROMPTS[1], "cut off"))
        await arrived.wait()
        for adapter in adapters:
            adapter.uninstall()
        go.set()
        await work
        await until(lambda: not any(adapter.counts()["live"] for adapter in adapters))
        assert set(vars(a)) == before
        assert "slabpool" not in a.on_opaque_status.callbacks
        b.inference_engine.before = None
        assert await answer(a, "y", PROMPTS[2]) == reference(PROMPTS[2])

    asyncio.run(main())


def test_install_refuses_other_objects() -> None:
    with pytest.raises(
        slabpool.InvalidTypeError, match=r"must be an exo\.orchestration\.Node .* process_prompt"
    ):
        slabpool.exo.install(object(), pool=slabpool.Pool("1MiB"))
    (node,) = make_ring("a")
    adapter = slabpool.exo.install(node)
    assert adapter.pool.name == "exo-a"
    with pytest.raises(slabpool.InvalidTypeError, match="have been replaced already"):
        slabpool.exo.install(node)
    adapter.uninstall()
    slabpool.exo.install(node).uninstall()


def test_remembered_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "REMEMBERED", 4)

    async def main() -> None:
        (a,) = make_ring("a")
        adapter = slabpool.exo.install(a, pool=slabpool.Pool("16MiB"))
        for i in range(10):
            assert await answer(a, f"r{i}", PROMPTS[0]) == reference(PROMPTS[0])
        assert len(adapter._runs._past) == 4
        assert nothing_kept(adapter)

    asyncio.run(main())


@given(st.text(), st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1), st.booleans())
def test_tags_round_trip(request_id: str, name: str, ring: list[str], fresh: bool) -> None:
    tag = Tag(name, ring[0], tuple(ring), fresh)
    assert untagged(tagged(request_id, tag)) == (request_id, tag)


@given(st.text(), st.text(), st.booleans(), st.booleans(), st.booleans(), st.text())
def test_messages_round_trip(sender: str, run: str, over: bool, done: bool, waits: bool, reason: str) -> None:
    message = Message(sender, run, over, done, waits, reason)
    assert parse(message.to_status()) == message
    assert parse('{"type": "node_status", "prompt": "say \\"slabpool\\""}') is None
