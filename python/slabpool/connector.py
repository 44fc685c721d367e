"""Which requests are free, in engines whose workers report finished transfers step by step.

The pattern of vLLM's KV connectors: after each step every rank names the requests whose sends (or
receives) it has finished, and memory may be used again once all ranks have. `AckAggregator` counts ranks,
not messages. It keeps no counts of its own: each request is a `slabpool.Request` whose devices are the
ranks, and a report is an ack. What must stay true: each request is answered as free exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from slabpool._core.pool import Pool
from slabpool._core.request import Request
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

# What a pool of requests without memory needs.
_NO_MEMORY = "64KiB"


class AckAggregator:
    """Takes each rank's reports of finished requests; answers which requests all ranks have finished.

    Use one for sends and one for receives. All methods may be called from any thread.

    Parameters
    ----------
    ranks : iterable of str or int
        The workers that report.

    Raises
    ------
    DuplicateDeviceError, InvalidArgumentError
        A rank named twice; none at all.

    Examples
    --------
    Requests that own memory of a pool are watched:

    >>> import numpy as np, slabpool
    >>> from slabpool.connector import AckAggregator
    >>> pool = slabpool.Pool("16MiB")
    >>> sends = AckAggregator(ranks=[0, 1])
    >>> req = sends.watch(pool.request("chat-42", devices=[0, 1]))
    >>> kv = req.zeros((2, 64), np.float16)
    >>> req.close()  # the host is done; the ranks still send
    >>> sends.report(0, ["chat-42"]), sends.report(0, ["chat-42"])
    ([<Ack.PENDING: 'pending'>], [<Ack.DUPLICATE: 'duplicate'>])
    >>> sends.free()
    []
    >>> sends.report(1, [("chat-42", req.generation)])
    [<Ack.RELEASED: 'released'>]
    >>> [free.id for free in sends.free()]
    ['chat-42']

    Where the memory is the engine's own, `expect` is enough:

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
            raise InvalidTypeError(f"ranks must be several names, got one {type(ranks).__name__} {ranks!r}")
        named = tuple(ranks)
        for rank in named:
            if not isinstance(rank, (str, int)) or isinstance(rank, bool):
                raise InvalidTypeError(f"a rank must be a str or an int, got {rank!r}")
        if not named:
            raise InvalidArgumentError("ranks is empty: name the workers that will report")
        if len(set(named)) != len(named):
            raise DuplicateDeviceError(f"a rank is named twice in {named!r}; name each once")
        self._lock = threading.Lock()
        self._ranks = dict.fromkeys(named)  # a set that keeps its order
        self._lost: set[Rank] = set()
        self._watched: dict[Id, list[Request]] = {}
        self._own: Pool | None = None

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """The ranks that are not lost."""
        with self._lock:
            return tuple(rank for rank in self._ranks if rank not in self._lost)

    def watch(self, req: Request) -> Request:
        """Takes reports for a request from now on; its devices are ranks, and its host closes it.

        Parameters
        ----------
        req : Request
            Of any pool.

        Returns
        -------
        Request
            The same.

        Raises
        ------
        UnknownDeviceError
            It waits for a device that is none of the ranks, and so would never be free.
        InvalidArgumentError
            It is watched already.
        """
        if not isinstance(req, Request):
            raise InvalidTypeError(f"watch needs a Request, got {req!r}; for a bare id there is expect()")
        strange = req.pending - self._ranks.keys()
        if strange:
            raise UnknownDeviceError(
                f"request {req.id!r} generation {req.generation} waits for {sorted(map(repr, strange))}, "
                f"which are none of the ranks {list(self._ranks)!r}"
            )
        with self._lock:
            known = self._watched.setdefault(req.id, [])
            if req in known:
                raise InvalidArgumentError(
                    f"request {req.id!r} generation {req.generation} is watched already"
                )
            known.append(req)
            for rank in self._lost:
                if rank in req.pending:
                    req.ack(rank)
        return req

    def expect(self, request_id: Id, ranks: Iterable[Rank] | None = None) -> Request:
        """Waits for a request whose memory is not a pool's: only its handle, which the ranks hold.

        Parameters
        ----------
        request_id : str, int or bytes
        ranks : iterable of str or int, optional
            By default all that are not lost.

        Returns
        -------
        Request
            Closed by the host. Its `generation` belongs into the messages to the ranks.

        Raises
        ------
        UnknownDeviceError
            One of `ranks` is none.
        InvalidArgumentError
            No rank is left.
        """
        named = self.ranks if ranks is None else tuple(ranks)
        if not named:
            raise InvalidArgumentError(f"no rank is left to finish request {request_id!r}: all are lost")
        for rank in named:
            self._check(rank)
        with self._lock:
            if self._own is None:
                # Handles cost a slot each and no bytes: one way to count, with memory or without.
                self._own = Pool(_NO_MEMORY)
        req = self._own.request(request_id, named)
        req.close()
        return self.watch(req)

    def report(self, rank: Rank, finished: Iterable[Id | tuple[Id, int]]) -> list[Ack]:
        """A rank says that it has finished requests. Again, late, in any order: changes nothing.

        Parameters
        ----------
        rank : str or int
        finished : iterable of ids or (id, generation) pairs
            An id alone means the one request of that id which still waits for the rank. Where ids are used
            again, a late report of an old request looks the same as one of its successor: send the
            generation.

        Returns
        -------
        list of Ack
            One for each: ``PENDING``, ``RELEASED``, ``DUPLICATE``, and ``LATE`` for requests that are
            over or were never known.

        Raises
        ------
        UnknownDeviceError
            None of the ranks, or not of one of these requests. Nothing of the report was taken in.
        AmbiguousRequestError
            Several requests of an id wait for the rank, and no generation was given. Nothing was taken in.
        """
        self._check(rank)
        if isinstance(finished, (str, bytes)):
            raise InvalidTypeError(
                f"finished must be several ids, got one {type(finished).__name__} {finished!r}"
            )
        items = list(finished)
        with self._lock:
            acks = [self._find(rank, item) for item in items]  # raises before anything is changed
            return [ack(rank) for ack in acks]

    def rank_lost(self, rank: Rank) -> int:
        """A rank is dead: it holds nothing any more, and nothing waits for it from now on.

        Only what this aggregator watches lets go; for all else the rank held there is `Pool.device_lost`.

        Parameters
        ----------
        rank : str or int

        Returns
        -------
        int
            Requests that it still held.
        """
        self._check(rank)
        with self._lock:
            self._lost.add(rank)
            held = [req for reqs in self._watched.values() for req in reqs if rank in req.pending]
            for req in held:
                req.remove_device(rank)
            return len(held)

    def rank_back(self, rank: Rank) -> None:
        """A rank that was lost works again: requests expected from now on wait for it."""
        self._check(rank)
        with self._lock:
            self._lost.discard(rank)

    def free(self) -> list[Request]:
        """The requests that became free since the last call; each is answered once.

        Free is what every rank has finished and the host has closed, in whatever way that came about
        (`Request.ack`, `Pool.device_lost`, ... count as well). Memory that came with a request is then back.

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
        """Requests that are watched."""
        with self._lock:
            return sum(map(len, self._watched.values()))

    def _check(self, rank: Rank) -> None:
        if isinstance(rank, bool) or not isinstance(rank, (str, int)):
            raise InvalidTypeError(f"a rank must be a str or an int, got {rank!r}")
        if rank not in self._ranks:
            raise UnknownDeviceError(f"rank {rank!r} is none of {list(self._ranks)!r}; nothing was changed")

    def _find(self, rank: Rank, item: Id | tuple[Id, int]) -> Callable[[Rank], Ack]:
        """What takes in this report: the ack of the request that waits for the rank, if there is one."""
        request_id, generation = item if isinstance(item, tuple) else (item, None)
        reqs = self._watched.get(request_id, [])
        if generation is not None:
            reqs = [req for req in reqs if req.generation == generation]
        waiting = [req for req in reqs if rank in req.pending]
        if len(waiting) > 1:
            raise AmbiguousRequestError(
                f"rank {rank!r} reports {request_id!r}, and generations "
                f"{[req.generation for req in waiting]} of it all wait for that rank; report "
                "(id, generation). Nothing of this report was taken in"
            )
        if waiting:
            return waiting[0].ack
        # An ack by a device that is not waited for is an answer or an error, and changes nothing.
        answer = reqs[-1].ack(rank) if reqs else Ack.LATE
        return lambda _: answer
