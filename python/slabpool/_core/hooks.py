"""What the layers above the core register with it, so that the core imports none of them.

There are three hooks: `messages` raises the exception for a failed call, `sessions` has the policy of
sessions and of what gives way, `owner` serves peers in other processes. `slabpool` registers a function that
returns each of them. It is called once, when the hook is first used; only that of `owner` imports something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_loaders: dict[str, Callable[[], Any]] = {}


def register(name: str, load: Callable[[], Any]) -> None:
    """Let ``hooks.<name>`` be what `load` returns."""
    _loaders[name] = load


def __getattr__(name: str) -> Any:
    if name not in _loaders:
        raise AttributeError(f"no hook {name!r} is registered with the core of slabpool")
    found = globals()[name] = _loaders[name]()
    return found
