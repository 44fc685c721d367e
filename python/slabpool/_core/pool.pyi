from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal, SupportsIndex, TypeVar, final, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from slabpool._core.layout import _Shape
from slabpool._core.request import Request
from slabpool.records import Ack, Corruption, Event, RequestRecord, SessionRecord, Stats
from slabpool.sessions.session import Session

_S = TypeVar("_S", bound=np.generic)

@final
class Pool:
    def __new__(
        cls,
        capacity: str | SupportsIndex,
        *,
        memory: str = "host",
        name: str | None = None,
        scrub: Literal["never", "release"] = "never",
        debug: Literal[0, 1, 2] = 0,
        events: int = 0,
        huge_pages: bool | None = None,
        numa_node: int | None = None,
    ) -> Pool: ...
    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> str: ...
    @property
    def capacity(self) -> int: ...
    # ---- memory without a request
    @overload
    def empty(
        self, shape: _Shape, *, align: SupportsIndex | None = None, timeout: float | None = None
    ) -> NDArray[np.float64]: ...
    @overload
    def empty(
        self,
        shape: _Shape,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def empty(
        self,
        shape: _Shape,
        dtype: DTypeLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def zeros(
        self, shape: _Shape, *, align: SupportsIndex | None = None, timeout: float | None = None
    ) -> NDArray[np.float64]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        dtype: DTypeLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def full(
        self,
        shape: _Shape,
        fill_value: _S,
        dtype: None = None,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def full(
        self,
        shape: _Shape,
        fill_value: ArrayLike,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def full(
        self,
        shape: _Shape,
        fill_value: ArrayLike,
        dtype: DTypeLike | None = None,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def copy(
        self, array: NDArray[_S], *, align: SupportsIndex | None = None, timeout: float | None = None
    ) -> NDArray[_S]: ...
    @overload
    def copy(
        self, array: ArrayLike, *, align: SupportsIndex | None = None, timeout: float | None = None
    ) -> NDArray[Any]: ...
    # ---- requests
    def request(
        self,
        request_id: str | int | bytes,
        devices: Iterable[str | int] = (),
        *,
        reserve: str | SupportsIndex | None = None,
        quota: str | SupportsIndex | None = None,
        lease: float | None = None,
        timeout: float | None = None,
    ) -> Request: ...
    def request_async(
        self,
        request_id: str | int | bytes,
        devices: Iterable[str | int] = (),
        *,
        reserve: str | SupportsIndex | None = None,
        quota: str | SupportsIndex | None = None,
        lease: float | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Request]: ...
    def ack(
        self,
        request_id: str | int | bytes,
        device: str | int,
        *,
        generation: SupportsIndex | None = None,
        stream: object = None,
    ) -> Ack: ...
    def session(
        self,
        session_id: str | int | bytes,
        *,
        budget: str | SupportsIndex | None = None,
        ttl: float | None = None,
    ) -> Session: ...
    def sessions(self) -> list[SessionRecord]: ...
    @property
    def session_budget(self) -> int | None: ...
    @session_budget.setter
    def session_budget(self, budget: str | SupportsIndex | None) -> None: ...
    def device_lost(self, device: str | int, *, kill: bool = False) -> int: ...
    def heartbeat(self, device: str | int) -> None: ...
    # ---- looking inside
    def stats(self) -> Stats: ...
    def requests(self) -> list[RequestRecord]: ...
    def leaks(self, older_than: float = 0) -> list[RequestRecord]: ...
    def events(self) -> list[Event]: ...
    def corruptions(self) -> list[Corruption]: ...
    @property
    def closed(self) -> bool: ...
    # ---- giving back
    def trim(self) -> int: ...
    def close(self, *, force: bool = False) -> None: ...
    def __enter__(self) -> Pool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    # ---- for the package's own modules
    def _check_here(self) -> None: ...
    @property
    def _usable_here(self) -> bool: ...
    def _open_turn(
        self,
        request_id: str | int | bytes,
        devices: Iterable[str | int],
        reserve: str | SupportsIndex | None,
        quota: str | SupportsIndex | None,
        lease: float | None,
        timeout: float | None,
        opened_at: tuple[str, int],
    ) -> Request: ...
    @property
    def _stream_acks(self) -> int: ...
    @property
    def _bell(self) -> int: ...
    def _answer_bell(self) -> None: ...
    def _verify(self) -> str | None: ...
    def _add_wakeup(self, fd: int) -> None: ...
    def _remove_wakeup(self, fd: int) -> None: ...
