"""A stand-in for exo's engine: layers that add up what they have seen of a request, and an LRU of two states.

Part of the stand-ins of exo_shapes.py. A token depends on everything in the request's caches, so a state that
is lost or mixed up changes the tokens.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

LAYERS = 4
CONTEXT = 64
TOKENS = 5  # in every answer


@dataclasses.dataclass(frozen=True)
class Shard:
    """Layers of one node."""

    start_layer: int
    end_layer: int
    n_layers: int = LAYERS

    def is_first_layer(self) -> bool:
        return self.start_layer == 0

    def is_last_layer(self) -> bool:
        return self.end_layer == self.n_layers - 1


@dataclasses.dataclass
class Hidden:
    """The data of the engine's model: numbers with the interface of a tinygrad tensor."""

    values: np.ndarray[Any, Any]
    device: str = "CPU"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype


@dataclasses.dataclass(frozen=True)
class Attention:
    """Sizes of a layer's cache."""

    max_context: int = CONTEXT
    n_kv_heads: int = 1
    head_dim: int = 1


class Layer:
    """Adds up all that it has seen of a request; what it has seen is in the cache."""

    attention = Attention()

    def __call__(
        self, x: np.ndarray[Any, Any], cache: np.ndarray[Any, Any], start: int
    ) -> np.ndarray[Any, Any]:
        n = x.shape[1]
        cache[0, 0, start : start + n, 0, 0] = x[0]
        sums = np.cumsum(cache[0, 0, : start + n, 0, 0])[start:]
        return np.asarray((3 * sums + 7) % 251)[None]


class Model:
    """The layers of a shard."""

    def __init__(self, shard: Shard) -> None:
        self.layers = [Layer() for _ in range(shard.start_layer, shard.end_layer + 1)]


def reference(prompt: str) -> list[int]:
    """The tokens of a prompt, computed by one node with no other requests."""
    layers = [Layer() for _ in range(LAYERS)]
    caches = [np.zeros((2, 1, CONTEXT, 1, 1)) for _ in layers]
    tokens: list[int] = []
    x, start = np.array([list(prompt.encode())], float), 0
    while len(tokens) < TOKENS:
        y = x
        for layer, cache in zip(layers, caches, strict=True):
            y = layer(y, cache, start)
        start += x.shape[1]
        tokens.append(int(y[0, -1]))
        x = np.array([[tokens[-1]]], float)
    return tokens


class State:
    """A request's caches."""

    def __init__(self, cache: list[Any]) -> None:
        self.cache = cache
        self.start = 0


class Engine:
    """Runs the layers of a shard on a thread; keeps two states, even if more requests are running."""

    def __init__(self) -> None:
        self.shard: Shard | None = None
        self.states: collections.OrderedDict[str, State] = collections.OrderedDict()
        self.model: Any = None
        #: Awaited before each step with the request's id: a test can stop the step here, or make it fail.
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.steps: collections.Counter[str] = collections.Counter()

    def poll_state(self, x: Hidden, request_id: str, max_states: int = 2) -> dict[str, Any]:
        if request_id not in self.states:
            if len(self.states) >= max_states:
                self.states.popitem(last=False)
            self.states[request_id] = State([np.zeros((2, 1, CONTEXT, 1, 1)) for _ in self.model.layers])
        state = self.states[request_id]
        return {"start_pos": state.start, "cache": state.cache}

    async def infer_prompt(
        self, request_id: str, shard: Shard, prompt: str, state: Any = None
    ) -> tuple[np.ndarray[Any, Any], Any]:
        tokens = np.array([list(prompt.encode())], float)
        result: tuple[np.ndarray[Any, Any], Any] = await self.infer_tensor(request_id, shard, tokens, state)
        return result

    async def infer_tensor(
        self, request_id: str, shard: Shard, input_data: np.ndarray[Any, Any], state: Any = None
    ) -> tuple[np.ndarray[Any, Any], Any]:
        if self.shard != shard:
            self.shard, self.model = shard, Model(shard)
        if self.before is not None:
            await self.before(request_id)

        def work() -> np.ndarray[Any, Any]:
            x = input_data
            polled = self.poll_state(Hidden(x), request_id)
            for layer, cache in zip(self.model.layers, polled["cache"], strict=True):
                x = layer(x, cache, polled["start_pos"])
            self.states[request_id].start += input_data.shape[1]
            self.steps[request_id] += 1
            return x

        return await asyncio.get_running_loop().run_in_executor(None, work), state

    async def sample(self, result: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([int(result[0, -1])])
