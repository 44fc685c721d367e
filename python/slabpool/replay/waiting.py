"""Requests that wait in the pool's own queue while a replay moves virtual time.

Every request that arrives is a coroutine in `Pool.request_async`. `settle` runs the event loop until no
waiter can be served with what is free now. A request gives up when the driver cancels its coroutine, because
the pool's own timeouts follow the real clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType

import slabpool

#: Turns of the event loop without a change after which it has nothing left to do. A wake-up takes one turn to
#: arrive, one to be answered, and one to end the coroutine.
_QUIET_TURNS = 6


class PoolQueue:
    """The requests of a replay that wait for a pool. Use it as a context manager."""

    def __init__(self, pool: slabpool.Pool) -> None:
        self._pool = pool
        self._loop = asyncio.new_event_loop()
        #: In the order in which they began to wait.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        #: In the order in which they were served; and whether they took bytes.
        self._served: list[tuple[int, slabpool.Request, bool]] = []
        self._error: slabpool.SlabpoolError | None = None
        self._overtaken: list[str] = []

    def __enter__(self) -> PoolQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(_ended(tasks))
        self._loop.close()

    def ask(self, index: int, request_id: str, devices: Sequence[str], reserve: int | None) -> None:
        """Let a request ask for its bytes. It asks in the next `settle`, after all that asked before it."""
        self._tasks[index] = self._loop.create_task(self._open(index, request_id, devices, reserve))

    async def _open(self, index: int, request_id: str, devices: Sequence[str], reserve: int | None) -> None:
        try:
            request = await self._pool.request_async(request_id, devices, reserve=reserve)
        except slabpool.SlabpoolError as error:
            self._error = self._error or error
        else:
            self._served.append((index, request, bool(reserve)))

    def leave(self, index: int) -> bool:
        """Let a request give up. It leaves in the next `settle`. False if it does not wait."""
        task = self._tasks.pop(index, None)
        if task is None:
            return False
        task.cancel()
        return True

    def waits(self, index: int) -> bool:
        """Whether this request waits."""
        return index in self._tasks

    def waiting(self) -> list[int]:
        """Return the requests that wait, in the order in which they began to."""
        return list(self._tasks)

    def settle(self) -> list[tuple[int, slabpool.Request]]:
        """Serve all that can be served now, and return them in the order in which they were served.

        Raises
        ------
        SlabpoolError
            The pool refused a request, although it may wait.
        """
        self._loop.run_until_complete(self._quiet())
        if self._error is not None:
            raise self._error
        served, self._served = self._served, []
        for index, _, takes_bytes in served:
            first = next(iter(self._tasks))
            # A request without bytes waits for none.
            if first != index and takes_bytes:
                self._overtaken.append(
                    f"request {index + 1} was served before request {first + 1}, which waited longer"
                )
            del self._tasks[index]
        return [(index, request) for index, request, _ in served]

    def overtaken(self) -> list[str]:
        """Return, once, which requests were served before one that had waited longer."""
        texts, self._overtaken = self._overtaken, []
        return texts

    async def _quiet(self) -> None:
        quiet = 0
        before: tuple[int, int] | None = None
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            now = (self._pool.stats().waiting, len(self._served))
            quiet = quiet + 1 if now == before else 0
            before = now


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
