"""KV states of slabpool.exo as real tinygrad tensors: in the request's memory, and each request's its own."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import slabpool
from slabpool.exo._engine import Engines, _FlatJit, make_cache
from slabpool.exo._run import Run

ATTENTION = SimpleNamespace(max_context=8, n_kv_heads=2, head_dim=4)


@pytest.fixture(scope="module")
def tg(require_module: Callable[[str], ModuleType], require_program: Callable[..., str]) -> ModuleType:
    if sys.version_info < (3, 11):
        pytest.skip("tinygrad 0.14 needs Python 3.11")
    require_program("clang")  # its CPU device compiles with it
    return require_module("tinygrad")


class Model:
    """Writes what it is given into the caches, and adds up all that is in them; as exo's attention does."""

    def __init__(self, tg: ModuleType) -> None:
        self.layers = [SimpleNamespace(attention=ATTENTION) for _ in range(2)]
        self.forward_jit: Any = tg.TinyJit(self.forward_base)

    def forward_base(self, x: Any, start: Any, cache: list[Any]) -> Any:
        for one in cache:
            one.shrink((None, None, (start, start + 1), None, None)).assign(
                x.reshape(1, 1, 1, 1, 1).expand(2, 1, 1, 2, 4).contiguous()
            ).realize()
            x = x + one[0].sum().reshape(1, 1)
        return x.realize()


class Engine:
    """What the adapter looks for in exo's tinygrad engine."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.states: dict[str, Any] = {}

    def poll_state(self, x: Any, request_id: str, max_states: int = 2) -> Any:
        raise AssertionError("the adapter's takes its place")

    async def infer_tensor(self, request_id: str, shard: Any, input_data: Any, state: Any = None) -> Any:
        raise AssertionError("not called here")


def test_states_are_in_the_requests_and_apart(tg: ModuleType) -> None:
    pool = slabpool.Pool("16MiB")
    runs = {}
    model = Model(tg)
    engine = Engine(model)
    for name in ("one", "two", "three"):
        handle = pool.request(name, ["a"])
        runs[name] = Run(name, name, "a", ("a",), handle, 0.0)
    engines = Engines(runs.get)
    engines.adopt(engine)
    poll: Any = engine.poll_state
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(5):
        for i, name in enumerate(runs):
            x = tg.Tensor(np.array([[float(10 * i + step)]], np.float32), device="CPU").realize()
            state = poll(x, name)
            out = model.forward_jit(
                x, tg.Variable("start", 0, 7).bind(state["start_pos"]), cache=state["cache"]
            )
            seen[name].append(float(out.numpy()[0, 0]))
            engine.states[name].start += 1
    assert isinstance(model.forward_jit, _FlatJit)
    for i, name in enumerate(runs):
        assert seen[name] == expected(i)
        assert runs[name].handle.nbytes == 2 * 2 * 8 * 2 * 4 * 4
    assert engines.states() == 3
    for run in runs.values():
        run.handle.close()
        engines.forget(run)
        run.state = None
        run.handle.ack("a")
    del state, out, x
    gc.collect()
    assert (pool.stats().live, pool.stats().retained, engines.states()) == (0, 0, 0)
    engines.uninstall()
    assert not isinstance(model.forward_jit, _FlatJit)


def expected(i: int) -> list[float]:
    """The same sums, in numpy."""
    caches = [np.zeros(8), np.zeros(8)]
    outs = []
    for step in range(5):
        x = float(10 * i + step)
        for one in caches:
            one[step] = x
            x += one.sum() * 8
        outs.append(x)
    return outs


def test_whoever_has_the_tensor_keeps_the_memory(tg: ModuleType) -> None:
    """Also after the last ack: retained, until the last tensor and view of it is gone."""
    pool = slabpool.Pool("1MiB")
    request = pool.request("chat-42", ["a"])
    x = tg.Tensor(np.ones((1, 1), np.float32), device="CPU").realize()
    cache = make_cache(request, x, ATTENTION)
    assert cache.shape == (2, 1, 8, 2, 4)
    assert not cache.numpy().any()
    view = cache[1]
    request.close()
    assert request.ack("a") is slabpool.Ack.RELEASED
    assert pool.stats().retained == request.nbytes == 512
    del cache
    gc.collect()
    assert pool.stats().retained == 512
    assert not view.numpy().any()
    del view
    gc.collect()
    assert pool.stats().retained == 0
