"""The request that allocations of other libraries count to: the one that is active where they happen.

A context variable: each thread has its own, and asyncio tasks begin with that of the code that made them.
What must stay true: an activation ends with its ``with`` block, in tasks made inside it too, and integrations
that park memory for reuse within one are told.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slabpool._core.request import Request


class Activation:
    """One ``with request.activate():`` block; used once."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.live = False
        self._token: Token[Activation | None] | None = None

    def __enter__(self) -> Request:
        if self._token is not None:
            raise RuntimeError("an activation is for one `with` block; call activate() for each")
        self._token = _active.set(self)
        self.live = True
        for enter in on_enter:
            enter(self)
        return self.request

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live = False  # first: nothing is parked from here on
        if self._token is not None:
            _active.reset(self._token)
        for leave in tuple(on_leave):
            leave(self)


_active: ContextVar[Activation | None] = ContextVar("slabpool_active_request", default=None)
#: Called with each activation that has begun, on its thread. Nothing is ever taken from it.
on_enter: list[Callable[[Activation], object]] = []
#: Called with each activation that ends.
on_leave: list[Callable[[Activation], object]] = []


def current() -> Activation | None:
    """The innermost activation here, if its block has not ended."""
    activation = _active.get()
    return activation if activation is not None and activation.live else None


def active_request() -> Request | None:
    """The request that is active here, or None.

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
