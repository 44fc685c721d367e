"""Pools that break their own laws on purpose, to check that a replay notices.

Each wraps a real pool and falsifies one kind of answer; everything else passes through.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import slabpool


class SabotagedPool:
    """A pool that behaves correctly."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.pool = slabpool.Pool(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)

    def __enter__(self) -> SabotagedPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self.pool.close(force=True)


class LosesAcks(SabotagedPool):
    """Forgets every acknowledgement that names a generation: memory never comes back."""

    def ack(self, request_id: str, device: str, *, generation: int | None = None) -> slabpool.Ack:
        return slabpool.Ack.PENDING


class CountsMessages(SabotagedPool):
    """Counts a late ack as a first one, as a counter of messages would."""

    def ack(self, request_id: str, device: str, *, generation: int | None = None) -> slabpool.Ack:
        answer = self.pool.ack(request_id, device, generation=generation)
        return slabpool.Ack.PENDING if answer is slabpool.Ack.LATE else answer


class IgnoresLoss(SabotagedPool):
    """Ignores device_lost()."""

    def device_lost(self, device: str) -> int:
        return 0


class KeepsNoReservation(SabotagedPool):
    """Opens requests without reserving their bytes."""

    def request(self, request_id: str, devices: list[str], *, reserve: int | None = None) -> slabpool.Request:
        return self.pool.request(request_id, devices)


class LetsOvertake(SabotagedPool):
    """Gives each request a priority of its own: the later it comes, the higher."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked = 0

    async def request_async(
        self, request_id: str, devices: list[str], *, reserve: int | None = None
    ) -> slabpool.Request:
        self.asked += 1
        return await self.pool.request_async(request_id, devices, reserve=reserve, priority=self.asked)
