"""Stand-ins for the parts of exo that slabpool.exo adapts: objects of the same shape as exo 0.0.15's.

Written for these tests. They have the methods, the per-request entries and the faults of exo's Node, engine,
peers and API: entries that are never removed, an LRU of two states, errors that are printed and ignored.
benchmarks/exo runs the real exo.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from slabpool.exo import Adapter
from tests.integrations.exo_engine_shapes import LAYERS, TOKENS, Engine, Shard
from tests.waiting import PATIENCE


class Callback:
    """A named observer of events."""

    def __init__(self) -> None:
        self.observers: list[Callable[..., object]] = []

    def on_next(self, observer: Callable[..., object]) -> None:
        self.observers.append(observer)


class Callbacks:
    """Events by name."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callback] = {}

    def register(self, name: str) -> Callback:
        return self.callbacks.setdefault(name, Callback())

    def deregister(self, name: str) -> None:
        self.callbacks.pop(name, None)

    def trigger_all(self, *args: object) -> None:
        for callback in list(self.callbacks.values()):
            for observer in callback.observers:
                observer(*args)


class Lost(Exception):
    """Raised by a transport when the other end is gone."""


class Peer:
    """One node as another sees it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.down = False
        #: An opaque status is lost if this returns true for it.
        self.loses: Callable[[str], bool] = lambda status: False

    def id(self) -> str:
        return self.node.id

    async def _cross(self) -> None:
        await asyncio.sleep(0)  # another task may overtake, as on a network
        if self.down:
            raise Lost(f"node {self.node.id} does not answer")

    async def send_prompt(self, shard: Shard, prompt: str, request_id: str, inference_state: Any) -> None:
        await self._cross()
        await self.node.process_prompt(shard, prompt, request_id, inference_state)

    async def send_tensor(
        self, shard: Shard, tensor: np.ndarray[Any, Any], request_id: str, inference_state: Any
    ) -> None:
        await self._cross()
        received = np.frombuffer(tensor.tobytes(), tensor.dtype).reshape(tensor.shape)
        await self.node.process_tensor(shard, received, request_id, inference_state)

    async def send_result(self, request_id: str, result: list[int], is_finished: bool) -> None:
        await self._cross()
        self.node.on_token.trigger_all(request_id, result, is_finished)

    async def send_opaque_status(self, request_id: str, status: str) -> None:
        await self._cross()
        if not self.loses(status):
            self.node.on_opaque_status.trigger_all(request_id, status)


@dataclasses.dataclass
class Partition:
    """A node's part of the layers."""

    node_id: str


class Strategy:
    """Divides the layers into equal parts, ordered by the names of the nodes."""

    def partition(self, topology: set[str]) -> list[Partition]:
        return [Partition(name) for name in sorted(topology)]


