"""A conversation whose requests come one after another: what one keeps is there for the next.

The object that users have. All it does is ask the pool's `slabpool.Sessions`, which decides.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy.typing as npt

from slabpool._core import async_wait
from slabpool._core.growable import GrowableTensor
from slabpool._core.layout import Tensors
from slabpool.errors import InvalidTypeError
from slabpool.sessions import state as _session_state

if TYPE_CHECKING:
    from slabpool._core.pool import Pool
    from slabpool._core.request import Request
    from slabpool.sessions.registry import Sessions

_Size = str | SupportsIndex


def _caller() -> tuple[str, int]:
    frame = sys._getframe(2)
    return frame.f_code.co_filename, frame.f_lineno


class Session:
    """Memory that the requests of one id leave to each other, on every device; made by `Pool.session`.

    Each request (`request`) is one turn. What it keeps (`keep`) moves, without a copy, from the request to
    the session, and ``session[name]`` is a view of it in the next turn. A turn that is not released yet uses
    the session: until its last device has acknowledged, nothing goes that it could have seen, whatever is
    dropped, replaced or closed meanwhile. A session that no turn uses is idle: it expires after its ttl, and
    gives way, oldest first, when the pool has no room. Then, and after `close`, its calls raise
    `SessionLostError`; the same id opens a new one.

    Calls may come from any thread.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> session = pool.session("chat-42", budget="4MiB", ttl=600)
    >>> with session.request(devices=["gpu0"]) as turn:
    ...     session.keep("kv", turn.full((2, 8), 1, np.float32))
    ...     _ = turn.ack("gpu0")
    >>> with session.request(devices=["gpu0"]) as turn:
    ...     kv = session["kv"]  # the very bytes of the turn before
    ...     print(kv.sum(), session.names(), session.nbytes)
    ...     _ = turn.ack("gpu0")
    16.0 ('kv',) 64
    >>> del kv
    >>> session.close()
    >>> pool.stats().live
    0
    """

    __slots__ = ("__weakref__", "_pool", "_sessions", "_state")

    _pool: Pool
    _sessions: Sessions
    _state: _session_state.State

    def __init__(self) -> None:
        raise InvalidTypeError("a Session is made by Pool.session(session_id)")

    @staticmethod
    def _of(pool: Pool, sessions: Sessions, state: _session_state.State) -> Session:
        """The one that users have of this state already, or a new one."""
        face: Session | None = None if state.face is None else state.face()
        if face is None:
            face = object.__new__(Session)
            face._pool, face._sessions, face._state = pool, sessions, state
            state.face = weakref.ref(face)
        return face

    # ---- turns

    def request(
        self,
        devices: Iterable[str | int] = (),
        *,
        reserve: _Size | None = None,
        quota: _Size | None = None,
        lease: float | None = None,
        timeout: float | None = None,
    ) -> Request:
        """Opens the next turn: a request with the session's id. The arguments are those of `Pool.request`.

        Until it is released its devices may read what the session keeps now or keeps from it: refer to that
        with ``turn.ref(session[name])``.

        Returns
        -------
        Request

        Raises
        ------
        SessionLostError
            The session is closed, expired or evicted.
        PoolExhausted, DuplicateDeviceError, TooManyDevicesError, InvalidArgumentError, InvalidTypeError
            As for `Pool.request`.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> session = pool.session("chat-42")
        >>> with session.request() as one, session.request() as two:
        ...     one.id, two.id, one.generation < two.generation
        ('chat-42', 'chat-42', True)
        """
        return self._sessions.open_turn(self._state, (devices, reserve, quota, lease, timeout), _caller())

    def request_async(
        self,
        devices: Iterable[str | int] = (),
        *,
        reserve: _Size | None = None,
        quota: _Size | None = None,
        lease: float | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Request]:
        """As `request`, awaited: waits for the reserve without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default for ever. The others are those of `Pool.request`.

        Returns
        -------
        Request
        """
        where = _caller()
        named = tuple(devices) if not isinstance(devices, (str, bytes)) else devices
        return self._request_async((named, reserve, quota, lease, None), where, timeout)

    async def _request_async(
        self, options: _session_state.Options, where: tuple[str, int], timeout: float | None
    ) -> Request:
        self._sessions.begin_turn(self._state)
        try:
            request = await async_wait.open_request(
                self._pool, lambda: self._pool._open_turn(self._state.id, *options, where), timeout
            )
        except BaseException:
            self._sessions.no_turn(self._state)
            raise
        return self._sessions.turn_opened(self._state, request)

    # ---- what is kept

    def keep(self, name: str, tensor: npt.NDArray[Any] | Tensors | GrowableTensor) -> None:
        """Keeps a tensor for the turns to come. Its memory is the session's from here on; nothing is copied.

        Parameters
        ----------
        name : str
            What was kept under it before goes, once the turns that could see it are released.
        tensor : numpy.ndarray, Tensors or GrowableTensor
            In the memory of a request of this pool that is not released, as a rule of a turn of this
            session; slices too. The whole block moves: all tensors of a layout are kept, and counted,
            together. Tensors of one block may be kept under several names. A `GrowableTensor` grows on, in
            this turn and the next, within the session's budget.

        Raises
        ------
        QuotaExceededError
            More than the session's budget, or than all sessions of the pool may keep.
        RequestClosedError
            The tensor's request is released.
        SessionLostError
            The session is closed, expired or evicted.
        PoolExhausted
            Too many requests and kept tensors are alive.
        InvalidArgumentError, InvalidTypeError
            Not a tensor of a request of this pool, or one without bytes; another session's.

        Notes
        -----
        After an error all is as it was, but that idle sessions may have been evicted to make room.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> session = pool.session("chat-42", budget=1024)
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.zeros(1000, "u1"))
        ...     turn.nbytes, session.nbytes
        (0, 1024)
        """
        self._sessions.keep(self._state, name, tensor, _caller())

    def __getitem__(self, name: str) -> Any:
        """A view of what is kept under a name: a numpy.ndarray, Tensors or a GrowableTensor, as was kept."""
        return self._sessions.get(self._state, name)

    def drop(self, name: str) -> None:
        """Keeps it no longer: the memory goes back once the turns that could see it are released.

        Parameters
        ----------
        name : str

        Raises
        ------
        KeyError
            Nothing is kept under this name.
        SessionLostError
            The session is closed, expired or evicted.
        """
        self._sessions.drop(self._state, name)

    def names(self) -> tuple[str, ...]:
        """Names of what is kept, in the order in which they came."""
        return self._sessions.names(self._state)

    def keys(self) -> tuple[str, ...]:
        """As `names`; so that ``dict(session)`` is all that is kept."""
        return self._sessions.names(self._state)

    def __contains__(self, name: object) -> bool:
        return name in self._sessions.names(self._state)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions.names(self._state))

    def __len__(self) -> int:
        return len(self._sessions.names(self._state))

    # ---- the end

    def close(self) -> None:
        """Ends it and gives back what it keeps, once the turns are released. Again: nothing happens."""
        self._sessions.close(self._state)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child of fork leaves the block too, and the session is not its to close.
        if self._pool._usable_here:
            self.close()

    # ---- looking

    @property
    def id(self) -> str | int | bytes:
        """As given to `Pool.session`."""
        return self._state.id

    @property
    def ttl(self) -> float | None:
        """Seconds after which it expires when idle, or None."""
        return self._state.ttl

    @property
    def budget(self) -> int | None:
        """Most bytes that it may keep; None without a budget, and once the session is over."""
        self._sessions.look(self._state)
        told = self._state.shelf.told()
        return None if told is None else told[1]

    @property
    def nbytes(self) -> int:
        """Bytes of what it keeps, in whole blocks; 0 once the session is over."""
        self._sessions.look(self._state)
        return self._state.nbytes

    @property
    def in_use(self) -> bool:
        """Whether a turn of it, or another request whose tensor it keeps, is not released yet."""
        self._sessions.look(self._state)
        return self._state.lost is None and self._state.idle_since() is None

    @property
    def expired(self) -> bool:
        """Whether it ended because no turn came for its ttl."""
        self._sessions.look(self._state)
        return self._state.lost == _session_state.EXPIRED

    @property
    def evicted(self) -> bool:
        """Whether it ended because others needed the room."""
        return self._state.lost == _session_state.EVICTED

    @property
    def closed(self) -> bool:
        """Whether it is over, however it ended."""
        self._sessions.look(self._state)
        return self._state.lost is not None

    def __reduce__(self) -> str:
        raise InvalidTypeError("a Session is memory of this process: it cannot be copied or pickled")

    def __repr__(self) -> str:
        state = self._state
        if not self._pool._usable_here:
            return f"<Session {state.id!r}: inherited through fork>"
        self._sessions.look(state)
        if state.lost is not None:
            return f"<Session {state.id!r}: {state.lost}>"
        names = ", ".join(self.names()) or "nothing"
        return (
            f"<Session {state.id!r}: keeps {names} in {self.nbytes} bytes{', in use' if self.in_use else ''}>"
        )
