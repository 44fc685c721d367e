"""KV states of exo's tinygrad engine in the memory of their run, instead of a dictionary of the last two.

Invariants:
- A state lives from the run's first tensor on this node until the node leaves the run. Its memory lives as
  long as any tinygrad buffer over it.
- A state belongs to the run and not to the engine, because exo makes a new engine when peers change.
- A cache has addresses for all positions, but memory only for the positions in use. Reading beyond them would
  fault; exo's attention does not.

`_poll_state` runs on the engine's thread, while the run is held.
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

#: tinygrad's names of devices in host memory (CLANG and LLVM until 0.10, then CPU).
_HOST_DEVICES = frozenset({"CLANG", "LLVM", "CPU"})


class State:
    """The state that exo's engine keeps for a request: the engine reads `cache` and advances `start`."""

    def __init__(self, layers: Sequence[tuple[GrowableTensor, Any]]) -> None:
        self._grown = [array for array, _ in layers]
        self.cache = [tensor for _, tensor in layers]
        self.start = 0

    def reach(self, length: int) -> None:
        """Grow the caches to at least `length` positions."""
        for array in self._grown:
            if length > array.length:
                array.extend(length - array.length)


class _FlatJit:
    """A model's step under TinyJit, with each layer's cache as a separate argument.

    exo passes the caches in a list. The TinyJit of tinygrad 0.10 does not find tensors inside lists: it
    captures the caches of the first request, and all later requests read and overwrite those.
    """

    def __init__(self, forward: Callable[[Any, Any, list[Any]], Any]) -> None:
        self._jit = import_module("tinygrad").TinyJit(
            lambda x, start_pos, *cache: forward(x, start_pos, list(cache))
        )

    def __call__(self, x: Any, start_pos: Any, cache: Sequence[Any]) -> Any:
        return self._jit(x, start_pos, *cache)


def make_cache(request: Request, x: Any, attention: Any) -> tuple[GrowableTensor, Any]:
    """Make one layer's cache in the memory of the request, with the same shape as exo's own.

    The tensor has addresses for the whole context. Its memory is that of the growable tensor which is
    returned with it: extend that to use more positions.
    """
    rest = (2, x.shape[0], attention.n_kv_heads, attention.head_dim)
    size = int(np.prod(rest)) * x.dtype.itemsize
    array = request.growable((0, size), np.uint8, axis=0, limit=attention.max_context)
    first = array.extend(1)
    blob = import_module("tinygrad").Tensor.from_blob(
        first.ctypes.data, (attention.max_context, *rest), dtype=x.dtype, device=x.device
    )
    # All views and kernels refer to this buffer, so the array lives as long as anything can access its
    # memory.
    _base(blob).realized._slabpool_array = first
    return array, blob.permute(1, 2, 0, 3, 4)


def _base(tensor: Any) -> Any:
    """Return the base buffer's operation; tinygrad before 0.11 has `lazydata` instead of `uop`."""
    return (tensor.uop if hasattr(tensor, "uop") else tensor.lazydata).base


class Engines:
    """All engines that a node has used."""

    def __init__(self, current: Callable[[str], Run | None]) -> None:
        self._current = current
        self._adopted: weakref.WeakSet[Any] = weakref.WeakSet()
        self._jits: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # exo's jits, by model

    def adopt(self, engine: Any) -> None:
        """Make an engine use the KV states of the runs. If it already does, do nothing."""
        if engine in self._adopted:
            return
        self._adopted.add(engine)
        engine.infer_tensor = functools.partial(self._infer_tensor, engine.infer_tensor)
        poll = getattr(engine, "poll_state", None)
        if poll is not None and hasattr(engine, "states") and not inspect.iscoroutinefunction(poll):
            engine.poll_state = functools.partial(self._poll_state, weakref.ref(engine), poll)

    def states(self) -> int:
        """Return the number of requests for which engines keep a state."""
        return sum(len(getattr(engine, "states", ())) for engine in self._adopted)

    def forget(self, run: Run) -> None:
        """Remove the run's state from the engines."""
        for engine in self._adopted:
            getattr(engine, "states", {}).pop(run.request_id, None)

    def uninstall(self) -> None:
        """Restore the methods of engines and models."""
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
        except Exception as error:  # recorded and raised again, because exo only prints it
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
        if engine is None or run is None:  # no run: training or evaluation
            return original(x, request_id, max_states)
        if run.state is None:
            if isinstance(x.device, str) and x.device.split(":")[0] in _HOST_DEVICES:
                run.state = State(
                    [make_cache(run.handle, x, layer.attention) for layer in engine.model.layers]
                )
            else:  # not host memory: tinygrad allocates the state, and the run still owns it
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