class Node:
    """A member of a ring."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.inference_engine = Engine()
        self.peers: list[Peer] = []
        self.discovered: list[Peer] = []
        self.topology = {name}
        self.partitioning_strategy = Strategy()
        self.outstanding_requests: dict[str, str] = {}
        self.buffered_token_output: dict[str, tuple[list[int], bool]] = {}
        self.on_token = Callbacks()
        self.on_opaque_status = Callbacks()
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Any) -> None:
        """Starts a task whose result is never awaited."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        task.cancelled() or task.exception()

    def get_current_shard(self, base_shard: Shard, index: int | None = None) -> Shard:
        names = [part.node_id for part in self.partitioning_strategy.partition(self.topology)]
        if index is None:
            index = names.index(self.id)
        each = LAYERS // len(names)
        last = LAYERS - 1 if index == len(names) - 1 else (index + 1) * each - 1
        return Shard(index * each, last)

    def _target(self, index: int) -> tuple[str, Peer | None]:
        parts = self.partitioning_strategy.partition(self.topology)
        name = parts[index % len(parts)].node_id
        return name, next((peer for peer in self.peers if peer.id() == name), None)

    async def process_prompt(
        self, base_shard: Shard, prompt: str, request_id: str | None = None, inference_state: Any = None
    ) -> None:
        shard = self.get_current_shard(base_shard)
        self.start(
            self.broadcast_status(str(request_id), json.dumps({"type": "node_status", "node_id": self.id}))
        )
        assert request_id is not None
        if not shard.is_first_layer():
            self.outstanding_requests[request_id] = "waiting"
            await self.forward_prompt(shard, prompt, request_id, 0, inference_state)
            return
        self.outstanding_requests[request_id] = "processing"
        engine = self.inference_engine
        result, state = await engine.infer_prompt(request_id, shard, prompt, inference_state)
        await self.process_inference_result(shard, result, request_id, state)

    async def process_tensor(
        self,
        base_shard: Shard,
        tensor: np.ndarray[Any, Any],
        request_id: str | None = None,
        inference_state: Any = None,
    ) -> None:
        await self._process_tensor(self.get_current_shard(base_shard), tensor, request_id, inference_state)

    async def _process_tensor(
        self,
        base_shard: Shard,
        tensor: np.ndarray[Any, Any],
        request_id: str | None = None,
        inference_state: Any = None,
    ) -> Any:
        assert request_id is not None
        try:
            self.outstanding_requests[request_id] = "processing"
            engine = self.inference_engine
            result, state = await engine.infer_tensor(request_id, base_shard, tensor, inference_state)
            return await self.process_inference_result(base_shard, result, request_id, state)
        except Exception as error:
            self.outstanding_requests.pop(request_id)
            print(f"node {self.id}: {error}")
            return None

    async def process_inference_result(
        self, shard: Shard, result: np.ndarray[Any, Any], request_id: str, inference_state: Any = None
    ) -> Any:
        tokens, _ = self.buffered_token_output.setdefault(request_id, ([], False))
        finished = len(tokens) >= TOKENS
        forward = result
        if shard.is_last_layer() and not finished:
            token = await self.inference_engine.sample(result)
            tokens.append(int(token[0]))
            finished = len(tokens) >= TOKENS
            new = [tokens[-1]]
            forward = token.astype(float).reshape(1, -1)
        if shard.is_last_layer():
            self.trigger_on_token_callbacks(request_id, new, finished)
            self.start(self.broadcast_result(request_id, new, finished))
        if finished:
            self.buffered_token_output[request_id] = (tokens, True)
            self.outstanding_requests.pop(request_id)
        else:
            self.outstanding_requests[request_id] = "waiting"
            names = [part.node_id for part in self.partitioning_strategy.partition(self.topology)]
            self.start(
                self.forward_tensor(shard, forward, request_id, names.index(self.id) + 1, inference_state)
            )
        return np.array(self.buffered_token_output[request_id][0])

    def trigger_on_token_callbacks(self, request_id: str, tokens: list[int], is_finished: bool) -> None:
        self.on_token.trigger_all(request_id, tokens, is_finished)

    async def broadcast_result(self, request_id: str, result: list[int], is_finished: bool) -> None:
        sends = [peer.send_result(request_id, result, is_finished) for peer in self.peers]
        await asyncio.gather(*sends, return_exceptions=True)

    async def broadcast_status(self, request_id: str, status: str) -> None:
        sends = [peer.send_opaque_status(request_id, status) for peer in self.peers]
        await asyncio.gather(*sends, return_exceptions=True)
        self.on_opaque_status.trigger_all(request_id, status)

    async def forward_prompt(
        self, base_shard: Shard, prompt: str, request_id: str, target_index: int, inference_state: Any = None
    ) -> None:
        name, peer = self._target(target_index)
        if peer is None:
            raise ValueError(f"no peer {name}")
        await peer.send_prompt(
            self.get_current_shard(base_shard, target_index), prompt, request_id, inference_state
        )

    async def forward_tensor(
        self,
        base_shard: Shard,
        tensor: np.ndarray[Any, Any],
        request_id: str,
        target_index: int,
        inference_state: Any = None,
    ) -> None:
        name, peer = self._target(target_index)
        if name == self.id:
            await self.process_tensor(base_shard, tensor, request_id, inference_state)
        elif peer is None:
            raise ValueError(f"no peer {name}")
        else:
            await peer.send_tensor(base_shard, tensor, request_id, inference_state)

    async def update_peers(self, wait_for_peers: int = 0) -> bool:
        changed = {peer.id() for peer in self.peers} != {peer.id() for peer in self.discovered}
        self.peers = list(self.discovered)
        return changed

    async def collect_topology(self) -> None:
        self.topology = {self.id, *(peer.id() for peer in self.peers)}


class Api:
    """An HTTP API over a node. Every request gets a queue that is never removed."""

    def __init__(self, node: Node) -> None:
        from aiohttp import web

        self.node = node
        self.handled = 0
        self.app = web.Application()
        self.app.router.add_post("/chat", self.chat)
        self.token_queues: collections.defaultdict[str, asyncio.Queue[Any]] = collections.defaultdict(
            asyncio.Queue
        )
        callback = node.on_token.register("api")
        callback.on_next(lambda name, tokens, done: node.start(self.handle_tokens(name, tokens, done)))

    async def handle_tokens(self, request_id: str, tokens: list[int], is_finished: bool) -> None:
        await self.token_queues[request_id].put((tokens, is_finished))

    async def chat(self, request: Any) -> Any:
        from aiohttp import web

        asked = await request.json()
        self.handled += 1
        work = asyncio.get_running_loop().create_task(
            self.node.process_prompt(Shard(0, 0), asked["prompt"], asked["id"])
        )
        try:
            await asyncio.shield(work)
            response = web.StreamResponse()
            await response.prepare(request)
            finished = False
            while not finished:
                tokens, finished = await self.token_queues[asked["id"]].get()
                await response.write(json.dumps(tokens).encode() + b"\n")
            return response
        except Exception as error:
            return web.json_response({"detail": str(error)}, status=500)

    async def run(self, host: str = "127.0.0.1", port: int = 0) -> None:
        raise NotImplementedError("the adapter replaces this")


def make_ring(*names: str) -> list[Node]:
    """Nodes that know each other."""
    nodes = [Node(name) for name in names]
    for node in nodes:
        node.discovered = [Peer(other) for other in nodes if other is not node]
        node.peers = list(node.discovered)
        node.topology = set(names)
    return nodes


async def answer(node: Node, request_id: str, prompt: str) -> list[int]:
    """The tokens of a prompt that arrives at the node; raises what process_prompt raises."""
    tokens: list[int] = []
    done = asyncio.Event()

    def on_token(name: str, new: list[int], finished: bool) -> None:
        if name == request_id:
            tokens.extend(new)
            if finished:
                done.set()

    observer = f"answer-{id(done)}"
    node.on_token.register(observer).on_next(on_token)
    try:
        await node.process_prompt(Shard(0, 0), prompt, request_id)
        await asyncio.wait_for(done.wait(), PATIENCE)
    finally:
        node.on_token.deregister(observer)
    return tokens


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails if it does not within `PATIENCE`."""

    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(look(), PATIENCE)


def nothing_kept(*adapters: Adapter) -> bool:
    """Whether every count of all nodes is 0."""
    return not any(any(adapter.counts().values()) for adapter in adapters)
