from collections.abc import Coroutine, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar, final, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from slabpool._core.core import Wait
from slabpool._core.device_array import DeviceArray
from slabpool._core.shared import TensorRef
from slabpool._core.tensors import GrowableTensor, Layout, Tensors, _Shape
from slabpool.records import Ack, GroupRecord, RequestState
from slabpool.sessions import Session

_S = TypeVar("_S", bound=np.generic)

class _Makers:
    @overload
    def empty(
        self,
        shape: _Shape,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[np.float64]: ...
    @overload
    def empty(
        self,
        shape: _Shape,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def empty(
        self,
        shape: _Shape,
        dtype: DTypeLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[np.float64]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def zeros(
        self,
        shape: _Shape,
        dtype: DTypeLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
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
        priority: int | None = None,
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
        priority: int | None = None,
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
        priority: int | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def copy(
        self,
        array: NDArray[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[_S]: ...
    @overload
    def copy(
        self,
        array: ArrayLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> NDArray[Any]: ...
    @overload
    def empty_async(
        self,
        shape: _Shape,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, NDArray[np.float64]]: ...
    @overload
    def empty_async(
        self,
        shape: _Shape,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, NDArray[_S]]: ...
    @overload
    def empty_async(
        self,
        shape: _Shape,
        dtype: DTypeLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, NDArray[Any]]: ...
    @overload
    def zeros_async(
        self,
        shape: _Shape,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, NDArray[np.float64]]: ...
    @overload
    def zeros_async(
        self,
        shape: _Shape,
        dtype: type[_S] | np.dtype[_S],
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, NDArray[_S]]: ...
    @overload
    def zeros_async(
        self,
        shape: _Shape,
        dtype: DTypeLike,
        *,
        align: SupportsIndex | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, NDArray[Any]]: ...

@final
class GroupHold:
    @property
    def id(self) -> str | int | bytes: ...
    @property
    def priority(self) -> int: ...

@final
class Group:
    @property
    def id(self) -> str | int | bytes: ...
    @property
    def quota(self) -> int | None: ...
    @property
    def reserve(self) -> int: ...
    @property
    def priority(self) -> int: ...
    def request(
        self,
        request_id: str | int | bytes,
        devices: Iterable[str | int] = (),
        *,
        reserve: str | SupportsIndex | None = None,
        quota: str | SupportsIndex | None = None,
        lease: float | None = None,
        timeout: float | None = None,
        priority: int | None = None,
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
        priority: int | None = None,
    ) -> Coroutine[Any, Any, Request]: ...
    def session(
        self,
        session_id: str | int | bytes,
        *,
        budget: str | SupportsIndex | None = None,
        ttl: float | None = None,
        priority: SupportsIndex | None = None,
    ) -> Session: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def stats(self) -> GroupRecord: ...
    def __enter__(self) -> Group: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Request(_Makers):
    # ---- memory
    def growable(
        self,
        shape: _Shape,
        dtype: DTypeLike = ...,
        *,
        limit: SupportsIndex,
        axis: SupportsIndex = 0,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> GrowableTensor: ...
    def allocate(
        self,
        layout: Layout,
        *,
        zero: bool = False,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Tensors: ...
    def allocate_async(
        self,
        layout: Layout,
        *,
        zero: bool = False,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Coroutine[Any, Any, Tensors]: ...
    def adopt(self, tensor: NDArray[Any] | DeviceArray | Tensors | GrowableTensor) -> None: ...
    def ref(self, array: NDArray[Any] | None = None) -> TensorRef: ...
    @property
    def group(self) -> str | int | bytes | None: ...
    def _refuser(self, nbytes: int) -> tuple[str, object, int, int, int] | None: ...
    # ---- holders
    def ack(self, device: str | int, *, stream: object = None) -> Ack: ...
    def add_device(self, device: str | int) -> None: ...
    def remove_device(self, device: str | int) -> Ack: ...
    def child(
        self,
        devices: Iterable[str | int] = (),
        *,
        reserve: str | SupportsIndex | None = None,
        quota: str | SupportsIndex | None = None,
        lease: float | None = None,
        timeout: float | None = None,
        priority: int | None = None,
    ) -> Request: ...
    def close(self) -> None: ...
    def cancel(self) -> None: ...
    def activate(self) -> AbstractContextManager[Request]: ...
    def __enter__(self) -> Request: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    # ---- looking
    @property
    def id(self) -> str | int | bytes: ...
    @property
    def generation(self) -> int: ...
    @property
    def parent(self) -> int | None: ...
    @property
    def quota(self) -> int | None: ...
    @property
    def priority(self) -> int: ...
    @property
    def pending(self) -> frozenset[str | int]: ...
    @property
    def state(self) -> RequestState: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def live_views(self) -> int: ...
    @property
    def cancelled(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def released(self) -> Coroutine[Any, Any, None]: ...
    def _wait_for_end(self, wait: Wait) -> None: ...
    @property
    def _is_released(self) -> bool: ...
