"""Decides which requests are free in engines whose workers report finished transfers after each step.

This is the pattern of vLLM's KV connectors: after each step every rank names the requests whose sends (or
receives) it has finished, and memory may be reused when all ranks have named a request. `AckAggregator`
counts ranks, not messages. It has no counters: each request is a `slabpool.Request` whose devices are the
ranks, and a report is an ack.

Invariant: each request is returned as free exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from slabpool._core.pool import Pool
from slabpool._core.request import Request
from slabpool.arguments.names import plain_name
from slabpool.arguments.texts import show
from slabpool.errors import (
    AmbiguousRequestError,
    DuplicateDeviceError,
    InvalidArgumentError,
    InvalidTypeError,
    UnknownDeviceError,
)
from slabpool.records import Ack

if TYPE_CHECKING:
    from typing import TypeAlias

    Id: TypeAlias = str | int | bytes
    Rank: TypeAlias = str | int

_NO_MEMORY = "64KiB"  # capacity of the pool of `expect`, whose requests own no memory


class AckAggregator:
    """Collects the ranks' reports of finished requests, and returns requests that all ranks have finished.

    Use one aggregator for sends and one for receives. All methods may be called from any thread.

    Parameters
    ----------
    ranks : iterable of str or int
        Names of the workers that report.

    Raises
    ------
    DuplicateDeviceError
        A rank is named twice.
    InvalidArgumentError
        There is no rank.

    Examples
    --------
    Use `watch` for requests that own memory of a pool:

    >>> import numpy as np, slabpool
    >>> from slabpool.connector import AckAggregator
    >>> pool = slabpool.Pool("16MiB")
    >>> sends = AckAggregator(ranks=[0, 1])
    >>> req = sends.watch(pool.request("chat-42", devices=[0, 1]))
    >>> kv = req.zeros((2, 64), np.float16)
    >>> req.close()  # the host is done; the ranks are still sending
    >>> sends.report(0, ["chat-42"]), sends.report(0, ["chat-42"])
    ([<Ack.PENDING: 'pending'>], [<Ack.DUPLICATE: 'duplicate'>])
    >>> sends.free()
    []
    >>> sends.report(1, [("chat-42", req.generation)])
    [<Ack.RELEASED: 'released'>]
    >>> [free.id for free in sends.free()]
    ['chat-42']

    Use `expect` if the engine allocates the memory itself:

    >>> receives = AckAggregator(ranks=["tp0", "tp1"])
    >>> generation = receives.expect("chat-43").generation
    >>> _ = receives.report("tp0", ["chat-43"])
    >>> receives.rank_lost("tp1")
    1
    >>> [(free.id, free.generation == generation) for free in receives.free()]
    [('chat-43', True)]
    """

    def __init__(self, ranks: Iterable[Rank]) -> None:
        if isinstance(ranks, (str, bytes)):
            raise InvalidTypeError(
                f"ranks must be an iterable of names, got one {type(ranks).__name__} {show(ranks)}"
            )
        named = tuple(map(plain_name, ranks))
        for rank in named:
            if not isinstance(rank, (str, int)) or isinstance(rank, bool):
                raise InvalidTypeError(f"a rank must be a str or an int, got {show(rank)}")
        if not named:
            raise InvalidArgumentError("ranks is empty: name the workers that will report")
        if len(set(named)) != len(named):
            raise DuplicateDeviceError(f"a rank is named twice in {show(named)}; name each once")
        self._lock = threading.Lock()
        self._ranks = dict.fromkeys(named)  # an ordered set
        self._lost: set[Rank] = set()
        self._watched: dict[Id, list[Request]] = {}
        self._own: Pool | None = None

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """The ranks that are not lost, in the order in which they were named."""
        with self._lock:
            return tuple(rank for rank in self._ranks if rank not in self._lost)

    def watch(self, req: Request) -> Request:
        """Accept reports for a request from now on. Its devices are ranks; the host closes it.

        Parameters
        ----------
        req : Request
            A request of any pool.

        Returns
        -------
        Request
            The same request.

        Raises
        ------
        UnknownDeviceError
            The request waits for a device that is not a rank, so it would never become free.
        InvalidArgumentError
            The request is already watched.
        """
        if not isinstance(req, Request):
            raise InvalidTypeError(f"watch needs a Request, got {show(req)}; for an id call expect()")
        unknown = req.pending - self._ranks.keys()
        if unknown:
            raise UnknownDeviceError(
                f"request {show(req.id)} generation {req.generation} waits for {sorted(map(repr, unknown))}, "
                f"which are not among the ranks {show(list(self._ranks))}"
            )
        with self._lock:
            known = self._watched.setdefault(req.id, [])
            if req in known:
                raise InvalidArgumentError(
                    f"request {show(req.id)} generation {req.generation} is watched already"
                )
            known.append(req)
            for rank in self._lost:
                if rank in req.pending:
                    req.ack(rank)
        return req

    def expect(self, request_id: Id, ranks: Iterable[Rank] | None = None) -> Request:
        """Open and watch a request that owns no memory of a pool.

        Parameters
        ----------
        request_id : str, int or bytes
        ranks : iterable of str or int, optional
            The ranks that will finish it. By default all ranks that are not lost.

        Returns
        -------
        Request
            A request that the host has closed. Send its `generation` to the ranks.

        Raises
        ------
        UnknownDeviceError
            One of `ranks` is not a rank of this aggregator.
        InvalidArgumentError
            All ranks are lost.
        """
        named = self.ranks if ranks is None else tuple(ranks)
        if not named:
            raise InvalidArgumentError(f"no rank is left to finish request {show(request_id)}: all are lost")
        for rank in named:
            self._check(rank)
        with self._lock:
            if self._own is None:
                # A request without memory costs only a slot, so both cases use the same code.
                self._own = Pool(_NO_MEMORY)
        req = self._own.request(request_id, named)
        req.close()
        return self.watch(req)

    def report(self, rank: Rank, finished: Iterable[Id | tuple[Id, int]]) -> list[Ack]:
        """Process a rank's report of finished requests. Repeated, late or reordered reports change nothing.

        Parameters
        ----------
        rank : str or int
        finished : iterable of ids or (id, generation) pairs
            An id alone means the one request with this id that still waits for the rank. If ids are reused, a
            late report of an old request cannot be distinguished from a report of its successor: then send
            the generation.

        Returns
        -------
        list of Ack
            One for each item: ``PENDING``, ``RELEASED``, ``DUPLICATE``, or ``LATE`` for requests that are
            over or unknown.

        Raises
        ------
        UnknownDeviceError
            `rank` is not a rank, or not a device of one of the requests. No item of the report was processed.
        AmbiguousRequestError
            Several requests with an id wait for the rank, and no generation was given. No item was processed.
        """
        self._check(rank)
        if isinstance(finished, (str, bytes)):
            raise InvalidTypeError(
                f"finished must be an iterable of ids, got one {type(finished).__name__} {show(finished)}"
            )
        items = list(finished)
        with self._lock:
            acks = [self._find(rank, item) for item in items]  # raises before anything changes
            return [ack(rank) for ack in acks]

    def rank_lost(self, rank: Rank) -> int:
        """End all holds of a dead rank on watched requests. New requests do not wait for it.

        Requests that this aggregator does not watch are not affected; for these call `Pool.device_lost`.

        Parameters
        ----------
        rank : str or int

        Returns
        -------
        int
            Number of requests that the rank still held.

        Raises
        ------
        UnknownDeviceError
            `rank` is not a rank of this aggregator.
        """
        self._check(rank)
        with self._lock:
            self._lost.add(rank)
            held = [req for reqs in self._watched.values() for req in reqs if rank in req.pending]
            for req in held:
                req.remove_device(rank)
            return len(held)

    def rank_back(self, rank: Rank) -> None:
        """Undo `rank_lost` for new requests: they wait for the rank again.

        Parameters
        ----------
        rank : str or int

        Raises
        ------
        UnknownDeviceError
            `rank` is not a rank of this aggregator.
        """
        self._check(rank)
        with self._lock:
            self._lost.discard(rank)

    def free(self) -> list[Request]:
        """Return the requests that became free since the last call. Each request is returned once.

        A request is free when every rank has finished it and the host has closed it. Calls such as
        `Request.ack` and `Pool.device_lost` count as well as reports. The memory of a free request is back in
        its pool.

        Returns
        -------
        list of Request
        """
        done: list[Request] = []
        with self._lock:
            for request_id, reqs in list(self._watched.items()):
                over = [req for req in reqs if req._is_released]
                if not over:
                    continue
                done += over
                if len(over) == len(reqs):
                    del self._watched[request_id]
                else:
                    self._watched[request_id] = [req for req in reqs if req not in over]
        return done

    def __len__(self) -> int:
        """Return the number of watched requests."""
        with self._lock:
            return sum(map(len, self._watched.values()))

    def _check(self, rank: Rank) -> None:
        if not isinstance(plain_name(rank), (str, int)) or isinstance(rank, bool):
            raise InvalidTypeError(f"a rank must be a str or an int, got {show(rank)}")
        if rank not in self._ranks:
            raise UnknownDeviceError(
                f"rank {show(rank)} is not among the ranks {show(list(self._ranks))}; nothing was changed"
            )

    def _find(self, rank: Rank, item: Id | tuple[Id, int]) -> Callable[[Rank], Ack]:
        """Return the function that processes this item: the ack of the request that waits for the rank."""
        request_id, generation = item if isinstance(item, tuple) else (item, None)
        reqs = self._watched.get(request_id, [])
        if generation is not None:
            reqs = [req for req in reqs if req.generation == generation]
        waiting = [req for req in reqs if rank in req.pending]
        if len(waiting) > 1:
            raise AmbiguousRequestError(
                f"rank {show(rank)} reports {show(request_id)}, but generations "
                f"{[req.generation for req in waiting]} of it wait for this rank; report (id, generation). "
                "No item of this report was processed"
            )
        if waiting:
            return waiting[0].ack
        # No request waits for the rank, so this ack changes nothing: it returns DUPLICATE or LATE, or raises.
        answer = reqs[-1].ack(rank) if reqs else Ack.LATE
        return lambda _: answer
