"""A session as users see it: requests of one conversation, each of which finds what the one before it kept.

All decisions are made in `slabpool.sessions.registry`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

from slabpool._core import async_wait
from slabpool._core.core import Site, Wait, calling_site
from slabpool._core.tensors import GrowableTensor, Tensors
from slabpool.arguments.texts import few, show
from slabpool.errors import InvalidArgumentError, InvalidTypeError
from slabpool.sessions import state as states

if TYPE_CHECKING:
    import numpy.typing as npt

    from slabpool._core.pool import Pool
    from slabpool._core.request import Request
    from slabpool.sessions.registry import Sessions

_Size = str | SupportsIndex
_Callback = Callable[["Session"], object]


class Session:
    """Memory that the requests of one id leave for each other; made by `Pool.session`.

    Each request (`request`) is one turn. A tensor that it keeps (`keep`) moves, without a copy, from the
    request to the session, and ``session[name]`` is a read-only view of it in the next turn; `writable` makes
    one that can be written. Iterating over a session yields the names. A turn uses the session until its last
    device has acknowledged; until then no memory is returned that the turn could have read, even if it is
    dropped, replaced or closed. A session that no turn uses is idle: it expires after its ttl, and is evicted
    when the pool has no room and that makes enough: sessions of the lowest priority first, of these the
    longest idle. `pin` prevents both; a callback set by `on_evict` is called before. Then, and after `close`,
    its methods raise `SessionLostError`; opening the same id makes a new session.

    Any thread may call it.

    Examples
    --------
    >>> import numpy as np, slabpool
    >>> pool = slabpool.Pool("16MiB")
    >>> session = pool.session("chat-42", budget="4MiB", ttl=600)
    >>> with session.request(devices=["gpu0"]) as turn:
    ...     session.keep("kv", turn.full((2, 8), 1, np.float32))
    ...     _ = turn.ack("gpu0")
    >>> with session.request(devices=["gpu0"]) as turn:
    ...     kv = session["kv"]  # the same bytes, not a copy
    ...     print(kv.sum(), list(session), session.nbytes)
    ...     _ = turn.ack("gpu0")
    16.0 ['kv'] 64
    >>> del kv
    >>> session.close()
    >>> pool.stats().live
    0
    """

    __slots__ = ("__weakref__", "_pool", "_sessions", "_state")

    _pool: Pool
    _sessions: Sessions
    _state: states.State

    def __init__(self) -> None:
        raise InvalidTypeError("a Session is made by Pool.session(session_id)")

    @staticmethod
    def _of(pool: Pool, sessions: Sessions, state: states.State) -> Session:
        """The Session object of a state: the one that users have, or a new one."""
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
        priority: int | None = None,
    ) -> Request:
        """Opens the next turn: a request with the session's id. The arguments are those of `Pool.request`.

        Until it is released its devices may read everything that the session keeps when the turn is opened,
        and what it keeps from this turn. ``turn.ref(session[name])`` makes a reference.
        A turn that an exception ends in its with statement is cancelled, as any request; what it has kept
        stays.

        Returns
        -------
        Request

        Raises
        ------
        SessionLostError
            The session is closed, expired or evicted, also while the turn waits.
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
        wait = self._state.shelf.wait(timeout, priority)
        return self._sessions.open_turn(self._state, (devices, reserve, quota, lease, wait), calling_site())

    def request_async(
        self,
        devices: Iterable[str | int] = (),
        *,
        reserve: _Size | None = None,
        quota: _Size | None = None,
        lease: float | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, Request]:
        """As `request`, awaitable: waits for the reserve without blocking the event loop.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; by default there is no limit. The others are those of `Pool.request`.

        Returns
        -------
        Request
        """
        where = calling_site()
        named = tuple(devices) if not isinstance(devices, (str, bytes)) else devices
        wait = self._state.shelf.loop_wait(priority)
        return self._request_async((named, reserve, quota, lease), where, wait, timeout)

    async def _request_async(
        self, options: tuple[Any, Any, Any, Any], where: Site, wait: Wait, timeout: float | None
    ) -> Request:
        with self._sessions.turn_opens(self._state):
            request = await async_wait.served(
                self._pool,
                wait,
                lambda wait: self._pool._open_turn(self._state.id, *options, wait, where, self._state.group),
                timeout,
            )
        return self._sessions.turn_opened(self._state, request)

    # ---- kept tensors

    def keep(self, name: str, tensor: npt.NDArray[Any] | Tensors | GrowableTensor) -> None:
        """Keeps a tensor for later turns. Its memory moves to the session; nothing is copied.

        Parameters
        ----------
        name : str
            A tensor that was kept under this name is dropped.
        tensor : numpy.ndarray, Tensors or GrowableTensor
            In the memory of a request of this pool that is not released, usually a turn of this session;
            slices too. The whole block moves: all tensors of a layout are kept, and counted, together.
            Tensors of one block may be kept under several names. A `GrowableTensor` can go on growing, in
            this turn and later ones, within the session's budget.

        Raises
        ------
        QuotaExceededError
            More than the session's budget, or the pool's budget for all sessions.
        RequestClosedError
            The tensor's request is released.
        SessionLostError
            The session is closed, expired or evicted.
        PoolExhausted
            Too many requests and kept tensors are alive.
        InvalidArgumentError, InvalidTypeError
            Not a tensor of a request of this pool, or one without bytes, or one that another session keeps.

        Notes
        -----
        An error changes nothing, except that idle sessions may have been evicted to make room.

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
        self._sessions.keep(self._state, name, tensor, calling_site())

    def __getitem__(self, name: str) -> Any:
        """A read-only view of the tensor kept under a name: a numpy.ndarray, Tensors or a GrowableTensor."""
        return self._sessions.get(self._state, name, False)

    def writable(self, name: str) -> Any:
        """As ``session[name]``, for writing; a `GrowableTensor` can be extended and truncated.

        Other turns and devices that read the tensor see what is written.

        Parameters
        ----------
        name : str

        Returns
        -------
        numpy.ndarray, Tensors or GrowableTensor

        Raises
        ------
        KeyError
            Nothing is kept under this name.
        SessionLostError
            The session is closed, expired or evicted.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> session = pool.session("chat-42")
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.growable((0, 4), "f4", limit=100))
        >>> with session.request() as turn:
        ...     session.writable("kv").extend(2)[:] = 1
        ...     print(session["kv"].array.sum(), session["kv"].array.flags.writeable)
        8.0 False
        """
        return self._sessions.get(self._state, name, True)

    def drop(self, name: str) -> None:
        """Drops a kept tensor. Its memory is returned once the turns that could read it are released.

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

    def __contains__(self, name: object) -> bool:
        return name in self._sessions.names(self._state)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions.names(self._state))

    def __len__(self) -> int:
        return len(self._sessions.names(self._state))

    # ---- eviction

    def pin(self) -> _Pin:
        """Protects the session from eviction and expiry until `unpin`, or the end of a with statement.

        Pins are counted. A turn does not need one: a session in use is not evicted. The ttl starts again with
        the end of the last pin. `close` ends a pinned session, too.

        Returns
        -------
        context manager
            Whose ``as`` is the session, and whose end takes the pin back.

        Raises
        ------
        SessionLostError
            The session is closed, expired or evicted.

        Examples
        --------
        >>> import slabpool
        >>> pool = slabpool.Pool("1MiB")
        >>> session = pool.session("system prompt")
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.zeros(1 << 19, "u1"))
        >>> with session.pin():
        ...     try:
        ...         pool.empty(1 << 20, "u1")
        ...     except slabpool.PoolExhausted:
        ...         print("refused; pinned:", pool.sessions()[0].pinned)
        refused; pinned: True
        >>> array = pool.empty(1 << 20, "u1")
        >>> session.evicted
        True
        """
        self._sessions.pin(self._state)
        return _Pin(self)

    def unpin(self) -> None:
        """Takes back one `pin`.

        Raises
        ------
        InvalidArgumentError
            It is not pinned.
        """
        self._sessions.unpin(self._state)

    def on_evict(self, callback: _Callback | None) -> None:
        """Sets what is called before the session's memory goes because it is evicted or has expired.

        It is called with the session, once, by a thread that holds no lock of the pool: the one that needs
        room, finds the session expired, or ends expired sessions. The session is over by then: `evicted` or
        `expired` is true, and no turn can be opened. But its tensors can be read until the callback returns,
        to copy them elsewhere. Views that outlive it keep their memory from coming back. It is not called by
        `close`, nor when the pool is closed.

        While it runs, nothing is evicted for allocations of its thread, and its thread can neither open new
        sessions of this pool nor keep anything in one. An exception goes to `sys.unraisablehook` and changes
        nothing.

        Parameters
        ----------
        callback : callable or None
            Replaces the one before; None removes it.

        Raises
        ------
        SessionLostError
            The session is closed, expired or evicted.
        InvalidTypeError
            Not callable.

        Examples
        --------
        >>> import slabpool
        >>> pool, saved = slabpool.Pool("1MiB"), {}
        >>> session = pool.session("chat-42")
        >>> with session.request() as turn:
        ...     session.keep("kv", turn.full(4, 7, "u1"))
        >>> session.on_evict(lambda session: saved.update({session.id: session["kv"].copy()}))
        >>> array = pool.empty(1 << 20, "u1")
        >>> session.evicted, saved
        (True, {'chat-42': array([7, 7, 7, 7], dtype=uint8)})
        """
        self._sessions.on_evict(self._state, callback)

    # ---- the end

    def close(self) -> None:
        """Ends the session; its memory is returned once its turns are released. Repeating it does nothing."""
        self._sessions.close(self._state)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child of fork leaves the block too, and must not close its parent's session.
        if self._pool._usable_here:
            self.close()

    # ---- inspection

    @property
    def id(self) -> str | int | bytes:
        """As given to `Pool.session`."""
        return self._state.id

    @property
    def group(self) -> str | int | bytes | None:
        """Id of the `Group` that it was opened under, or None."""
        return None if self._state.group is None else self._state.group.id

    @property
    def ttl(self) -> float | None:
        """Seconds after which it expires if idle, or None."""
        return self._state.ttl

    @property
    def priority(self) -> int:
        """As given to `Pool.session`: sessions of a lower one are evicted first."""
        return self._state.priority

    @property
    def pinned(self) -> bool:
        """Whether it is pinned."""
        return self._state.pins > 0

    @property
    def budget(self) -> int | None:
        """Most bytes that it may keep; None without a budget, and once the session is over."""
        self._sessions.look(self._state)
        figures = self._state.shelf.figures()
        return None if figures is None else figures[1]

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps, in whole blocks; 0 once the session is over."""
        self._sessions.look(self._state)
        return self._state.nbytes

    @property
    def in_use(self) -> bool:
        """Whether a turn of it, or another request whose tensor it keeps, is not released yet."""
        self._sessions.look(self._state)
        return self._state.lost is None and self._state.idle_since() is None

    @property
    def expired(self) -> bool:
        """Whether it ended because no turn used it for its ttl."""
        self._sessions.look(self._state)
        return self._state.lost == states.EXPIRED

    @property
    def evicted(self) -> bool:
        """Whether it ended because the pool needed the room."""
        return self._state.lost == states.EVICTED

    @property
    def closed(self) -> bool:
        """Whether it is over, for whatever reason."""
        self._sessions.look(self._state)
        return self._state.lost is not None

    def __reduce__(self) -> str:
        raise InvalidTypeError("a Session is memory of this process: it cannot be copied or pickled")

    def __repr__(self) -> str:
        state = self._state
        if not self._pool._usable_here:
            return f"<Session {show(state.id)}: inherited through fork>"
        self._sessions.look(state)
        if state.lost is not None:
            return f"<Session {show(state.id)}: {state.lost}>"
        names = few(self) or "nothing"
        use = ", in use" if self.in_use else ""
        return f"<Session {show(state.id)}: keeps {names} in {self.nbytes} bytes{use}>"


class _Pin:
    """What `Session.pin` returns: at the end of a with statement it takes the pin back."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Session:
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child of fork leaves the block too, and must not change its parent's session.
        if not self._session._pool._usable_here:
            return
        try:
            self._session.unpin()
        except InvalidArgumentError:  # the block took the pin back itself
            if value is None:  # else the caller's own exception says more
                raise
