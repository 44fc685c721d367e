"""The active request: memory that other libraries allocate belongs to it.

A context variable: each thread has its own, and an asyncio task inherits that of the code that made it.
Invariants: an activation ends with its ``with`` block, also in tasks made inside. When it ends, it
calls `on_leave`: the integrations that keep memory for reuse within an activation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabpool._core.request import Request


class Activation:
    """One ``with request.activate():`` block; usable once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.live = False
        self._token: Token[Activation | None] | None = None

    def __enter__(self) -> Request:
        if self._token is not None:
            raise RuntimeError("an activation is usable for one `with` block; call activate() for each")
        self._token = _active.set(self)
        self.live = True
        for enter in on_enter:
            enter(self)
        return self.request

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live = False  # first: from now on nothing is kept for reuse
        if self._token is not None:
            _active.reset(self._token)
        for leave in tuple(on_leave):
            leave(self)


_active: ContextVar[Activation | None] = ContextVar("slabpool_active_request", default=None)
#: Called with each activation that has begun, on its thread. Nothing is ever removed from this list.
on_enter: list[Callable[[Activation], object]] = []
#: Called with each activation that ends.
on_leave: list[Callable[[Activation], object]] = []


def current() -> Activation | None:
    """The innermost activation of this context, if its block has not ended."""
    activation = _active.get()
    return activation if activation is not None and activation.live else None


def active_request() -> Request | None:
    """The active request of this context, or None.

    Returns
    -------
    Request or None

    Examples
    --------
    >>> import slabpool
    >>> pool = slabpool.Pool("1MiB")
    >>> with pool.request("chat-42") as req, req.activate():
    ...     slabpool.active_request().id
    'chat-42'
    >>> slabpool.active_request() is None
    True
    """
    activation = current()
    return None if activation is None else activation.request
