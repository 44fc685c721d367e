"""KV states of exo's tinygrad engine in the memory of their run, in place of a dictionary of the last two.

What must stay true: a state lives from the run's first tensor on this node until the node lets go of the
run, and its memory as long as any buffer of tinygrad's over it. Engines come and go (exo makes a new one when
peers change); a run's state is the run's. A cache has memory for the positions in use and addresses for all:
nobody may read beyond, and exo's attention does not. `_poll_state` runs on the engine's thread while the run
is held.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from slabpool._core.request import Request
from slabpool._core.tensors import GrowableTensor
from slabpool.exo._run import Run

#: tinygrad's names of devices that work on the host's memory (CLANG and LLVM until 0.10, CPU since).
_HOST_DEVICES = frozenset({"CLANG", "LLVM", "CPU"})


class State:
    """What exo's engine keeps for a request: it reads `cache`, and advances `start`."""

    def __init__(self, layers: Sequence[tuple[GrowableTensor, Any]]) -> None:
        self._grown = [array for array, _ in layers]
        self.cache = [tensor for _, tensor in layers]
        self.start = 0

    def reach(self, length: int) -> None:
        """Has memory for so many positions."""
        for array in self._grown:
            if length > array.length:
                array.extend(length - array.length)


class _FlatJit:
    """A model's step under TinyJit, with each layer's cache as an argument of its own.

    exo passes the caches in a list. The TinyJit of tinygrad 0.10 sees no tensors inside lists: it bakes in
    those of the first request, which all later requests then read and overwrite.
    """

    def __init__(self, forward: Callable[[Any, Any, list[Any]], Any]) -> None:
        self._jit = import_module("tinygrad").TinyJit(
            lambda x, start_pos, *cache: forward(x, start_pos, list(cache))
        )

    def __call__(self, x: Any, start_pos: Any, cache: Sequence[Any]) -> Any:
        return self._jit(x, start_pos, *cache)


def make_cache(request: Request, x: Any, attention: Any) -> tuple[GrowableTensor, Any]:
    """One layer's cache in the memory of the request: a tensor of the shape of exo's own.

    Its addresses reach to the end of the context, its memory to the positions asked for by extending what is
    returned with it.
    """
    rest = (2, x.shape[0], attention.n_kv_heads, attention.head_dim)
    size = int(np.prod(rest)) * x.dtype.itemsize
    array = request.growable((0, size), np.uint8, axis=0, limit=attention.max_context)
    first = array.extend(1)
    blob = import_module("tinygrad").Tensor.from_blob(
        first.ctypes.data, (attention.max_context, *rest), dtype=x.dtype, device=x.device
    )
    # Views and kernels refer to this buffer, so whoever could touch the memory keeps the array.
    _base(blob).realized._slabpool_array = first
    return array, blob.permute(1, 2, 0, 3, 4)


def _base(tensor: Any) -> Any:
    return (
        tensor.uop if hasattr(tensor, "uop") else tensor.lazydata
    ).base  # tinygrad 0.11 and later / before


class Engines:
    """The engines that a node has had."""

    def __init__(self, current: Callable[[str], Run | None]) -> None:
        self._current = current
        self._adopted: weakref.WeakSet[Any] = weakref.WeakSet()
        self._jits: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # by model: exo's own

    def adopt(self, engine: Any) -> None:
        """Has an engine take its KV states from the runs; again: nothing happens."""
        if engine in self._adopted:
            return
        self._adopted.add(engine)
        engine.infer_tensor = functools.partial(self._infer_tensor, engine.infer_tensor)
        poll = getattr(engine, "poll_state", None)
        if poll is not None and hasattr(engine, "states") and not inspect.iscoroutinefunction(poll):
            engine.poll_state = functools.partial(self._poll_state, weakref.ref(engine), poll)

    def states(self) -> int:
        """Requests that engines keep a state of."""
        return sum(len(getattr(engine, "states", ())) for engine in self._adopted)

    def forget(self, run: Run) -> None:
        """Drops the run's state."""
        for engine in self._adopted:
            getattr(engine, "states", {}).pop(run.request_id, None)

    def uninstall(self) -> None:
        """Gives engines and models their own methods back."""
        for engine in self._adopted:
            vars(engine).pop("infer_tensor", None)
            vars(engine).pop("poll_state", None)
        for model, jit in self._jits.items():
            model.forward_jit = jit
        self._adopted.clear()
        self._jits.clear()

    async def _infer_tensor(
        self, original: Callable[..., Any], request_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return await original(request_id, *args, **kwargs)
        except Exception as error:  # noted, for exo only prints it; it goes its way
            run = self._current(request_id)
            if run is not None:
                run.error = error
            raise

    def _poll_state(
        self,
        engine_ref: weakref.ref[Any],
        original: Callable[..., Any],
        x: Any,
        request_id: str,
        max_states: int = 2,
    ) -> Any:
        engine = engine_ref()
        run = self._current(request_id)
        if engine is None or run is None:  # training and evaluation have no run
            return original(x, request_id, max_states)
        if run.state is None:
            if isinstance(x.device, str) and x.device.split(":")[0] in _HOST_DEVICES:
                run.state = State(
                    [make_cache(run.handle, x, layer.attention) for layer in engine.model.layers]
                )
            else:  # on a device that the pool has no memory of: tinygrad's own, and the run's all the same
                original(x, request_id, sys.maxsize)
                run.state = engine.states[request_id]
        if isinstance(run.state, State):
            run.state.reach(run.state.start + x.shape[1])
        self._flatten(engine.model)
        engine.states[request_id] = run.state
        return {"start_pos": run.state.start, "cache": run.state.cache}

    def _flatten(self, model: Any) -> None:
        jit = getattr(model, "forward_jit", None)
        if jit is not None and not isinstance(jit, _FlatJit):
            self._jits[model] = jit
            model.forward_jit = _FlatJit(model.forward_base)
