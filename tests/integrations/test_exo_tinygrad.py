"""KV states of slabpool.exo as real tinygrad tensors, each in the memory of its own request."""

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
    require_program("clang")  # tinygrad's CPU device compiles with it
    return require_module("tinygrad")


class Model:
    """Writes its input into the caches, and adds up everything in them, as exo's attention does."""

    def __init__(self, tg: ModuleType) -> None:
        self.layers = [SimpleNamespace(attention=ATTENTION) for _ in range(2)]
        self.forward_jit: Any = tg.TinyJit(self.forward_base)

    def forward_base(self, x: Any, start: Any, cache: list[Any]) -> Any:
        for one in cache:
            one.shrink((None, None, (start, start + 1), None, None)).assign(
                x.reshape(1, 1, 1, 1, 1).expand(2, 1, 1, 2, 4).contiguous()
            ).realize()
            seen = one[0].shrink((None, (0, start + 1), None, None))
            x = x + seen.sum().reshape(1, 1)
        return x.realize()


class Engine:
    """The attributes of exo's tinygrad engine that the adapter uses."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.states: dict[str, Any] = {}

    def poll_state(self, x: Any, request_id: str, max_states: int = 2) -> Any:
        raise AssertionError("the adapter replaces this")

    async def infer_tensor(self, request_id: str, shard: Any, input_data: Any, state: Any = None) -> Any:
        raise AssertionError("not called here")


def test_each_state_is_in_the_memory_of_its_request(tg: ModuleType) -> None:
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
        # Two layers; each has grown to five positions of 2 * 2 * 4 floats, in one page.
        assert runs[name].handle.nbytes == 2 * 4096
    assert engines.states() == 3
    engine.states["one"].start = ATTENTION.max_context
    with pytest.raises(slabpool.TensorTooLargeError):
        poll(x, "one")
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


def test_a_live_tensor_keeps_the_memory(tg: ModuleType) -> None:
    """Even after the last ack: the memory is retained until its last tensor and view are gone."""
    pool = slabpool.Pool("1MiB")
    request = pool.request("chat-42", ["a"])
    x = tg.Tensor(np.ones((1, 1), np.float32), device="CPU").realize()
    array, cache = make_cache(request, x, ATTENTION)
    assert cache.shape == (2, 1, 8, 2, 4)
    array.extend(2)
    places = cache.shrink((None, None, (0, 3), None, None))
    places.assign(tg.Tensor.arange(48, dtype="float").reshape(2, 1, 3, 2, 4).contiguous()).realize()
    view = cache[1, 0, 2]
    request.close()
    assert request.ack("a") is slabpool.Ack.RELEASED
    del array
    assert pool.stats().retained == request.nbytes == 4096
    del cache, places
    gc.collect()
    assert pool.stats().retained == 4096
    np.testing.assert_array_equal(view.numpy(), np.arange(40, 48).reshape(2, 4))
    del view
    gc.collect()
    assert pool.stats().retained == 0
